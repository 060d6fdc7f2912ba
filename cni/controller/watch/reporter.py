"""Tells authors what is wrong with their objects, by Events."""

from __future__ import annotations

import logging

from cni.controller.errors import Refused
from cni.controller.rows import Owner
from foundation.kube.events import EventRecorder
from foundation.kube.models.meta import KubernetesObject
from foundation.kube.reflector import Reflector

_log = logging.getLogger(__name__)


class Reporter:
    """Finds the object behind an owner in the reflectors' stores and records a Warning about it."""

    def __init__(self, recorder: EventRecorder, stores: dict[str, Reflector[KubernetesObject]]) -> None:
        self._recorder = recorder
        self._stores = stores

    def problem(self, owner: Owner, refused: Refused | None) -> None:
        """An object's problem has come or changed (or gone: None)."""
        if refused is None:
            _log.info("%s %s is served now", owner.kind, owner.key)
            return
        _log.warning("%s %s: %s: %s", owner.kind, owner.key, refused.reason, refused)
        self.warn(owner, refused.reason, str(refused))

    def warn(self, owner: Owner, reason: str, message: str) -> None:
        """A Warning about the object of `owner`, if it is still there."""
        # An instance stands for a machine that has no VirtualMachine.
        kinds = ("vm", "vmi") if owner.kind == "vm" else (owner.kind,)
        stores = (self._stores[kind].store for kind in kinds if kind in self._stores)
        obj = next((found for store in stores if (found := store.get(owner.key)) is not None), None)
        if obj is not None:
            self._recorder.event(obj, "Warning", reason, message)
