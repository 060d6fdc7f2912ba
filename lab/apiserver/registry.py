"""The verbs on stored objects, without HTTP."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lab.apiserver import applying, lists, patches, pods, status
from lab.apiserver.kinds import Kind, Kinds, from_definition
from lab.apiserver.services import Allocator
from lab.apiserver.storage import Json, Key, Store, Stored, copy
from lab.apiserver.strategies import Strategies

_SUFFIX = "bcdfghjklmnpqrstvwxz2456789"
_NAMESPACES = ("", "namespaces")
_RETURNS_OBJECT = {
    "pods",
    "serviceaccounts",
    "persistentvolumes",
    "persistentvolumeclaims",
    "storageclasses",
    "volumeattachments",
    "csinodes",
    "csidrivers",
}


@dataclass(frozen=True, slots=True)
class Write:
    """How a write is meant."""

    manager: str = "unknown"
    subresource: str = ""
    validation: str = "Warn"
    dry_run: bool = False
    force: bool = False
    is_patch: bool = False


@dataclass(frozen=True, slots=True)
class Written:
    """An object after a write; `warnings` name the fields that were dropped."""

    stored: Stored
    created: bool = False
    warnings: list[str] = field(default_factory=list)


class Registry:
    """All verbs. Each runs without interruption, so a write is atomic. Raises StatusError."""

    def __init__(
        self, store: Store, kinds: Kinds, *, allocator: Allocator, clock: Callable[[], float] = time.time
    ) -> None:
        self.store = store
        self.kinds = kinds
        self._clock = clock
        self.strategies = Strategies(allocator, self.now)

    def now(self) -> str:
        """The time as meta/v1 Time."""
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._clock()))

    def get(self, kind: Kind, key: Key) -> Stored:
        """One object."""
        found = self.store.get(kind.table, key)
        if found is None:
            raise status.not_found(kind.plural, kind.group, key[1])
        return found

    def create(self, kind: Kind, namespace: str, obj: Json, write: Write) -> Written:
        """POST."""
        obj, warnings = self.strategies.decode(kind, obj, write.validation)
        metadata = obj["metadata"]
        self._place(kind, namespace, obj)
        if metadata.get("resourceVersion"):
            raise status.StatusError(500, "", "resourceVersion should not be set on objects to be created")
        for name in ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"):
            metadata.pop(name, None)
        metadata.pop("managedFields", None)
        prefix = metadata.get("generateName")
        if not metadata.get("name") and prefix:
            metadata["name"] = prefix[:58] + "".join(random.choices(_SUFFIX, k=5))
        key = (namespace, metadata.get("name") or "")
        if kind.namespaced:
            self._need_namespace(kind, namespace, key[1])
        if self.store.get(kind.table, key) is not None:
            raise status.already_exists(kind.plural, kind.group, key[1])
        self.strategies.create(kind, obj)
        metadata["uid"] = str(uuid.uuid4())
        metadata["creationTimestamp"] = self.now()
        applying.record_update(None, obj, kind, write.manager, "", self.now())
        return Written(self._write(kind, key, obj, write), True, warnings)

    def _place(self, kind: Kind, namespace: str, obj: Json) -> None:
        metadata = obj["metadata"]
        if obj.get("kind", kind.kind) != kind.kind or obj.get("apiVersion", kind.api_version) != kind.api_version:
            said = f"{obj.get('kind')} in version {obj.get('apiVersion')!r}"
            raise status.bad_request(f"{said} does not match the expected {kind.kind} in {kind.api_version!r}")
        obj["apiVersion"], obj["kind"] = kind.api_version, kind.kind
        if metadata.get("namespace", namespace) not in (namespace, ""):
            raise status.bad_request(
                "the namespace of the provided object does not match the namespace sent on the request"
            )
        if kind.namespaced:
            metadata["namespace"] = namespace
        else:
            metadata.pop("namespace", None)

    def _need_namespace(self, kind: Kind, namespace: str, name: str) -> None:
        found = self.store.get(_NAMESPACES, ("", namespace))
        if found is None:
            raise status.not_found("namespaces", "", namespace)
        if found.object["metadata"].get("deletionTimestamp"):
            why = f"unable to create new content in namespace {namespace} because it is being terminated"
            cause = {"reason": "NamespaceTerminating", "message": f"namespace {namespace} is being terminated"}
            raise status.forbidden(kind.plural, kind.group, name, why, [cause | {"field": "metadata.namespace"}])

    def update(self, kind: Kind, key: Key, obj: Json, write: Write) -> Written:
        """PUT."""
        obj, warnings = self.strategies.decode(kind, obj, write.validation)
        self._place(kind, key[0], obj)
        metadata = obj["metadata"]
        if metadata.get("name", key[1]) != key[1]:
            raise status.bad_request(
                f"the name of the object ({metadata['name']}) does not match the name on the URL ({key[1]})"
            )
        metadata["name"] = key[1]
        old = self.store.get(kind.table, key)
        if old is None:
            if kind.create_on_update and not write.subresource and not metadata.get("uid"):
                metadata.pop("resourceVersion", None)
                return self.create(kind, key[0], obj, write)
            raise status.not_found(kind.plural, kind.group, key[1])
        if not metadata.get("resourceVersion") and not kind.unconditional:
            cause = status.invalid_value("metadata.resourceVersion", 0, "must be specified for an update")
            raise status.invalid(kind.kind, kind.group, key[1], [cause])
        return Written(self._replace(kind, key, old, obj, write), False, warnings)

    def patch(self, kind: Kind, key: Key, patch: Any, type: str, write: Write) -> Written:
        """PATCH of the three kinds that change an existing object."""
        old = self.get(kind, key)
        current = copy(old.object)
        current["apiVersion"] = kind.api_version
        if type == "json":
            new = patches.json_patch(current, patch)
        elif not isinstance(patch, dict):
            raise status.bad_request("error decoding patch: a patch of this type must be an object")
        elif type == "merge":
            new = patches.merge(current, patch)
        else:
            new = patches.strategic(current, patch, lists.root(kind))
        new, warnings = self.strategies.decode(kind, new, write.validation)
        self._place(kind, key[0], new)
        if new["metadata"].get("name") != key[1]:
            raise status.bad_request(f"the name of the object does not match the name on the URL ({key[1]})")
        return Written(self._replace(kind, key, old, new, write), False, warnings)

    def apply(self, kind: Kind, key: Key, applied: Json, write: Write) -> Written:
        """Server-side apply."""
        applied, warnings = self.strategies.decode(kind, applied, write.validation)
        self._place(kind, key[0], applied)
        if applied["metadata"].setdefault("name", key[1]) != key[1]:
            raise status.bad_request(f"the name of the object does not match the name on the URL ({key[1]})")
        if applied["metadata"].get("managedFields"):
            raise status.bad_request("metadata.managedFields must be nil")
        old = self.store.get(kind.table, key)
        if old is None:
            return self._apply_new(kind, key, applied, write, warnings)
        wanted = copy(applied)
        new, owned = applying.apply(old.object, wanted, kind, write.manager, write.subresource, force=write.force)
        new["metadata"]["resourceVersion"] = applied["metadata"].get("resourceVersion", "")
        stored = self._replace(kind, key, old, new, write, owned=owned)
        return Written(stored, False, warnings)

    def _apply_new(self, kind: Kind, key: Key, applied: Json, write: Write, warnings: list[str]) -> Written:
        if write.subresource:
            raise status.not_found(kind.plural, kind.group, key[1])
        if applied["metadata"].get("uid"):
            raise status.conflict(kind.plural, kind.group, key[1], "uid mismatch: the object does not exist")
        wanted = copy(applied)
        empty: Json = {"metadata": {}}
        _, owned = applying.apply(empty, wanted, kind, write.manager, "", force=True)
        created = self.create(kind, key[0], applied, Write(manager=write.manager, dry_run=True))
        obj = created.stored.object
        obj["metadata"].pop("managedFields", None)
        applying.record_apply(None, obj, kind, owned, write.manager, "", self.now())
        return Written(self._write(kind, key, obj, write), True, warnings)

    def _replace(
        self, kind: Kind, key: Key, old: Stored, new: Json, write: Write, *, owned: Json | None = None
    ) -> Stored:
        metadata = new["metadata"]
        if metadata.get("uid") and metadata["uid"] != old.uid and not write.is_patch:
            why = f"Precondition failed: UID in precondition: {metadata['uid']}, UID in object meta: {old.uid}"
            raise status.conflict(kind.plural, kind.group, key[1], why)
        self.strategies.update(kind, old.object, new, write.subresource)
        metadata = new["metadata"]
        metadata["resourceVersion"] = old.object["metadata"]["resourceVersion"]
        if owned is None:
            applying.record_update(old.object, new, kind, write.manager, write.subresource, self.now())
        else:
            applying.record_apply(old.object, new, kind, owned, write.manager, write.subresource, self.now())
        new["apiVersion"] = old.object["apiVersion"]
        if new == old.object:
            return old
        if metadata.get("deletionTimestamp") and not self._held(kind, new):
            return self._remove(kind, key, write, last=new)
        return self._write(kind, key, new, write)

    def _held(self, kind: Kind, obj: Json) -> bool:
        """Whether something keeps a deleted object: a finalizer, a pod's kubelet, a namespace's contents."""
        metadata = obj["metadata"]
        if kind.table == _NAMESPACES and (obj.get("spec") or {}).get("finalizers"):
            return True
        return bool(metadata.get("finalizers")) or bool(metadata.get("deletionGracePeriodSeconds"))

    def _write(self, kind: Kind, key: Key, obj: Json, write: Write) -> Stored:
        if write.dry_run:
            return Stored(0, obj, b"")
        stored = self.store.write(kind.table, key, obj)
        if kind.kind == "CustomResourceDefinition":
            for each in from_definition(obj):
                if self.kinds.of_table(each.table) is None:
                    self.store.begin(each.table)
                self.kinds.add(each)
        return stored

    def _remove(self, kind: Kind, key: Key, write: Write, *, last: Json | None = None) -> Stored:
        if write.dry_run:
            return self.get(kind, key)
        if last is not None:
            self.store.replace_silently(kind.table, key, last)
        gone = self.store.remove(kind.table, key)
        self.strategies.removed(kind, gone.object)
        if kind.kind == "CustomResourceDefinition":
            self._remove_kind(gone.object)
        return gone

    def _remove_kind(self, crd: Json) -> None:
        spec = crd["spec"]
        table = (spec["group"], spec["names"]["plural"])
        for key, _ in list(self.store.all(table)):
            self.store.remove(table, key)
        self.kinds.remove(*table)

    def delete(self, kind: Kind, key: Key, options: Json, *, dry_run: bool = False) -> tuple[Stored, bool]:
        """DELETE: the object as it is afterwards, and whether it has gone. Raises StatusError (404, 409)."""
        old = self.get(kind, key)
        self._preconditions(kind, key, old, options.get("preconditions") or {})
        write = Write(dry_run=dry_run)
        metadata = old.object["metadata"]
        grace = pods.grace_seconds(old.object, options.get("gracePeriodSeconds")) if kind.table == ("", "pods") else 0
        finalizers = _finalizers(metadata.get("finalizers") or [], options)
        deleting = "deletionTimestamp" in metadata
        new = copy(old.object)
        changed = new["metadata"]
        if finalizers:
            changed["finalizers"] = finalizers
        else:
            changed.pop("finalizers", None)
        if not deleting or grace < changed.get("deletionGracePeriodSeconds", 0):
            changed["deletionTimestamp"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._clock() + grace))
            changed["deletionGracePeriodSeconds"] = grace
            if kind.generation and not deleting:
                changed["generation"] = changed.get("generation", 1) + 1
        if kind.table == _NAMESPACES:
            changed.pop("deletionGracePeriodSeconds", None)
            new["status"] = {**(new.get("status") or {}), "phase": "Terminating"}
        if not self._held(kind, new):
            return self._remove(kind, key, write), True
        if new == old.object:
            return old, False
        return self._write(kind, key, new, write), False

    def _preconditions(self, kind: Kind, key: Key, old: Stored, wanted: Json) -> None:
        version = old.object["metadata"]["resourceVersion"]
        if wanted.get("uid") and wanted["uid"] != old.uid:
            why = f"Precondition failed: UID in precondition: {wanted['uid']}, UID in object meta: {old.uid}"
            raise status.conflict(kind.plural, kind.group, key[1], why)
        if wanted.get("resourceVersion") and wanted["resourceVersion"] != version:
            why = (
                f"the ResourceVersion in the precondition ({wanted['resourceVersion']}) does not match the "
                f"ResourceVersion in record ({version}). The object might have been modified"
            )
            raise status.conflict(kind.plural, kind.group, key[1], why)

    def returns_object(self, kind: Kind) -> bool:
        """Whether a DELETE that removed the object answers with it, rather than with a Status."""
        return kind.plural in _RETURNS_OBJECT and not kind.custom

    def change(self, kind: Kind, key: Key, edit: Callable[[Json], None], *, manager: str) -> Stored | None:
        """A controller's own write: edit a copy in place; None if the object has gone."""
        old = self.store.get(kind.table, key)
        if old is None:
            return None
        new = copy(old.object)
        edit(new)
        if new == old.object:
            return old
        if new["metadata"].get("deletionTimestamp") and not self._held(kind, new):
            return self._remove(kind, key, Write(manager=manager), last=new)
        return self._write(kind, key, new, Write(manager=manager))


def _finalizers(present: list[str], options: Json) -> list[str]:
    policy = options.get("propagationPolicy")
    if options.get("orphanDependents"):
        policy = "Orphan"
    if policy not in (None, "", "Background", "Foreground", "Orphan"):
        raise status.bad_request(f"propagationPolicy {policy!r} is not Background, Foreground or Orphan")
    kept = [each for each in present if each not in ("orphan", "foregroundDeletion")] if policy else list(present)
    return kept + {"Orphan": ["orphan"], "Foreground": ["foregroundDeletion"]}.get(policy or "", [])
