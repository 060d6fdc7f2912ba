"""CSI Node: each RPC checks its words, then hands one piece of work to its room."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from csi.calls import Context
from csi.errors import InvalidArgument
from csi.node_host import expand, health, publish, stage
from csi.node_host.host import Host, check_path
from dpu_offload_stubs.csi import csi_pb2, csi_pb2_grpc

_Rpc = csi_pb2.NodeServiceCapability.RPC

CAPABILITIES: Final = (
    _Rpc.STAGE_UNSTAGE_VOLUME,
    _Rpc.GET_VOLUME_STATS,
    _Rpc.EXPAND_VOLUME,
    _Rpc.VOLUME_CONDITION,
    _Rpc.SINGLE_NODE_MULTI_WRITER,
)
# A node must show some segment, since the driver declares topology; this one every node of it shares.
DRIVER_SEGMENT: Final = {"topology.csi.dpu-offload.io/fabric": "default"}


class NodeService(csi_pb2_grpc.NodeServicer):
    """`max_volumes` tells how many disks this host's DPUs can show, 0 for not known."""

    def __init__(self, host: Host, *, max_volumes: Callable[[], Awaitable[int]], topology: Mapping[str, str]) -> None:
        self._host = host
        self._max_volumes = max_volumes
        self._topology = {**DRIVER_SEGMENT, **topology}

    async def NodeStageVolume(
        self, request: csi_pb2.NodeStageVolumeRequest, context: Context
    ) -> csi_pb2.NodeStageVolumeResponse:
        stage.check(request)
        await self._host.calls.joined(
            context, request, request.volume_id, lambda: stage.stage(self._host, request), volume=request.volume_id
        )
        return csi_pb2.NodeStageVolumeResponse()

    async def NodeUnstageVolume(
        self, request: csi_pb2.NodeUnstageVolumeRequest, context: Context
    ) -> csi_pb2.NodeUnstageVolumeResponse:
        if not request.volume_id:
            raise InvalidArgument("volume_id is missing")
        check_path(request.staging_target_path, "staging_target_path")
        await self._host.calls.joined(
            context, request, request.volume_id, lambda: stage.unstage(self._host, request), volume=request.volume_id
        )
        return csi_pb2.NodeUnstageVolumeResponse()

    async def NodePublishVolume(
        self, request: csi_pb2.NodePublishVolumeRequest, context: Context
    ) -> csi_pb2.NodePublishVolumeResponse:
        publish.check(request)
        await self._host.calls.joined(
            context, request, request.volume_id, lambda: publish.publish(self._host, request), volume=request.volume_id
        )
        return csi_pb2.NodePublishVolumeResponse()

    async def NodeUnpublishVolume(
        self, request: csi_pb2.NodeUnpublishVolumeRequest, context: Context
    ) -> csi_pb2.NodeUnpublishVolumeResponse:
        if not request.volume_id:
            raise InvalidArgument("volume_id is missing")
        check_path(request.target_path, "target_path")
        await self._host.calls.joined(
            context,
            request,
            request.volume_id,
            lambda: publish.unpublish(self._host, request),
            volume=request.volume_id,
        )
        return csi_pb2.NodeUnpublishVolumeResponse()

    async def NodeGetVolumeStats(
        self, request: csi_pb2.NodeGetVolumeStatsRequest, context: Context
    ) -> csi_pb2.NodeGetVolumeStatsResponse:
        return await health.stats(self._host, request)

    async def NodeExpandVolume(
        self, request: csi_pb2.NodeExpandVolumeRequest, context: Context
    ) -> csi_pb2.NodeExpandVolumeResponse:
        expand.check(request)
        size = await self._host.calls.joined(
            context, request, request.volume_id, lambda: expand.expand(self._host, request), volume=request.volume_id
        )
        return csi_pb2.NodeExpandVolumeResponse(capacity_bytes=size)

    async def NodeGetCapabilities(
        self, request: csi_pb2.NodeGetCapabilitiesRequest, context: Context
    ) -> csi_pb2.NodeGetCapabilitiesResponse:
        answer = csi_pb2.NodeGetCapabilitiesResponse()
        for capability in CAPABILITIES:
            answer.capabilities.add(rpc=_Rpc(type=capability))
        return answer

    async def NodeGetInfo(self, request: csi_pb2.NodeGetInfoRequest, context: Context) -> csi_pb2.NodeGetInfoResponse:
        return csi_pb2.NodeGetInfoResponse(
            node_id=self._host.config.node_name,
            max_volumes_per_node=await self._max_volumes(),
            accessible_topology=csi_pb2.Topology(segments=self._topology),
        )
