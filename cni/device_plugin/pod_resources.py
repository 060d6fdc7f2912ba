"""Which pod holds which device, as kubelet tells (pod resources API v1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import grpc.aio

from dpu_offload_stubs.kubelet.podresources.v1 import api_pb2, api_pb2_grpc
from foundation.daemon.serving import dial


@dataclass(frozen=True)
class Holder:
    """A container with one device."""

    namespace: str
    pod: str
    container: str
    resource: str
    device: str


class PodResources:
    """Kubelet's answers; every call raises grpc.aio.AioRpcError when kubelet does not answer in time."""

    def __init__(self, socket: Path) -> None:
        self._channel = dial(f"unix:{socket}", name="kubelet")
        self._kubelet = api_pb2_grpc.PodResourcesListerStub(self._channel)

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def holders(self, *, deadline: float = 5.0) -> tuple[Holder, ...]:
        """Every device of every pod on this node."""
        answer = await self._kubelet.List(api_pb2.ListPodResourcesRequest(), timeout=deadline)
        return tuple(holder for pod in answer.pod_resources for holder in _holders(pod))

    async def of_pod(self, namespace: str, name: str, *, deadline: float = 5.0) -> tuple[Holder, ...]:
        """The devices of one pod; none for a pod that kubelet does not know.

        Asks for the pod alone where kubelet can (Get, a feature gate of kubelet 1.27 to 1.33), else lists all.
        """
        request = api_pb2.GetPodResourcesRequest(pod_name=name, pod_namespace=namespace)
        try:
            answer = await self._kubelet.Get(request, timeout=deadline)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return ()
            # With the feature gate off kubelet answers UNKNOWN, before the method existed UNIMPLEMENTED.
            if error.code() not in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNKNOWN):
                raise
            everyone = await self.holders(deadline=deadline)
            return tuple(holder for holder in everyone if (holder.namespace, holder.pod) == (namespace, name))
        return tuple(_holders(answer.pod_resources))

    async def allocatable(self, *, deadline: float = 5.0) -> Mapping[str, tuple[str, ...]]:
        """Healthy devices of the node by resource, whoever holds them."""
        answer = await self._kubelet.GetAllocatableResources(api_pb2.AllocatableResourcesRequest(), timeout=deadline)
        found: dict[str, list[str]] = {}
        for devices in answer.devices:
            found.setdefault(devices.resource_name, []).extend(devices.device_ids)
        return {resource: tuple(sorted(set(ids))) for resource, ids in found.items()}


def _holders(pod: api_pb2.PodResources) -> list[Holder]:
    return [
        Holder(pod.namespace, pod.name, container.name, devices.resource_name, device)
        for container in pod.containers
        for devices in container.devices
        for device in devices.device_ids
    ]
