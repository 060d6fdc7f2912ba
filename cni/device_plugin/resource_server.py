"""Kubelet's device plugin service for one resource."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc.aio

from cni.device_plugin.allocation import Allocator
from cni.device_plugin.candidates import Device
from cni.device_plugin.config import Pool
from cni.device_plugin.errors import BadRequest
from cni.device_plugin.preference import Place, prefer
from dpu_offload_stubs.kubelet.deviceplugin.v1beta1 import api_pb2, api_pb2_grpc

log = logging.getLogger(__name__)

HEALTHY, UNHEALTHY = "Healthy", "Unhealthy"

Context = grpc.aio.ServicerContext[Any, Any]


class ResourceServer(api_pb2_grpc.DevicePluginServicer):
    """Serves the devices that `update` last gave it, to any number of streams.

    `on_streams` is called whenever a stream has opened or ended.
    """

    def __init__(self, resource: str, pool: Pool, allocator: Allocator, *, on_streams: Callable[[], None]) -> None:
        self.resource = resource
        self.pool = pool
        self._allocator = allocator
        self._on_streams = on_streams
        self._devices: dict[str, Device] = {}
        self._answer = api_pb2.ListAndWatchResponse()
        self._closed = False
        self._streams: set[asyncio.Event] = set()

    @property
    def streams(self) -> int:
        """How many callers watch the list; kubelet is one of them while it is well."""
        return len(self._streams)

    def options(self) -> api_pb2.DevicePluginOptions:
        return api_pb2.DevicePluginOptions(
            pre_start_required=self.pool.use == "vfio", get_preferred_allocation_available=True
        )

    def update(self, devices: Sequence[Device]) -> None:
        """The resource's devices as they are now; streams hear of it when it differs from before."""
        self._devices = {device.id: device for device in devices}
        answer = api_pb2.ListAndWatchResponse(devices=[self._advertised(device) for device in devices])
        if answer != self._answer:
            self._answer = answer
            self._wake()

    def close(self) -> None:
        """Take all devices back and end the streams: kubelet must not admit pods that nobody would serve."""
        self._closed = True
        self._answer = api_pb2.ListAndWatchResponse()
        self._wake()

    # The names below are the contract's.

    async def GetDevicePluginOptions(self, request: api_pb2.Empty, context: Context) -> api_pb2.DevicePluginOptions:
        return self.options()

    async def ListAndWatch(
        self, request: api_pb2.Empty, context: Context
    ) -> AsyncIterator[api_pb2.ListAndWatchResponse]:
        changed = asyncio.Event()
        self._streams.add(changed)
        self._on_streams()
        try:
            sent: api_pb2.ListAndWatchResponse | None = None
            while True:
                changed.clear()
                # Several changes while a slow reader takes one are one change.
                if sent is not self._answer:
                    sent = self._answer
                    yield sent
                elif self._closed:
                    return
                else:
                    await changed.wait()
        finally:
            self._streams.discard(changed)
            self._on_streams()

    async def GetPreferredAllocation(
        self, request: api_pb2.PreferredAllocationRequest, context: Context
    ) -> api_pb2.PreferredAllocationResponse:
        places = {device.id: _place(device) for device in self._devices.values() if device.healthy}
        answer = api_pb2.PreferredAllocationResponse()
        given: set[str] = set()
        for container in request.container_requests:
            chosen = prefer(
                set(container.available_deviceIDs) - given,
                container.must_include_deviceIDs,
                container.allocation_size,
                places=places,
                packing=self.pool.packing,
            )
            given.update(chosen)
            answer.container_responses.add(deviceIDs=chosen)
        return answer

    async def Allocate(self, request: api_pb2.AllocateRequest, context: Context) -> api_pb2.AllocateResponse:
        devices = dict(self._devices)
        answer = api_pb2.AllocateResponse()
        together = [device for container in request.container_requests for device in container.devices_ids]
        if len(set(together)) != len(together):
            raise BadRequest(f"{self.resource}: a device is asked for more than once, in {together}")
        for container in request.container_requests:
            wanted = list(container.devices_ids)
            if self.pool.cdi:
                allocated = await asyncio.to_thread(self._allocator.allocate, self.resource, self.pool, devices, wanted)
            else:
                allocated = self._allocator.allocate(self.resource, self.pool, devices, wanted)
            log.info("allocated", extra={"resource": self.resource, "devices": wanted})
            answer.container_responses.append(allocated)
        return answer

    async def PreStartContainer(
        self, request: api_pb2.PreStartContainerRequest, context: Context
    ) -> api_pb2.PreStartContainerResponse:
        wanted = list(request.devices_ids)
        await asyncio.to_thread(self._allocator.reset, self.resource, self.pool, dict(self._devices), wanted)
        return api_pb2.PreStartContainerResponse()

    def _advertised(self, device: Device) -> api_pb2.Device:
        advertised = api_pb2.Device(ID=device.id, health=HEALTHY if device.healthy else UNHEALTHY)
        if self.pool.topology and device.numa_node >= 0:
            advertised.topology.nodes.add(ID=device.numa_node)
        return advertised

    def _wake(self) -> None:
        for changed in self._streams:
            changed.set()


def _place(device: Device) -> Place:
    function = device.candidate.function
    return Place(function.numa_node, function.pf or function.address, function.vf_index)
