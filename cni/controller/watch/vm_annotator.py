"""Writes what a virtual machine keeps onto its VirtualMachine, or onto an instance that has none."""

from __future__ import annotations

import logging
from typing import Any

from cni.controller.machines import Machines
from cni.controller.model.annotations import VM_NETWORKS
from foundation.daemon.work import Backoff, KeyedQueue
from foundation.kube.client import KubeClient
from foundation.kube.errors import Conflict, NotFound, Unprocessable
from foundation.kube.resources import VIRTUAL_MACHINE_INSTANCES, VIRTUAL_MACHINES, Resource

_log = logging.getLogger(__name__)


class VmAnnotator:
    """`want(key, text)` as often as one likes; only a text that differs from the object's annotation is sent."""

    def __init__(self, client: KubeClient, machines: Machines) -> None:
        self._client = client
        self._machines = machines
        self._wanted: dict[str, tuple[str, str]] = {}
        self.queue = KeyedQueue(
            self._write, workers=16, backoff=Backoff(0.05, 5.0), deadline=30.0, name="machine annotations"
        )

    @property
    def waiting(self) -> int:
        """Texts that are not written yet."""
        return len(self._wanted)

    def want(self, key: str, text: str) -> None:
        """The annotation that machine `key`, as it is known now, shall have."""
        durable = self._machines.durable(key)
        if durable is None or durable.annotations.get(VM_NETWORKS) == text:
            self._wanted.pop(key, None)
        elif self._wanted.get(key) != (durable.uid, text):
            self._wanted[key] = durable.uid, text
            self.queue.add(key)

    async def _write(self, key: str) -> None:
        wanted, durable = self._wanted.get(key), self._machines.durable(key)
        if wanted is not None and durable is not None and durable.uid == wanted[0]:
            uid, text = wanted
            if durable.annotations.get(VM_NETWORKS) != text:
                await self._patch(key, uid, text)
        if self._wanted.get(key) == wanted:
            self._wanted.pop(key, None)

    async def _patch(self, key: str, uid: str, text: str) -> None:
        namespace, _, name = key.partition("/")
        resource: Resource[Any] = VIRTUAL_MACHINES if self._machines.is_vm(key) else VIRTUAL_MACHINE_INSTANCES
        # The uid makes the server refuse when another machine has taken the name meanwhile.
        body = {"metadata": {"uid": uid, "annotations": {VM_NETWORKS: text}}}
        try:
            await self._client.merge_patch(resource, name, namespace, body)
        except (NotFound, Conflict, Unprocessable):
            now = self._machines.durable(key)
            if now is not None and now.uid == uid:
                raise  # it may be going, as the watch will tell; or a proxy before the API server said this
            _log.debug("machine %s went before its annotation was written", key)
