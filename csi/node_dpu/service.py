"""The VolumeAttacher contract towards csi-controller: calls are noted, then passed on."""

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import grpc.aio

from csi.errors import CODES
from csi.node_dpu.calls import RecentCalls
from csi.node_dpu.mirror import AttacherRefusal, Mirror
from dpu_offload_stubs.attacher.v1 import attacher_pb2 as pb
from dpu_offload_stubs.attacher.v1 import attacher_pb2_grpc
from foundation.daemon import logs
from foundation.daemon.errors import Rule

Context = grpc.aio.ServicerContext[Any, Any]
ERRORS: Final[Mapping[type[BaseException], Rule]] = {**CODES, AttacherRefusal: lambda refusal: refusal.code}
# Part of the caller's time that is kept for the way back.
_MARGIN: Final = 0.1
_LONGEST: Final = 115.0


class NodeDpuService(attacher_pb2_grpc.VolumeAttacherServicer):
    def __init__(self, mirror: Mirror, calls: RecentCalls) -> None:
        self._mirror = mirror
        self._calls = calls

    async def Attach(self, request: pb.AttachRequest, context: Context) -> pb.Attachment:
        for value in _secrets(request):
            logs.secret(value)
        with logs.bound(volume=request.volume_id), self._calls.attaching(request.volume_id):
            return await self._mirror.attach(request, seconds=_remaining(context))

    async def Detach(self, request: pb.DetachRequest, context: Context) -> pb.DetachResponse:
        with logs.bound(volume=request.volume_id):
            await self._mirror.detach(request.volume_id, seconds=_remaining(context))
        self._calls.detached(request.volume_id)
        return pb.DetachResponse()

    async def Get(self, request: pb.GetRequest, context: Context) -> pb.Attachment:
        return await self._mirror.get(request, seconds=_remaining(context))

    async def List(self, request: pb.ListRequest, context: Context) -> pb.ListResponse:
        return await self._mirror.list(seconds=_remaining(context))

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.WatchEvent]:
        async for event in self._mirror.watch():
            yield event

    async def Inventory(self, request: pb.InventoryRequest, context: Context) -> pb.InventoryResponse:
        return await self._mirror.full_inventory(request, seconds=_remaining(context))


def _secrets(request: pb.AttachRequest) -> list[str]:
    values = (
        request.credentials.dhchap_key,
        request.credentials.dhchap_ctrlr_key,
        request.credentials.tls_psk,
        request.encryption.key,
        request.encryption.tweak_key,
    )
    return [value for value in values if value]


def _remaining(context: Context) -> float:
    remaining = context.time_remaining()
    return _LONGEST if remaining is None else max(0.05, min(remaining - _MARGIN, _LONGEST))
