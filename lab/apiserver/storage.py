"""The objects, their versions and the recent history of each kind."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

Json = dict[str, Any]
Table = tuple[str, str]
Key = tuple[str, str]
"""Namespace ("" for cluster-wide objects) and name."""

HISTORY = 10_000
"""Changes of one kind that a watch may go back to."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


@dataclass(frozen=True, slots=True)
class Stored:
    """One version of one object. `object` is never changed; `encoded` are its bytes."""

    version: int
    object: Json
    encoded: bytes

    @property
    def uid(self) -> str:
        """The object's uid."""
        return str(self.object["metadata"]["uid"])


@dataclass(frozen=True, slots=True)
class Entry:
    """One change. `old` is None for a created object; for a deleted one `new` is its last state, at the new version."""

    version: int
    type: Literal["ADDED", "MODIFIED", "DELETED"]
    key: Key
    old: Stored | None
    new: Stored

    def line(self) -> bytes:
        """The change as a watch without selectors shows it."""
        return event_line(self.type, self.new.encoded)


def event_line(type: str, encoded: bytes) -> bytes:
    """A line of a watch."""
    return b'{"type":"' + type.encode() + b'","object":' + encoded + b"}\n"


def copy(obj: Json) -> Json:
    """A deep copy of a JSON object."""
    duplicate: Json = _decode(_encode(obj))
    return duplicate


@dataclass(slots=True)
class _Kind:
    objects: dict[Key, Stored] = field(default_factory=dict)
    history: deque[Entry] = field(default_factory=deque)
    forgotten: int = 0
    listeners: list[Callable[[Entry], None]] = field(default_factory=list)


class Store:
    """All objects under one counter of versions, like etcd's revisions: every write takes the next number."""

    def __init__(self, *, version: int = 1, history: int = HISTORY) -> None:
        self.version = version
        self._history = history
        self._kinds: dict[Table, _Kind] = {}
        self._everyone: list[Callable[[Table, Entry], None]] = []
        self._floor = 0

    def _kind(self, table: Table) -> _Kind:
        found = self._kinds.get(table)
        if found is None:
            found = self._kinds[table] = _Kind(forgotten=self._floor)
        return found

    def tables(self) -> list[Table]:
        """Where anything is, or was, stored."""
        return list(self._kinds)

    def get(self, table: Table, key: Key) -> Stored | None:
        """The object of that name."""
        kind = self._kinds.get(table)
        return kind.objects.get(key) if kind else None

    def all(self, table: Table) -> Iterator[tuple[Key, Stored]]:
        """All objects, in no order."""
        kind = self._kinds.get(table)
        return iter(list(kind.objects.items()) if kind else [])

    def sorted(self, table: Table, namespace: str = "", after: Key | None = None) -> list[tuple[Key, Stored]]:
        """All objects (of a namespace) in etcd's order, behind a key."""
        chosen = [
            (key, stored)
            for key, stored in self.all(table)
            if (not namespace or key[0] == namespace) and (after is None or _path(key) > _path(after))
        ]
        chosen.sort(key=lambda item: _path(item[0]))
        return chosen

    def write(self, table: Table, key: Key, obj: Json) -> Stored:
        """Store `obj` (which the caller gives away) under the next version and tell the watchers."""
        kind = self._kind(table)
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)
        stored = Stored(self.version, obj, _encode(obj))
        old = kind.objects.get(key)
        kind.objects[key] = stored
        self._remember(table, kind, Entry(self.version, "ADDED" if old is None else "MODIFIED", key, old, stored))
        return stored

    def remove(self, table: Table, key: Key) -> Stored:
        """Take an object away; its last state carries the version of the removal."""
        kind = self._kind(table)
        old = kind.objects.pop(key)
        self.version += 1
        last = {**old.object, "metadata": {**old.object["metadata"], "resourceVersion": str(self.version)}}
        gone = Stored(self.version, last, _encode(last))
        self._remember(table, kind, Entry(self.version, "DELETED", key, old, gone))
        return gone

    def replace_silently(self, table: Table, key: Key, obj: Json) -> None:
        """Give an object that is about to be removed its last contents; nobody sees them but the removal's watchers."""
        kind = self._kind(table)
        kind.objects[key] = Stored(kind.objects[key].version, obj, b"")

    def load(self, table: Table, key: Key, obj: Json) -> None:
        """Put back an object from disk, with the version it has; nobody is told."""
        version = int(obj["metadata"]["resourceVersion"])
        self.version = max(self.version, version)
        self._kind(table).objects[key] = Stored(version, obj, _encode(obj))

    def _remember(self, table: Table, kind: _Kind, entry: Entry) -> None:
        kind.history.append(entry)
        while len(kind.history) > self._history:
            kind.forgotten = kind.history.popleft().version
        for listener in tuple(kind.listeners):
            listener(entry)
        for everyone in self._everyone:
            everyone(table, entry)

    def compact(self) -> None:
        """Forget the history of everything."""
        self.version += 1  # so that no version given out so far can be watched from
        self.begin()

    def begin(self, table: Table | None = None) -> None:
        """Remember no history before now: of one kind that has just been defined, or (None) of all."""
        if table is not None:
            self._kind(table).forgotten = self.version
            return
        self._floor = self.version
        for kind in self._kinds.values():
            kind.history.clear()
            kind.forgotten = self._floor

    def oldest(self, table: Table) -> int:
        """The lowest version from which a watch of that table may start."""
        return self._kind(table).forgotten

    def latest(self, table: Table) -> int:
        """The version of the newest change of that table that is remembered, or since when none has been."""
        kind = self._kind(table)
        return kind.history[-1].version if kind.history else kind.forgotten

    def since(self, table: Table, version: int) -> list[Entry]:
        """The changes after a version that is not forgotten."""
        return [entry for entry in self._kind(table).history if entry.version > version]

    def listen(self, table: Table, listener: Callable[[Entry], None]) -> Callable[[], None]:
        """Tell `listener` of each change; returns what ends that."""
        listeners = self._kind(table).listeners
        listeners.append(listener)
        return lambda: listeners.remove(listener) if listener in listeners else None

    def listen_to_all(self, listener: Callable[[Table, Entry], None]) -> None:
        """Tell `listener` of each change of anything."""
        self._everyone.append(listener)


def _path(key: Key) -> str:
    return f"{key[0]}/{key[1]}" if key[0] else key[1]
