"""The two controllers that clients can't do without: garbage collection by owners, and the end of namespaces."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator

from lab.apiserver.kinds import Kind
from lab.apiserver.registry import Registry
from lab.apiserver.status import StatusError
from lab.apiserver.storage import Entry, Json, Key, Stored, Table

_NAMESPACES: Table = ("", "namespaces")
NAME = "kube-controller-manager"


class Controllers:
    """Follows every change and acts in the background, as the controller manager does."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._store = registry.store
        self._living: dict[str, tuple[Table, Key]] = {}
        self._dependents: dict[str, set[tuple[Table, Key]]] = defaultdict(set)
        self._work: asyncio.Queue[tuple[Table, Key, str]] = asyncio.Queue()
        self._store.listen_to_all(self._saw)

    def learn(self) -> None:
        """Look at what is stored already (objects from disk)."""
        for table in self._store.tables():
            for key, stored in self._store.all(table):
                self._know(table, key, stored)

    def _know(self, table: Table, key: Key, stored: Stored) -> None:
        metadata = stored.object["metadata"]
        self._living[metadata["uid"]] = (table, key)
        for owner in metadata.get("ownerReferences") or ():
            self._dependents[owner["uid"]].add((table, key))

    def _saw(self, table: Table, entry: Entry) -> None:
        metadata = entry.new.object["metadata"]
        if entry.old is not None:
            for owner in entry.old.object["metadata"].get("ownerReferences") or ():
                self._dependents[owner["uid"]].discard((table, entry.key))
        if entry.type == "DELETED":
            self._living.pop(metadata["uid"], None)
            for dependent in self._dependents.get(metadata["uid"], ()):
                self._work.put_nowait((*dependent, "dependent"))
            self._wake_owners(metadata)
            if entry.key[0]:
                self._wake_namespace(entry.key[0])
            return
        self._know(table, entry.key, entry.new)
        if metadata.get("ownerReferences") and (
            entry.type == "ADDED"
            or (entry.old and entry.old.object["metadata"].get("ownerReferences") != metadata["ownerReferences"])
        ):
            self._work.put_nowait((table, entry.key, "dependent"))
        if metadata.get("deletionTimestamp"):
            self._work.put_nowait((table, entry.key, "namespace" if table == _NAMESPACES else "owner"))

    def _wake_owners(self, metadata: Json) -> None:
        for owner in metadata.get("ownerReferences") or ():
            if owner["uid"] in self._living:
                self._work.put_nowait((*self._living[owner["uid"]], "owner"))

    def _wake_namespace(self, namespace: str) -> None:
        found = self._store.get(_NAMESPACES, ("", namespace))
        if found is not None and found.object["metadata"].get("deletionTimestamp"):
            self._work.put_nowait((_NAMESPACES, ("", namespace), "namespace"))

    async def run(self) -> None:
        """Work for ever."""
        while True:
            table, key, what = await self._work.get()
            kind = self._registry.kinds.of_table(table)
            stored = self._store.get(table, key)
            if kind is None or stored is None:
                continue
            if what == "dependent":
                self._check_dependent(kind, key, stored)
            elif what == "owner":
                self._check_owner(kind, key, stored)
            else:
                self._empty_namespace(kind, key, stored)
            if self._work.qsize() % 64 == 0:
                await asyncio.sleep(0)

    def _check_dependent(self, kind: Kind, key: Key, stored: Stored) -> None:
        metadata = stored.object["metadata"]
        owners = metadata.get("ownerReferences") or []
        if not owners or metadata.get("deletionTimestamp"):
            return
        solid = [owner for owner in owners if self._lives(owner, key[0])]
        if not solid:
            self._delete(kind, key, {"preconditions": {"uid": stored.uid}, "propagationPolicy": "Background"})
        elif len(solid) < len(owners):

            def drop(obj: Json) -> None:
                obj["metadata"]["ownerReferences"] = solid

            self._registry.change(kind, key, drop, manager=NAME)

    def _lives(self, owner: Json, namespace: str) -> bool:
        found = self._living.get(owner["uid"])
        if found is None:
            return False
        (_, (place, _)) = found
        return place in ("", namespace)

    def _check_owner(self, kind: Kind, key: Key, stored: Stored) -> None:
        metadata = stored.object["metadata"]
        finalizers = metadata.get("finalizers") or []
        dependents = list(self._of(stored.uid))
        if "orphan" in finalizers:
            for table, each in dependents:
                self._disown(table, each, stored.uid)
            self._finish(kind, key, "orphan")
        elif "foregroundDeletion" in finalizers:
            blocking = False
            for table, each in dependents:
                dependent = self._store.get(table, each)
                dependent_kind = self._registry.kinds.of_table(table)
                if dependent is None or dependent_kind is None:
                    continue
                owners = dependent.object["metadata"].get("ownerReferences") or []
                mine = next(owner for owner in owners if owner["uid"] == stored.uid)
                blocking = blocking or bool(mine.get("blockOwnerDeletion"))
                if not dependent.object["metadata"].get("deletionTimestamp") and len(owners) == 1:
                    self._delete(dependent_kind, each, {"propagationPolicy": "Foreground"})
            if not blocking or not list(self._of(stored.uid)):
                self._finish(kind, key, "foregroundDeletion")

    def _of(self, uid: str) -> Iterator[tuple[Table, Key]]:
        return iter([each for each in self._dependents.get(uid, ()) if self._store.get(*each) is not None])

    def _disown(self, table: Table, key: Key, uid: str) -> None:
        kind = self._registry.kinds.of_table(table)
        if kind is None:
            return

        def drop(obj: Json) -> None:
            owners = [owner for owner in obj["metadata"].get("ownerReferences") or [] if owner["uid"] != uid]
            obj["metadata"]["ownerReferences"] = owners
            if not owners:
                del obj["metadata"]["ownerReferences"]

        self._registry.change(kind, key, drop, manager=NAME)

    def _finish(self, kind: Kind, key: Key, finalizer: str) -> None:
        def drop(obj: Json) -> None:
            left = [each for each in obj["metadata"].get("finalizers") or [] if each != finalizer]
            obj["metadata"]["finalizers"] = left
            if not left:
                del obj["metadata"]["finalizers"]

        self._registry.change(kind, key, drop, manager=NAME)

    def _delete(self, kind: Kind, key: Key, options: Json) -> None:
        try:
            self._registry.delete(kind, key, options)
        except StatusError:
            return  # somebody else has deleted or replaced it meanwhile

    def _empty_namespace(self, kind: Kind, key: Key, stored: Stored) -> None:
        namespace, left = key[1], 0
        for table in self._store.tables():
            each_kind = self._registry.kinds.of_table(table)
            if each_kind is None or not each_kind.namespaced:
                continue
            for each, obj in self._store.sorted(table, namespace):
                if not obj.object["metadata"].get("deletionTimestamp"):
                    self._delete(each_kind, each, {"propagationPolicy": "Background"})
                left += self._store.get(table, each) is not None
        if left:
            return

        def finish(obj: Json) -> None:
            obj.setdefault("spec", {})["finalizers"] = []

        self._registry.change(kind, key, finish, manager=NAME)
