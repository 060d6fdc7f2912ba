"""What the attacher asks of an OPI bridge, one method a question.

Works with any bridge of the OPI storage API; what the API lacks comes from the card service beside it, if there is one.
"""

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import grpc
import grpc.aio

from dpu_offload_stubs.card.v1 import card_pb2, card_pb2_grpc
from dpu_offload_stubs.opi.storage import (
    backend_nvme_pb2,
    backend_nvme_pb2_grpc,
    frontend_nvme_pb2,
    frontend_nvme_pb2_grpc,
    middleend_encryption_pb2,
    middleend_encryption_pb2_grpc,
    middleend_qos_volume_pb2,
    middleend_qos_volume_pb2_grpc,
)
from volume_attacher.errors import BridgeAway, BridgeError, Exists, Missing, Refused, Unsupported
from volume_attacher.model import Place
from volume_attacher.naming import namespace_name, remote_name
from volume_attacher.one_by_one import OneByOne
from volume_attacher.plain_opi import PlainOpi

log: Final = logging.getLogger(__name__)
T = TypeVar("T")
_AWAY: Final = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
}
_KINDS: Final = {
    grpc.StatusCode.NOT_FOUND: Missing,
    grpc.StatusCode.ALREADY_EXISTS: Exists,
    grpc.StatusCode.UNIMPLEMENTED: Unsupported,
}
# A path which the target refuses may take its time-outs to say so.
_CONNECT_SECONDS: Final = 35.0
_NAMESPACE_SECONDS: Final = 10.0
_DEADLINE: Final = 20.0


class Bridge:
    """Calls over one channel; each raises BridgeError, and Unsupported if the bridge has no such call.

    `single` makes and removes one resource a call.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        functions: Sequence[Place] = (),
        poll: float = 10.0,
    ) -> None:
        self._frontend: Any = frontend_nvme_pb2_grpc.FrontendNvmeServiceStub(channel)
        self._backend: Any = backend_nvme_pb2_grpc.NvmeRemoteControllerServiceStub(channel)
        self._encryption: Any = middleend_encryption_pb2_grpc.MiddleendEncryptionServiceStub(channel)
        self._qos: Any = middleend_qos_volume_pb2_grpc.MiddleendQosVolumeServiceStub(channel)
        self._card: Any = card_pb2_grpc.CardStub(channel)
        stubs = {
            backend_nvme_pb2: self._backend,
            frontend_nvme_pb2: self._frontend,
            middleend_encryption_pb2: self._encryption,
            middleend_qos_volume_pb2: self._qos,
        }
        self.single = OneByOne(_ask, stubs, set_options=self.set_options, wait=self._wait)
        self._plain = PlainOpi(
            _ask,
            frontend=self._frontend,
            backend=self._backend,
            encryption=self._encryption,
            qos=self._qos,
            functions=functions,
            poll=poll,
        )

    # --- the card service

    async def capabilities(self) -> card_pb2.Capabilities:
        try:
            return await _ask(self._card.GetCapabilities, card_pb2.GetCapabilitiesRequest())
        except Unsupported:
            return card_pb2.Capabilities(card="opi", transports=["tcp"])

    async def state(self) -> card_pb2.State:
        try:
            return await _ask(self._card.GetState, card_pb2.GetStateRequest())
        except Unsupported:
            return await self._plain.state()

    async def watch(self) -> AsyncIterator[card_pb2.Event]:
        """Events until the bridge goes away, which raises BridgeAway."""
        try:
            async for event in self._card.Watch(card_pb2.WatchRequest()):
                yield event
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise _error(error) from error
            async for event in self._plain.events():
                yield event
        raise BridgeAway("the bridge ended its events")

    async def set_options(self, request: card_pb2.SetRemoteControllerOptionsRequest) -> None:
        await _ask(self._card.SetRemoteControllerOptions, request)

    async def rescan(self, subsystem: str, nsid: int) -> None:
        """Have the host look at a namespace's size; a bridge without that call has cards that do so by themselves."""
        with contextlib.suppress(Unsupported):
            await _ask(self._card.Rescan, card_pb2.RescanRequest(namespace=namespace_name(subsystem, nsid)))

    async def create_all(
        self,
        first: Sequence[Sequence[card_pb2.Creation]],
        then: Sequence[card_pb2.Creation],
        *,
        paths: int,
    ) -> list[card_pb2.Created]:
        """Make all in one call, as the contract says; `paths` of them may take long. Raises Unsupported."""
        answer = await _ask(
            self._card.CreateAll,
            card_pb2.CreateAllRequest(
                first=[card_pb2.CreationChain(creations=chain) for chain in first],
                then=card_pb2.CreationChain(creations=then),
            ),
            seconds=_CONNECT_SECONDS * max(paths, 1) + _NAMESPACE_SECONDS,
        )
        return list(answer.created)

    async def delete_all(self, first: Sequence[str], rest: Sequence[Sequence[str]]) -> None:
        """Delete by resource names: `first` in order, then the chains of `rest` side by side, in one call."""
        await _ask(
            self._card.DeleteAll,
            card_pb2.DeleteAllRequest(
                first=card_pb2.Chain(names=first), rest=[card_pb2.Chain(names=names) for names in rest]
            ),
            seconds=_CONNECT_SECONDS,
        )

    async def _wait(self, request: card_pb2.WaitRemoteNamespaceRequest) -> card_pb2.RemoteNamespace:
        try:
            return await _ask(self._card.WaitRemoteNamespace, request, seconds=_NAMESPACE_SECONDS)
        except Unsupported:
            return await self._plain.wait(request, seconds=_NAMESPACE_SECONDS)

    async def path_names(self, identifier: str) -> list[str]:
        request = backend_nvme_pb2.ListNvmePathsRequest(parent=remote_name(identifier), page_size=1000)
        try:
            answer = await _ask(self._backend.ListNvmePaths, request)
        except Missing:
            return []
        return [path.name for path in answer.nvme_paths]


async def _ask(method: Callable[..., Awaitable[T]], request: object, *, seconds: float = _DEADLINE) -> T:
    try:
        return await method(request, timeout=seconds)
    except grpc.aio.AioRpcError as error:
        raise _error(error) from error


def _error(error: grpc.aio.AioRpcError) -> BridgeError:
    code, details = error.code(), error.details() or "the bridge gave no reason"
    if code in _AWAY:
        return BridgeAway(details)
    return _KINDS.get(code, Refused)(details)
