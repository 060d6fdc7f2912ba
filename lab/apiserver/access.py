"""Who is asking, and a record of what was asked for (to compare with granted roles)."""

from __future__ import annotations

import csv
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab.apiserver.status import unauthorized


@dataclass(frozen=True, slots=True)
class User:
    """An authenticated user."""

    name: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: Mapping[str, Sequence[str]] = field(default_factory=dict, hash=False)
    """What a service account's token says beside: the node of its pod, for one."""


ADMIN = User("system:admin", groups=("system:masters",))


class Tokens:
    """Bearer tokens from a file as kube-apiserver's --token-auth-file: `token,user,uid[,"group1,group2"]` a line."""

    def __init__(self, users: dict[str, User] | None) -> None:
        """None: nobody is asked for a token, everybody is admin."""
        self._users = users

    @classmethod
    def read(cls, path: Path) -> Tokens:
        """Raises ValueError, with the number of a line that has fewer than three fields."""
        users: dict[str, User] = {}
        with path.open(newline="") as file:
            for number, row in enumerate(csv.reader(file), 1):
                if not row:
                    continue
                if len(row) < 3 or not row[0]:
                    raise ValueError(f"{path}:{number}: a line must be token,user,uid[,groups]")
                groups = tuple(group for group in (row[3] if len(row) > 3 else "").split(",") if group)
                users[row[0]] = User(row[1], row[2], (*groups, "system:authenticated"))
        return cls(users)

    @property
    def first(self) -> str:
        """The first token of the file ("" if there is none)."""
        return next(iter(self._users or {}), "")

    def user(self, authorization: str) -> User:
        """The user behind an Authorization header. Raises StatusError (401)."""
        if self._users is None:
            return ADMIN
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() == "bearer":
            for known, user in self._users.items():
                if hmac.compare_digest(known.encode(), token.strip().encode()):
                    return user
        raise unauthorized()


@dataclass(frozen=True, slots=True)
class Request:
    """What authorization looks at."""

    user: str
    verb: str
    group: str
    resource: str
    subresource: str = ""
    namespace: str = ""
    name: str = ""


class Recorder:
    """Writes each distinct (user, verb, group, resource, subresource) as one JSON line, when it is first seen."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.seen: set[tuple[str, ...]] = set()

    def record(self, request: Request) -> None:
        """Remember a request."""
        key = (request.user, request.verb, request.group, request.resource, request.subresource)
        if key in self.seen:
            return
        self.seen.add(key)
        if self._path is not None:
            names = ("user", "verb", "group", "resource", "subresource")
            with self._path.open("a") as file:
                file.write(json.dumps(dict(zip(names, key, strict=True))) + "\n")
