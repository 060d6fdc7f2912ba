"""Tells authors what is wrong with their objects, by Events."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from cni.controller.errors import Refused
from cni.controller.rows import Owner
from foundation.kube.events import EventRecorder
from foundation.kube.models.meta import KubernetesObject
from foundation.kube.reflector import Reflector

_log = logging.getLogger(__name__)


class Reporter:
    """Finds the object behind an owner in the reflectors' stores and records a Warning about it."""

    def __init__(
        self,
        recorder: EventRecorder,
        stores: dict[str, Reflector[KubernetesObject]],
        *,
        pods_of: Callable[[str], Iterable[str]],
    ) -> None:
        """`pods_of`: the keys of a machine's pods, whose events a failed ADD points to."""
        self._recorder = recorder
        self._stores = stores
        self._pods_of = pods_of

    def problem(self, owner: Owner, refused: Refused | None) -> None:
        """An object's problem has come or changed (or gone: None)."""
        if refused is None:
            _log.info("%s %s is served now", owner.kind, owner.key)
            return
        _log.warning("%s %s: %s: %s", owner.kind, owner.key, refused.reason, refused)
        self.warn(owner, refused.reason, str(refused))

    def warn(self, owner: Owner, reason: str, message: str) -> None:
        """A Warning about the object of `owner`, if it is still there."""
        for obj in self._concerned(owner):
            self._recorder.event(obj, "Warning", reason, message)

    def _concerned(self, owner: Owner) -> Iterable[KubernetesObject]:
        if owner.kind != "vm":
            return self._found(owner.kind, owner.key)
        # An instance stands for a machine that has no VirtualMachine.
        machine = self._found("vm", owner.key) or self._found("vmi", owner.key)
        return (*machine, *(pod for key in self._pods_of(owner.key) for pod in self._found("pod", key)))

    def _found(self, kind: str, key: str) -> tuple[KubernetesObject, ...]:
        reflector = self._stores.get(kind)
        obj = reflector.store.get(key) if reflector is not None else None
        return (obj,) if obj is not None else ()
