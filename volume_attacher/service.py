"""The VolumeAttacher service: requests in, answers out."""

from collections.abc import AsyncIterator
from typing import Any, Final

import grpc.aio

from dpu_offload_stubs.attacher.v1 import attacher_pb2 as pb
from dpu_offload_stubs.attacher.v1 import attacher_pb2_grpc
from foundation.daemon import logs
from volume_attacher import request as reading
from volume_attacher import views
from volume_attacher.attacher import Attacher
from volume_attacher.errors import BridgeAway, UnknownVolume
from volume_attacher.host_identity import HostIdentity
from volume_attacher.model import Policy

Context = grpc.aio.ServicerContext[Any, Any]
# Answer before the caller's own time is up, so that it learns that work goes on.
_MARGIN: Final = 0.3
_LONGEST: Final = 110.0
_TRANSPORTS: Final = {"tcp": pb.TRANSPORT_TCP, "rdma": pb.TRANSPORT_RDMA}


class VolumeAttacherService(attacher_pb2_grpc.VolumeAttacherServicer):
    def __init__(
        self, attacher: Attacher, identity: HostIdentity, *, default_policy: Policy, card: "CardFacts"
    ) -> None:
        self._attacher = attacher
        self._identity = identity
        self._default_policy = default_policy
        self._card = card

    async def Attach(self, request: pb.AttachRequest, context: Context) -> pb.Attachment:
        wanted = reading.specification(request, self._default_policy)
        secrets = reading.secrets(request)
        for value in secrets.values():
            logs.secret(value)
        pinned = reading.pinned(request)
        return await self._attacher.attach(wanted, secrets, pinned=pinned, deadline=_remaining(context))

    async def Detach(self, request: pb.DetachRequest, context: Context) -> pb.DetachResponse:
        await self._attacher.detach(reading.volume_id(request.volume_id), deadline=_remaining(context))
        return pb.DetachResponse()

    async def Get(self, request: pb.GetRequest, context: Context) -> pb.Attachment:
        volume_id = reading.volume_id(request.volume_id)
        await self._look()
        found = self._attacher.board.shown.get(volume_id)
        if found is None:
            raise UnknownVolume(f"{volume_id} is not attached here")
        return found

    async def List(self, request: pb.ListRequest, context: Context) -> pb.ListResponse:
        await self._look()
        return pb.ListResponse(attachments=self._attacher.attachments())

    async def _look(self) -> None:
        """Read anew; with the bridge away the attachments say so themselves."""
        try:
            await self._attacher.refresh()
        except BridgeAway as error:
            self._attacher.went_away(str(error))

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.WatchEvent]:
        async for event in self._attacher.board.watch():
            yield event

    async def Inventory(self, request: pb.InventoryRequest, context: Context) -> pb.InventoryResponse:
        result = pb.InventoryResponse(host_nqn=self._identity.nqn, host_id=self._identity.id, card=self._card.name)
        places, free = self._attacher.inventory()
        result.functions_total = len(places)
        result.functions_free = len(free)
        if not request.counts_only:
            result.functions.extend(views.function(place) for place in places)
        result.transports.extend(_TRANSPORTS[word] for word in self._card.transports if word in _TRANSPORTS)
        return result


class CardFacts:
    """What the bridge says of its card, once it was asked."""

    def __init__(self) -> None:
        self.name = ""
        self.transports: tuple[str, ...] = ()


def _remaining(context: Context) -> float:
    remaining = context.time_remaining()
    return _LONGEST if remaining is None else max(0.0, min(remaining - _MARGIN, _LONGEST))
