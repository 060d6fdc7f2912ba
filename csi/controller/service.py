"""CSI Controller and GroupController: each RPC checks its words, then hands one piece of work to its room."""

import functools
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import msgspec

from csi import identity
from csi.calls import Context, lock_of
from csi.controller import create_volume, inquiries, listing, publish, snapshots
from csi.controller.parts import Parts
from csi.errors import InvalidArgument, NotFound
from csi.framework import parameters
from dpu_offload_stubs.csi import csi_pb2, csi_pb2_grpc

R = TypeVar("R")
_Rpc = csi_pb2.ControllerServiceCapability.RPC
_GroupRpc = csi_pb2.GroupControllerServiceCapability.RPC

# What needs a backend that can do it too (its capability by name), and what every backend gives.
_OF_SOME_BACKEND: Final = {
    _Rpc.GET_CAPACITY: "capacity",
    _Rpc.CREATE_DELETE_SNAPSHOT: "snapshots",
    _Rpc.LIST_SNAPSHOTS: "snapshots",
    _Rpc.GET_SNAPSHOT: "snapshots",
    _Rpc.CLONE_VOLUME: "clones",
    _Rpc.EXPAND_VOLUME: "expand",
    _Rpc.MODIFY_VOLUME: "qos",
}
_OF_EVERY_BACKEND: Final = (
    _Rpc.CREATE_DELETE_VOLUME,
    _Rpc.PUBLISH_UNPUBLISH_VOLUME,
    _Rpc.LIST_VOLUMES,
    _Rpc.LIST_VOLUMES_PUBLISHED_NODES,
    _Rpc.GET_VOLUME,
    _Rpc.VOLUME_CONDITION,
    _Rpc.PUBLISH_READONLY,
    _Rpc.SINGLE_NODE_MULTI_WRITER,
)


