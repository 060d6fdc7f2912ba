"""Calls to a group of gateways: whichever answers, with errno answers as this component's errors."""

import errno
import os
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio

from csi.errors import Aborted, CsiError, DeadlineExceeded, Internal, NotFound, ResourceExhausted, Unavailable
from csi.framework.backends.ceph_nvmeof.config import CephConfig
from dpu_offload_stubs.ceph_nvmeof import gateway_pb2_grpc
from foundation.daemon.serving import TlsFiles, dial


class Answer(Protocol):
    """What every answer of the gateway has."""

    @property
    def status(self) -> int: ...

    @property
    def error_message(self) -> str: ...


A = TypeVar("A", bound=Answer)
_KINDS: dict[int, type[CsiError]] = {
    errno.ENOENT: NotFound,
    errno.ENODEV: NotFound,
    errno.ENOSPC: ResourceExhausted,
    errno.E2BIG: ResourceExhausted,
    errno.EBUSY: Aborted,
    errno.EAGAIN: Aborted,
    errno.ETIMEDOUT: DeadlineExceeded,
    errno.ECONNREFUSED: Unavailable,
}


class Gateways:
    """Stays with the gateway that answered last; all of a group share one state (Ceph's OMAP)."""

    def __init__(self, config: CephConfig) -> None:
        self._config = config
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._order = list(config.gateways)

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()

    async def call(self, what: str, method: str, request: Any, *, accept: Collection[int] = ()) -> Any:
        """The answer; a status in `accept` (errno) is no error. Raises what the errno stands for."""
        answer = await self._ask(what, method, request)
        if answer.status and answer.status not in accept:
            kind = _KINDS.get(answer.status, Internal)
            name = errno.errorcode.get(answer.status, str(answer.status))
            raise kind(f"{what}: the gateway says {answer.error_message or os.strerror(answer.status)} ({name})")
        return answer

    async def _ask(self, what: str, method: str, request: Any) -> Any:
        last: grpc.aio.AioRpcError | None = None
        for address in list(self._order):
            call: Callable[..., Awaitable[Any]] = getattr(self._stub(address), method)
            try:
                answer = await call(request, timeout=self._config.call_seconds)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    kind = DeadlineExceeded if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED else Internal
                    raise kind(f"{what}: {error.details()}") from error
                # It was not reached, so the next one may be asked the same.
                last = error
                self._order.remove(address)
                self._order.append(address)
                continue
            return answer
        raise Unavailable(f"{what}: no gateway of {', '.join(self._config.gateways)} answers") from last

    def _stub(self, address: str) -> gateway_pb2_grpc.GatewayStub:
        if address not in self._channels:
            tls, unix = self._config.tls, address.startswith("unix:")
            files = TlsFiles(ca=tls.ca, certificate=tls.certificate, key=tls.key) if tls and not unix else None
            server_name = tls.server_name if tls and not unix else ""
            self._channels[address] = dial(address, tls=files, server_name=server_name, name="ceph-nvmeof")
        return gateway_pb2_grpc.GatewayStub(self._channels[address])
