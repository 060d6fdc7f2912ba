"""Calls to csi-node-dpu of each DPU: one channel an endpoint, mutual TLS, gRPC refusals as this component's errors."""

import grpc
import grpc.aio

from csi import errors
from csi.controller.config import DpuConfig
from csi.controller.directory import Dpu
from dpu_offload_stubs.attacher.v1 import attacher_pb2, attacher_pb2_grpc
from foundation.daemon.serving import TlsFiles, dial

_BACK = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidArgument,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: errors.FailedPrecondition,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.ABORTED: errors.Aborted,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.CANCELLED: errors.Aborted,
    # Our own certificate or our place among the DPU's callers is wrong; nothing has been done there.
    grpc.StatusCode.PERMISSION_DENIED: errors.Unavailable,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unavailable,
}


class Dpus:
    """Channels are kept: one mTLS hand-shake a DPU, not one a volume."""

    def __init__(self, tls: TlsFiles, config: DpuConfig) -> None:
        self._tls = tls
        self._config = config
        self._channels: dict[tuple[str, str], grpc.aio.Channel] = {}

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()

    async def attach(self, dpu: Dpu, request: attacher_pb2.AttachRequest) -> attacher_pb2.Attachment:
        try:
            return await self._stub(dpu).Attach(request, timeout=self._config.attach_seconds)
        except grpc.aio.AioRpcError as error:
            raise _error(error, f"attach {request.volume_id} on DPU {dpu.node}") from error

    async def detach(self, dpu: Dpu, volume_id: str) -> None:
        try:
            request = attacher_pb2.DetachRequest(volume_id=volume_id)
            await self._stub(dpu).Detach(request, timeout=self._config.detach_seconds)
        except grpc.aio.AioRpcError as error:
            raise _error(error, f"detach {volume_id} on DPU {dpu.node}") from error

    async def attachments(self, dpu: Dpu) -> list[attacher_pb2.Attachment]:
        """What the DPU really has."""
        try:
            answer = await self._stub(dpu).List(attacher_pb2.ListRequest(), timeout=self._config.list_seconds)
        except grpc.aio.AioRpcError as error:
            raise _error(error, f"list attachments of DPU {dpu.node}") from error
        return list(answer.attachments)

    def _stub(self, dpu: Dpu) -> attacher_pb2_grpc.VolumeAttacherStub:
        announcement = dpu.announcement
        address = (announcement.endpoint, announcement.server_name)
        if address not in self._channels:
            self._channels[address] = dial(
                announcement.endpoint, tls=self._tls, server_name=announcement.server_name, name="csi-node-dpu"
            )
        return attacher_pb2_grpc.VolumeAttacherStub(self._channels[address])


def _error(error: grpc.aio.AioRpcError, what: str) -> errors.CsiError:
    return _BACK.get(error.code(), errors.Internal)(f"{what}: {error.details() or error.code().name}")
