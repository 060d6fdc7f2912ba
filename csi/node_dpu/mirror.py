"""A copy of volume-attacher's attachments that follows it, with the calls that change them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeVar

import grpc
import grpc.aio

from dpu_offload_stubs.attacher.v1 import attacher_pb2, attacher_pb2_grpc
from foundation.daemon.backoff import Backoff

_log = logging.getLogger(__name__)
T = TypeVar("T")
_DEADLINE: Final = 60.0


class AttacherRefusal(Exception):
    """volume-attacher's answer, to be passed on with its own code."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        super().__init__(error.details() or "volume-attacher gave no reason")
        self.code = error.code()


class Mirror:
    """`attachments` is only meaningful while `synced`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = attacher_pb2_grpc.VolumeAttacherStub(channel)
        self._attachments: dict[str, attacher_pb2.Attachment] = {}
        self._view = MappingProxyType(self._attachments)
        self._subscribers: list[Callable[[str], None]] = []
        self.synced = False

    @property
    def attachments(self) -> Mapping[str, attacher_pb2.Attachment]:
        return self._view

    def subscribe(self, callback: Callable[[str], None]) -> None:
        """`callback(volume_id)` for each change, `callback("")` when synced or lost."""
        self._subscribers.append(callback)

    async def run(self) -> None:
        """Follow until cancelled."""
        pauses = Backoff(0.1, 1.0)
        failures = 0
        while True:
            try:
                await self._follow()
                failures = 0
            except grpc.aio.AioRpcError as error:
                failures += 1
                _log.debug("volume-attacher cannot be followed: %s", error.details())
            if self.synced:
                self.synced = False
                self._tell("")
            await asyncio.sleep(pauses.delay(max(failures, 1)))

    async def _follow(self) -> None:
        fresh: dict[str, attacher_pb2.Attachment] = {}
        async for event in self._stub.Watch(attacher_pb2.WatchRequest()):
            if event.synced:
                self._attachments.clear()
                self._attachments.update(fresh)
                self.synced = True
                self._tell("")
            elif not self.synced:
                fresh[event.attachment.volume_id] = event.attachment
            elif event.deleted:
                self._attachments.pop(event.attachment.volume_id, None)
                self._tell(event.attachment.volume_id)
            else:
                self._attachments[event.attachment.volume_id] = event.attachment
                self._tell(event.attachment.volume_id)

    def _tell(self, volume_id: str) -> None:
        for subscriber in self._subscribers:
            subscriber(volume_id)

    async def attach(
        self, request: attacher_pb2.AttachRequest, *, seconds: float = _DEADLINE
    ) -> attacher_pb2.Attachment:
        return await _passed_on(self._stub.Attach(request, timeout=seconds))

    async def detach(self, volume_id: str, *, seconds: float = _DEADLINE) -> None:
        await _passed_on(self._stub.Detach(attacher_pb2.DetachRequest(volume_id=volume_id), timeout=seconds))

    async def get(self, request: attacher_pb2.GetRequest, *, seconds: float = _DEADLINE) -> attacher_pb2.Attachment:
        return await _passed_on(self._stub.Get(request, timeout=seconds))

    async def list(self, *, seconds: float = _DEADLINE) -> attacher_pb2.ListResponse:
        return await _passed_on(self._stub.List(attacher_pb2.ListRequest(), timeout=seconds))

    async def inventory(self, *, seconds: float = _DEADLINE) -> attacher_pb2.InventoryResponse:
        """What this DPU has and can, its functions only counted."""
        request = attacher_pb2.InventoryRequest(counts_only=True)
        return await self.full_inventory(request, seconds=seconds)

    async def full_inventory(
        self, request: attacher_pb2.InventoryRequest, *, seconds: float = _DEADLINE
    ) -> attacher_pb2.InventoryResponse:
        return await _passed_on(self._stub.Inventory(request, timeout=seconds))

    async def watch(self) -> AsyncIterator[attacher_pb2.WatchEvent]:
        try:
            async for event in self._stub.Watch(attacher_pb2.WatchRequest()):
                yield event
        except grpc.aio.AioRpcError as error:
            raise AttacherRefusal(error) from error


async def _passed_on(call: Awaitable[T]) -> T:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise AttacherRefusal(error) from error
