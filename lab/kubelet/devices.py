"""Kubelet's device manager, as far as one device a pod goes: registration, ListAndWatch, Allocate.

The plugin directory and its socket ``kubelet.sock`` are as in the device plugin API v1beta1: a plugin registers over
it with the name of its own socket in the same directory.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from dpu_offload_stubs.kubelet.deviceplugin.v1beta1 import api_pb2, api_pb2_grpc

log = logging.getLogger(__name__)

API_VERSION = "v1beta1"
ALLOCATE_SECONDS = 10.0


class NoDevice(RuntimeError):
    """No healthy device of the resource is free."""


class DeviceManager(api_pb2_grpc.RegistrationServicer):
    """Devices by resource, healthy ones only, and which pod holds which."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._healthy: dict[str, set[str]] = {}
        self._held: dict[str, tuple[str, str]] = {}  # device -> (resource, pod uid)
        self._plugins: dict[str, str] = {}
        self._streams: dict[str, asyncio.Task[None]] = {}
        self._server = grpc.aio.server()
        self.changed = asyncio.Event()

    async def start(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        socket = self._directory / "kubelet.sock"
        socket.unlink(missing_ok=True)
        api_pb2_grpc.add_RegistrationServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix:{socket}")
        await self._server.start()

    async def stop(self) -> None:
        for stream in self._streams.values():
            stream.cancel()
        await asyncio.gather(*self._streams.values(), return_exceptions=True)
        await self._server.stop(grace=0)

    async def Register(
        self, request: api_pb2.RegisterRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> api_pb2.Empty:
        if request.version != API_VERSION:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"requested API version {request.version!r} is not supported by kubelet; supported: {API_VERSION}",
            )
        resource = request.resource_name
        self._plugins[resource] = request.endpoint
        earlier = self._streams.pop(resource, None)
        if earlier is not None:
            earlier.cancel()
        self._streams[resource] = asyncio.create_task(self._watch(resource, request.endpoint), name=resource)
        return api_pb2.Empty()

    def capacity(self) -> dict[str, int]:
        """Healthy devices by resource, as kubelet writes them into the node's status."""
        return {resource: len(devices) for resource, devices in self._healthy.items()}

    async def allocate(self, resource: str, pod_uid: str) -> str:
        """Give the pod one device. The same pod gets the same one again.

        Raises NoDevice, or grpc.aio.AioRpcError from the plugin.
        """
        for device, (held_resource, holder) in self._held.items():
            if holder == pod_uid and held_resource == resource:
                return device
        free = sorted(self._healthy.get(resource, set()) - self._held.keys())
        if not free:
            raise NoDevice(f"no healthy {resource} is free on this node")
        async with grpc.aio.insecure_channel(self._target(self._plugins[resource])) as channel:
            plugin = api_pb2_grpc.DevicePluginStub(channel)
            options = await plugin.GetDevicePluginOptions(api_pb2.Empty(), timeout=ALLOCATE_SECONDS)
            device = free[0]
            if options.get_preferred_allocation_available:
                preferred = await plugin.GetPreferredAllocation(
                    api_pb2.PreferredAllocationRequest(
                        container_requests=[
                            api_pb2.ContainerPreferredAllocationRequest(available_deviceIDs=free, allocation_size=1)
                        ]
                    ),
                    timeout=ALLOCATE_SECONDS,
                )
                device = preferred.container_responses[0].deviceIDs[0]
            self._held[device] = (resource, pod_uid)
            try:
                request = api_pb2.AllocateRequest(
                    container_requests=[api_pb2.ContainerAllocateRequest(devices_ids=[device])]
                )
                await plugin.Allocate(request, timeout=ALLOCATE_SECONDS)
                if options.pre_start_required:
                    await plugin.PreStartContainer(
                        api_pb2.PreStartContainerRequest(devices_ids=[device]), timeout=ALLOCATE_SECONDS
                    )
            except BaseException:
                del self._held[device]
                raise
        return device

    def hold(self, resource: str, device: str, pod_uid: str) -> None:
        """What kubelet reads from its checkpoint after a restart."""
        self._held[device] = (resource, pod_uid)

    def release(self, pod_uid: str) -> None:
        self._held = {device: held for device, held in self._held.items() if held[1] != pod_uid}

    async def _watch(self, resource: str, endpoint: str) -> None:
        try:
            async with grpc.aio.insecure_channel(self._target(endpoint)) as channel:
                async for answer in api_pb2_grpc.DevicePluginStub(channel).ListAndWatch(api_pb2.Empty()):
                    self._healthy[resource] = {device.ID for device in answer.devices if device.health == "Healthy"}
                    self.changed.set()
        except grpc.aio.AioRpcError as error:
            log.warning("device plugin of %s ended: %s", resource, error.details())
        finally:
            self._healthy[resource] = set()
            self.changed.set()

    def _target(self, endpoint: str) -> str:
        return f"unix:{self._directory / endpoint}"