class ControllerService(csi_pb2_grpc.ControllerServicer):
    """Every RPC of CSI 1.12."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def _on_volume(self, context: Context, request: Any, work: Callable[[], Awaitable[R]], **log: str) -> R:
        """Work of which a volume has one piece at a time, whichever RPC it came by."""
        volume_id: str = request.volume_id
        return await self._parts.calls.joined(context, request, lock_of(volume_id), work, volume=volume_id, **log)

    async def CreateVolume(
        self, request: csi_pb2.CreateVolumeRequest, context: Context
    ) -> csi_pb2.CreateVolumeResponse:
        create_volume.check(self._parts, request)
        return await self._parts.calls.joined(
            context,
            request,
            create_volume.lock_of_name(request.name),
            lambda: create_volume.create(self._parts, request),
            name=request.name[:256],
        )

    async def DeleteVolume(
        self, request: csi_pb2.DeleteVolumeRequest, context: Context
    ) -> csi_pb2.DeleteVolumeResponse:
        try:
            backend, volume_id = self._parts.volume(request.volume_id)
        except NotFound:
            return csi_pb2.DeleteVolumeResponse()
        await self._on_volume(context, request, lambda: backend.delete(volume_id.key))
        self._parts.fences.forget(volume_id)
        self._parts.classes.forget(lock_of(request.volume_id))
        return csi_pb2.DeleteVolumeResponse()

    async def ControllerPublishVolume(
        self, request: csi_pb2.ControllerPublishVolumeRequest, context: Context
    ) -> csi_pb2.ControllerPublishVolumeResponse:
        work = functools.partial(publish.publish, self._parts, request)
        return await self._on_volume(context, request, work, node=request.node_id)

    async def ControllerUnpublishVolume(
        self, request: csi_pb2.ControllerUnpublishVolumeRequest, context: Context
    ) -> csi_pb2.ControllerUnpublishVolumeResponse:
        work = functools.partial(publish.unpublish, self._parts, request)
        return await self._on_volume(context, request, work, node=request.node_id)

    async def ValidateVolumeCapabilities(
        self, request: csi_pb2.ValidateVolumeCapabilitiesRequest, context: Context
    ) -> csi_pb2.ValidateVolumeCapabilitiesResponse:
        return await inquiries.validate(self._parts, request)

    async def ListVolumes(self, request: csi_pb2.ListVolumesRequest, context: Context) -> csi_pb2.ListVolumesResponse:
        return await listing.list_volumes(self._parts, request)

    async def ControllerGetVolume(
        self, request: csi_pb2.ControllerGetVolumeRequest, context: Context
    ) -> csi_pb2.ControllerGetVolumeResponse:
        return await listing.get_volume(self._parts, request)

    async def GetCapacity(self, request: csi_pb2.GetCapacityRequest, context: Context) -> csi_pb2.GetCapacityResponse:
        return await inquiries.capacity(self._parts, request)

    async def ControllerGetCapabilities(
        self, request: csi_pb2.ControllerGetCapabilitiesRequest, context: Context
    ) -> csi_pb2.ControllerGetCapabilitiesResponse:
        answer = csi_pb2.ControllerGetCapabilitiesResponse()
        served = [rpc for rpc, needed in _OF_SOME_BACKEND.items() if self._parts.registry.can(needed)]
        for rpc in (*_OF_EVERY_BACKEND, *served):
            answer.capabilities.add(rpc=_Rpc(type=rpc))
        return answer

    async def CreateSnapshot(
        self, request: csi_pb2.CreateSnapshotRequest, context: Context
    ) -> csi_pb2.CreateSnapshotResponse:
        snapshots.check_name(request.name)
        self._parts.volume(request.source_volume_id, field="source_volume_id")
        return await self._parts.calls.joined(
            context,
            request,
            f"s{identity.hashed(request.name)}",
            lambda: snapshots.create(self._parts, request),
            name=request.name[:256],
            volume=request.source_volume_id,
        )

    async def DeleteSnapshot(
        self, request: csi_pb2.DeleteSnapshotRequest, context: Context
    ) -> csi_pb2.DeleteSnapshotResponse:
        return await self._parts.calls.joined(
            context,
            request,
            f"snapshot {request.snapshot_id}",
            lambda: snapshots.delete(self._parts, request),
            snapshot=request.snapshot_id,
        )

    async def ListSnapshots(
        self, request: csi_pb2.ListSnapshotsRequest, context: Context
    ) -> csi_pb2.ListSnapshotsResponse:
        return await snapshots.list_snapshots(self._parts, request)

    async def GetSnapshot(self, request: csi_pb2.GetSnapshotRequest, context: Context) -> csi_pb2.GetSnapshotResponse:
        return await snapshots.get(self._parts, request)

    async def ControllerExpandVolume(
        self, request: csi_pb2.ControllerExpandVolumeRequest, context: Context
    ) -> csi_pb2.ControllerExpandVolumeResponse:
        backend, volume_id = self._parts.volume(request.volume_id)
        if not request.HasField("capacity_range"):
            raise InvalidArgument("capacity_range is missing: say how large the volume shall be")
        size = create_volume.size_range(request.capacity_range)
        if not size.required and not size.limit:
            raise InvalidArgument("capacity_range is empty: say how large the volume shall be")
        if not backend.capabilities.expand:
            raise InvalidArgument(f"backend {backend.name} cannot make volumes larger")
        volume = await self._on_volume(context, request, lambda: backend.expand(volume_id.key, size))
        # The node always looks: a disk that grew needs its file system grown, a raw one only to be seen.
        return csi_pb2.ControllerExpandVolumeResponse(capacity_bytes=volume.size, node_expansion_required=True)

    async def ControllerModifyVolume(
        self, request: csi_pb2.ControllerModifyVolumeRequest, context: Context
    ) -> csi_pb2.ControllerModifyVolumeResponse:
        backend, volume_id = self._parts.volume(request.volume_id)
        qos = parameters.parse_qos(request.mutable_parameters)
        if not backend.capabilities.qos:
            raise InvalidArgument(f"backend {backend.name} has no quality of service")
        limits = msgspec.json.encode(qos).decode()
        await self._on_volume(context, request, lambda: backend.set_qos(volume_id.key, qos), limits=limits)
        return csi_pb2.ControllerModifyVolumeResponse()


class GroupControllerService(csi_pb2_grpc.GroupControllerServicer):
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def GroupControllerGetCapabilities(
        self, request: csi_pb2.GroupControllerGetCapabilitiesRequest, context: Context
    ) -> csi_pb2.GroupControllerGetCapabilitiesResponse:
        answer = csi_pb2.GroupControllerGetCapabilitiesResponse()
        if self._parts.registry.can("group_snapshots"):
            answer.capabilities.add(rpc=_GroupRpc(type=_GroupRpc.CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT))
        return answer

    async def CreateVolumeGroupSnapshot(
        self, request: csi_pb2.CreateVolumeGroupSnapshotRequest, context: Context
    ) -> csi_pb2.CreateVolumeGroupSnapshotResponse:
        snapshots.check_name(request.name)
        return await self._parts.calls.joined(
            context,
            request,
            f"g{identity.hashed(request.name)}",
            lambda: snapshots.create_group(self._parts, request),
            name=request.name[:256],
        )

    async def DeleteVolumeGroupSnapshot(
        self, request: csi_pb2.DeleteVolumeGroupSnapshotRequest, context: Context
    ) -> csi_pb2.DeleteVolumeGroupSnapshotResponse:
        return await self._parts.calls.joined(
            context,
            request,
            f"group {request.group_snapshot_id}",
            lambda: snapshots.delete_group(self._parts, request),
            group=request.group_snapshot_id,
        )

    async def GetVolumeGroupSnapshot(
        self, request: csi_pb2.GetVolumeGroupSnapshotRequest, context: Context
    ) -> csi_pb2.GetVolumeGroupSnapshotResponse:
        return await snapshots.get_group(self._parts, request)
