"""Writes what a virtual machine keeps onto its VirtualMachine, or onto an instance that has none."""

from __future__ import annotations

import logging
from typing import Any

from cni.controller.machines import Machines
from cni.controller.model.annotations import VM_NETWORKS
from foundation.daemon.work import Backoff, KeyedQueue
from foundation.kube.client import KubeClient
from foundation.kube.errors import NotFound
from foundation.kube.resources import VIRTUAL_MACHINE_INSTANCES, VIRTUAL_MACHINES, Resource

_log = logging.getLogger(__name__)


class VmAnnotator:
    """`want(key, text)` as often as one likes; only a text that differs from the object's annotation is sent."""

    def __init__(self, client: KubeClient, machines: Machines) -> None:
        self._client = client
        self._machines = machines
        self._wanted: dict[str, str] = {}
        self.queue = KeyedQueue(
            self._write, workers=16, backoff=Backoff(0.05, 5.0), deadline=30.0, name="machine annotations"
        )

    def want(self, key: str, text: str) -> None:
        """The annotation that machine `key` shall have."""
        durable = self._machines.durable(key)
        if durable is None or durable.annotations.get(VM_NETWORKS) == text:
            self._wanted.pop(key, None)
        elif self._wanted.get(key) != text:
            self._wanted[key] = text
            self.queue.add(key)

    async def _write(self, key: str) -> None:
        text, durable = self._wanted.get(key), self._machines.durable(key)
        if text is not None and durable is not None and durable.annotations.get(VM_NETWORKS) != text:
            namespace, _, name = key.partition("/")
            resource: Resource[Any] = VIRTUAL_MACHINES if self._machines.is_vm(key) else VIRTUAL_MACHINE_INSTANCES
            try:
                await self._client.merge_patch(
                    resource, name, namespace, {"metadata": {"annotations": {VM_NETWORKS: text}}}
                )
            except NotFound:
                _log.debug("machine %s went before its annotation was written", key)
        if self._wanted.get(key) == text:
            self._wanted.pop(key, None)
