"""Lists in pages, all of one version."""

from __future__ import annotations

import base64
import binascii
from collections import OrderedDict
from collections.abc import Callable, Mapping

import msgspec

from lab.apiserver.kinds import Kind
from lab.apiserver.selectors import Predicate
from lab.apiserver.status import Json, bad_request, expired, invalid, invalid_value, too_large_version
from lab.apiserver.storage import Key, Store, Stored

SNAPSHOTS = 64
"""Lists that have been begun and may still be continued; the oldest ones expire."""
_TOO_OLD = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list without "
    "the continue parameter, or use the continue token in this response to retrieve the remainder of the results. "
    "Continuing with the provided token results in an inconsistent list - objects that were created, modified, or "
    "deleted between the time the first chunk was returned and now may show up in the list."
)


class Lists:
    """Answers to LIST. The rest of a paged list is kept as it was when the list began."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._snapshots: OrderedDict[tuple[int, str], list[tuple[Key, Stored]]] = OrderedDict()

    def expire(self) -> None:
        """Forget all lists that were begun: their tokens answer 410."""
        self._snapshots.clear()

    def answer(
        self,
        kind: Kind,
        namespace: str,
        predicate: Predicate | None,
        query: Mapping[str, str],
        convert: Callable[[Stored], bytes] | None,
    ) -> bytes:
        """The body of a list. Raises StatusError (400, 410, 504)."""
        limit = _number(query, "limit")
        token = query.get("continue", "")
        what = (
            f"{kind.plural}.{kind.group}|{namespace}|{query.get('labelSelector', '')}|{query.get('fieldSelector', '')}"
        )
        version = self._store.version
        if token:
            version, start = self._parse(token)
            rest = self._rest(kind, namespace, predicate, version, start, what)
            version = version if version > 0 else self._store.version
        else:
            self._check_version(query)
            rest = self._chosen(kind, namespace, predicate, None)
        page, rest = (rest[:limit], rest[limit:]) if limit else (rest, [])
        metadata: Json = {"resourceVersion": str(version)}
        if rest:
            key = page[-1][0]
            self._snapshots[version, what] = rest
            self._snapshots.move_to_end((version, what))
            while len(self._snapshots) > SNAPSHOTS:
                self._snapshots.popitem(last=False)
            metadata["continue"] = _token(version, key)
            if predicate is None:
                metadata["remainingItemCount"] = len(rest)
        items = b",".join(stored.encoded if convert is None else convert(stored) for _, stored in page)
        head = {"kind": kind.kind + "List", "apiVersion": kind.api_version, "metadata": metadata}
        return msgspec.json.encode(head)[:-1] + b',"items":[' + items + b"]}"

    def _chosen(
        self, kind: Kind, namespace: str, predicate: Predicate | None, after: Key | None
    ) -> list[tuple[Key, Stored]]:
        found = self._store.sorted(kind.table, namespace, after)
        return found if predicate is None else [item for item in found if predicate(item[1].object)]

    def _rest(
        self, kind: Kind, namespace: str, predicate: Predicate | None, version: int, start: Key, what: str
    ) -> list[tuple[Key, Stored]]:
        if version < 0:  # an inconsistent token: go on with what is there now
            return self._chosen(kind, namespace, predicate, start)
        rest = self._snapshots.get((version, what))
        if rest is None:
            raise expired(_TOO_OLD, continue_=_token(-1, start))
        return rest

    def _check_version(self, query: Mapping[str, str]) -> None:
        text = query.get("resourceVersion", "")
        match = query.get("resourceVersionMatch", "")
        if match and not text:
            cause = invalid_value(
                "resourceVersionMatch", match, "resourceVersionMatch is forbidden unless resourceVersion is provided"
            )
            raise invalid("ListOptions", "meta.k8s.io", "", [cause])
        if match not in ("", "NotOlderThan", "Exact"):
            cause = invalid_value("resourceVersionMatch", match, "must be Exact or NotOlderThan")
            raise invalid("ListOptions", "meta.k8s.io", "", [cause])
        version = _number(query, "resourceVersion")
        if version > self._store.version:
            raise too_large_version(version, self._store.version)
        if match == "Exact" and version < self._store.version:
            raise expired("The resourceVersion for the provided list is too old.")

    def _parse(self, token: str) -> tuple[int, Key]:
        try:
            parts = msgspec.json.decode(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
            namespace, _, name = parts["start"].rpartition("/")
            return int(parts["rv"]), (namespace, name)
        except (binascii.Error, msgspec.DecodeError, KeyError, ValueError, TypeError) as error:
            raise bad_request(f"continue key is not valid: {error}") from error


def _token(version: int, key: Key) -> str:
    start = f"{key[0]}/{key[1]}" if key[0] else key[1]
    raw = msgspec.json.encode({"v": "meta.k8s.io/v1", "rv": version, "start": start})
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _number(query: Mapping[str, str], name: str) -> int:
    text = query.get(name, "")
    if not text:
        return 0
    if not text.isdigit():
        raise bad_request(f'{name}: Invalid value: "{text}": strconv.ParseUint: parsing "{text}": invalid syntax')
    return int(text)
