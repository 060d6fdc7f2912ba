"""CSI Controller and GroupController: each RPC checks its words, then hands one piece of work to its room."""

from typing import Final

import msgspec
from google.protobuf.wrappers_pb2 import Int64Value

from csi import capabilities, identity
from csi.calls import Context, lock_of
from csi.controller import create_volume, listing, publish, snapshots
from csi.controller.parts import Parts
from csi.errors import InvalidArgument, NotFound
from csi.framework import parameters
from csi.framework.backend import SizeRange
from dpu_offload_stubs.csi import csi_pb2, csi_pb2_grpc

_Rpc = csi_pb2.ControllerServiceCapability.RPC
_GroupRpc = csi_pb2.GroupControllerServiceCapability.RPC

CAPABILITIES: Final = (
    _Rpc.CREATE_DELETE_VOLUME,
    _Rpc.PUBLISH_UNPUBLISH_VOLUME,
    _Rpc.LIST_VOLUMES,
    _Rpc.LIST_VOLUMES_PUBLISHED_NODES,
    _Rpc.GET_CAPACITY,
    _Rpc.CREATE_DELETE_SNAPSHOT,
    _Rpc.LIST_SNAPSHOTS,
    _Rpc.GET_SNAPSHOT,
    _Rpc.CLONE_VOLUME,
    _Rpc.EXPAND_VOLUME,
    _Rpc.GET_VOLUME,
    _Rpc.VOLUME_CONDITION,
    _Rpc.MODIFY_VOLUME,
    _Rpc.PUBLISH_READONLY,
    _Rpc.SINGLE_NODE_MULTI_WRITER,
)


class ControllerService(csi_pb2_grpc.ControllerServicer):
    """Every RPC of CSI 1.12."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def CreateVolume(
        self, request: csi_pb2.CreateVolumeRequest, context: Context
    ) -> csi_pb2.CreateVolumeResponse:
        create_volume.check(self._parts, request)
        return await self._parts.calls.joined(
            context,
            request,
            f"v{identity.hashed(request.name)}",
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
        await self._parts.calls.joined(
            context,
            request,
            lock_of(request.volume_id),
            lambda: backend.delete(volume_id.key),
            volume=request.volume_id,
        )
        return csi_pb2.DeleteVolumeResponse()

    async def ControllerPublishVolume(
        self, request: csi_pb2.ControllerPublishVolumeRequest, context: Context
    ) -> csi_pb2.ControllerPublishVolumeResponse:
        return await self._parts.calls.joined(
            context,
            request,
            lock_of(request.volume_id),
            lambda: publish.publish(self._parts, request),
            volume=request.volume_id,
            node=request.node_id,
        )

    async def ControllerUnpublishVolume(
        self, request: csi_pb2.ControllerUnpublishVolumeRequest, context: Context
    ) -> csi_pb2.ControllerUnpublishVolumeResponse:
        return await self._parts.calls.joined(
            context,
            request,
            lock_of(request.volume_id),
            lambda: publish.unpublish(self._parts, request),
            volume=request.volume_id,
            node=request.node_id,
        )

    async def ValidateVolumeCapabilities(
        self, request: csi_pb2.ValidateVolumeCapabilitiesRequest, context: Context
    ) -> csi_pb2.ValidateVolumeCapabilitiesResponse:
        backend, volume_id = self._parts.volume(request.volume_id)
        if not request.volume_capabilities:
            raise InvalidArgument("volume_capabilities is missing: say how the volume shall be used")
        await backend.get(volume_id.key)
        for capability in request.volume_capabilities:
            if reason := capabilities.refusal(capability):
                return csi_pb2.ValidateVolumeCapabilitiesResponse(message=reason)
        try:
            parameters.parse(request.parameters, self._parts.registry.kinds[backend.name].parameters)
            parameters.parse_qos(request.mutable_parameters)
        except InvalidArgument as error:
            return csi_pb2.ValidateVolumeCapabilitiesResponse(message=str(error))
        return csi_pb2.ValidateVolumeCapabilitiesResponse(
            confirmed=csi_pb2.ValidateVolumeCapabilitiesResponse.Confirmed(
                volume_context=request.volume_context,
                volume_capabilities=request.volume_capabilities,
                parameters=request.parameters,
                mutable_parameters=request.mutable_parameters,
            )
        )

    async def ListVolumes(self, request: csi_pb2.ListVolumesRequest, context: Context) -> csi_pb2.ListVolumesResponse:
        return await listing.list_volumes(self._parts, request)

    async def ControllerGetVolume(
        self, request: csi_pb2.ControllerGetVolumeRequest, context: Context
    ) -> csi_pb2.ControllerGetVolumeResponse:
        return await listing.get_volume(self._parts, request)

    async def GetCapacity(self, request: csi_pb2.GetCapacityRequest, context: Context) -> csi_pb2.GetCapacityResponse:
        registry = self._parts.registry
        if any(capabilities.refusal(capability) for capability in request.volume_capabilities):
            return csi_pb2.GetCapacityResponse(available_capacity=0)
        name = parameters.backend_name(request.parameters) or registry.default
        if name not in registry.backends:
            raise InvalidArgument(f"StorageClass parameter backend={name!r} is not configured")
        _, special = parameters.parse(request.parameters, registry.kinds[name].parameters)
        topology = dict(request.accessible_topology.segments) if request.HasField("accessible_topology") else None
        room = await registry.backends[name].capacity(special, topology)
        return csi_pb2.GetCapacityResponse(
            available_capacity=room.available,
            maximum_volume_size=Int64Value(value=room.largest),
            minimum_volume_size=Int64Value(value=room.smallest),
        )

    async def ControllerGetCapabilities(
        self, request: csi_pb2.ControllerGetCapabilitiesRequest, context: Context
    ) -> csi_pb2.ControllerGetCapabilitiesResponse:
        answer = csi_pb2.ControllerGetCapabilitiesResponse()
        for capability in CAPABILITIES:
            answer.capabilities.add(rpc=_Rpc(type=capability))
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
        if not backend.capabilities.expand:
            raise InvalidArgument(f"backend {backend.name} cannot make volumes larger")
        volume = await self._parts.calls.joined(
            context,
            request,
            lock_of(request.volume_id),
            lambda: backend.expand(volume_id.key, SizeRange(size.required, size.limit)),
            volume=request.volume_id,
        )
        # The node always looks: a disk that grew needs its file system grown, a raw one only to be seen.
        return csi_pb2.ControllerExpandVolumeResponse(capacity_bytes=volume.size, node_expansion_required=True)

    async def ControllerModifyVolume(
        self, request: csi_pb2.ControllerModifyVolumeRequest, context: Context
    ) -> csi_pb2.ControllerModifyVolumeResponse:
        backend, volume_id = self._parts.volume(request.volume_id)
        qos = parameters.parse_qos(request.mutable_parameters)
        if not backend.capabilities.qos:
            raise InvalidArgument(f"backend {backend.name} has no quality of service")
        await self._parts.calls.joined(
            context,
            request,
            lock_of(request.volume_id),
            lambda: backend.set_qos(volume_id.key, qos),
            volume=request.volume_id,
            limits=msgspec.json.encode(qos).decode(),
        )
        return csi_pb2.ControllerModifyVolumeResponse()


class GroupControllerService(csi_pb2_grpc.GroupControllerServicer):
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def GroupControllerGetCapabilities(
        self, request: csi_pb2.GroupControllerGetCapabilitiesRequest, context: Context
    ) -> csi_pb2.GroupControllerGetCapabilitiesResponse:
        answer = csi_pb2.GroupControllerGetCapabilitiesResponse()
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
