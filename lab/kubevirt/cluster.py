"""KubeVirt as the suite sees it: the objects it writes while a machine starts, migrates and stops, in its order.

Nothing here starts a guest; whoever drives it says when the guest goes on, and what becomes of a migration.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from foundation.kube.client import KubeClient
from foundation.kube.errors import NotFound
from foundation.kube.models.core import Pod
from foundation.kube.resources import (
    PODS,
    VIRTUAL_MACHINE_INSTANCE_MIGRATIONS,
    VIRTUAL_MACHINE_INSTANCES,
    VIRTUAL_MACHINES,
    Resource,
)
from lab.kubevirt import objects

_WHEN = "2026-11-22T03:00:00Z"
_READY = "kubevirt.io/migration-target-ready-timestamp"
_numbers = itertools.count(1)


@dataclass
class Move:
    """One live migration, from its first object to its last."""

    name: str
    uid: str
    source: Pod
    target: Pod


class Machine:
    """One machine in the cluster; `pod` has its guest."""

    def __init__(self, client: KubeClient, body: Mapping[str, Any]) -> None:
        self._client = client
        self._body = dict(body)
        self.name: str = body["metadata"]["name"]
        self.namespace: str = body["metadata"]["namespace"]
        self._vmi: dict[str, Any] = {}
        self.pod: Pod | None = None

    async def create(self) -> None:
        """The VirtualMachine, as its author applies it."""
        await self._client.create(VIRTUAL_MACHINES, self._body, self.namespace)

    async def start(self, node: str) -> Pod:
        """An instance with its launcher on `node`, as virt-controller makes them."""
        body = objects.instance(self._body)
        made = await self._client.create(VIRTUAL_MACHINE_INSTANCES, body, self.namespace)
        self._vmi = {**body, "metadata": {**body["metadata"], "uid": made.metadata.uid}}
        self.pod = await self._launch(node)
        await self._status(VIRTUAL_MACHINE_INSTANCES, self.name, {"phase": "Running", "nodeName": node})
        return self.pod

    async def stop(self) -> None:
        """The launcher ends, then the instance goes. Its sandbox must be taken down before."""
        assert self.pod is not None
        await self.end(self.pod)
        await self._client.delete(VIRTUAL_MACHINE_INSTANCES, self.name, self.namespace)
        self.pod = None

    async def edit(self, template: Mapping[str, Any]) -> None:
        """Its author has another template: what the next start takes."""
        self._body = {**self._body, "spec": {**self._body["spec"], "template": template}}
        await self._client.merge_patch(VIRTUAL_MACHINES, self.name, self.namespace, {"spec": {"template": template}})

    async def replug(self, template: Mapping[str, Any]) -> Pod:
        """Its author has other interfaces in the template: KubeVirt takes them over, down to the running pod."""
        assert self.pod is not None
        await self.edit(template)
        spec = template["spec"]
        self._vmi = {**self._vmi, "spec": spec}
        await self._client.merge_patch(VIRTUAL_MACHINE_INSTANCES, self.name, self.namespace, {"spec": spec})
        chosen = {"k8s.v1.cni.cncf.io/networks": json.dumps(objects.selection(spec))}
        self.pod = await self._client.merge_patch(
            PODS, self.pod.metadata.name, self.namespace, {"metadata": {"annotations": chosen}}
        )
        return self.pod

    async def delete(self) -> None:
        """The author deletes the machine."""
        await self._client.delete(VIRTUAL_MACHINES, self.name, self.namespace)

    async def end(self, pod: Pod) -> None:
        """A launcher that has ended, and is deleted with its pod."""
        try:
            await self._status(PODS, pod.metadata.name, {"phase": "Succeeded"})
            await self._client.delete(PODS, pod.metadata.name, self.namespace, grace_seconds=0)
        except NotFound:
            return

    async def _launch(self, node: str, job: str = "") -> Pod:
        body = objects.launcher(self._vmi, suffix=f"l{next(_numbers)}", node=node, job=job)
        return await self._client.create(PODS, body, self.namespace)

    async def _status(self, resource: Resource[Any], name: str, status: Mapping[str, Any]) -> None:
        # Instances are the one kind of KubeVirt without a status subresource.
        subresource = "" if resource is VIRTUAL_MACHINE_INSTANCES else "status"
        await self._client.merge_patch(resource, name, self.namespace, {"status": dict(status)}, subresource)

    # A migration, phase by phase

    async def begin(self, node: str) -> Move:
        """Somebody has asked for it: the migration, and the target's pod."""
        assert self.pod is not None
        name = f"{self.name}-move-{next(_numbers)}"
        body = {
            "apiVersion": objects.GROUP,
            "kind": "VirtualMachineInstanceMigration",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {"vmiName": self.name},
        }
        made = await self._client.create(VIRTUAL_MACHINE_INSTANCE_MIGRATIONS, body, self.namespace)
        target = await self._launch(node, job=made.metadata.uid)
        return Move(name, made.metadata.uid, self.pod, target)

    async def running(self, move: Move, *, mode: str = "PreCopy") -> None:
        """Memory is copied."""
        state = {
            "migrationUid": move.uid,
            "sourcePod": move.source.metadata.name,
            "sourceNode": move.source.spec.node_name,
            "targetPod": move.target.metadata.name,
            "targetNode": move.target.spec.node_name,
            "mode": mode,
            "startTimestamp": _WHEN,
            **dict.fromkeys(("completed", "failed", "endTimestamp", "targetNodeDomainReadyTimestamp")),
        }
        await self._status(VIRTUAL_MACHINE_INSTANCES, self.name, {"migrationState": state})
        await self._status(VIRTUAL_MACHINE_INSTANCE_MIGRATIONS, move.name, {"phase": "Running"})

    async def ready(self, move: Move) -> None:
        """virt-handler has seen the guest run on the target."""
        noted = {"metadata": {"annotations": {_READY: _WHEN}}}
        await self._client.merge_patch(PODS, move.target.metadata.name, self.namespace, noted)
        state = {"targetNodeDomainReadyTimestamp": _WHEN}
        await self._status(VIRTUAL_MACHINE_INSTANCES, self.name, {"migrationState": state})

    async def succeed(self, move: Move) -> None:
        """It is over, and the target has the guest. The source's pod ends by `end`."""
        state = {"completed": True, "endTimestamp": _WHEN}
        node = move.target.spec.node_name
        await self._status(VIRTUAL_MACHINE_INSTANCES, self.name, {"nodeName": node, "migrationState": state})
        await self._status(VIRTUAL_MACHINE_INSTANCE_MIGRATIONS, move.name, {"phase": "Succeeded"})
        self.pod = move.target

    async def fail(self, move: Move, *, cancelled: bool = False) -> None:
        """It is over, and the source has kept the guest. The target's pod ends by `end`."""
        state: dict[str, Any] = {"completed": True, "failed": True, "endTimestamp": _WHEN}
        if cancelled:
            state |= {"abortRequested": True, "abortStatus": "Succeeded"}
        await self._status(VIRTUAL_MACHINE_INSTANCES, self.name, {"migrationState": state})
        await self._status(VIRTUAL_MACHINE_INSTANCE_MIGRATIONS, move.name, {"phase": "Failed"})
