"""The DPU's end of the link: who may call, the streams, and nothing of what plugging means."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import grpc
import grpc.aio

from cni.link.errors import BadMessage, LinkError, NotThisHost, PeerAway, PlugFailed, SwitchAway
from dpu_offload_stubs.link.v1 import link_pb2, link_pb2_grpc
from foundation.daemon.serving import ErrorTable, peer_identity

COMPONENT = "cni-node"
BEAT_SECONDS = 2.0
_DEFAULT_PLUG_MS, _LONGEST_PLUG_MS = 30_000, 600_000

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
Progress: TypeAlias = Callable[[link_pb2.Stage.ValueType, str], None]

ERRORS: Mapping[type[BaseException], grpc.StatusCode] = {
    NotThisHost: grpc.StatusCode.PERMISSION_DENIED,
    BadMessage: grpc.StatusCode.INVALID_ARGUMENT,
    PlugFailed: grpc.StatusCode.FAILED_PRECONDITION,
    PeerAway: grpc.StatusCode.UNAVAILABLE,
    SwitchAway: grpc.StatusCode.UNAVAILABLE,
    LinkError: grpc.StatusCode.INTERNAL,
}


def error_table() -> ErrorTable:
    return ErrorTable(ERRORS)


class HostPods(Protocol):
    """What a DPU does for the pods of its host."""

    @property
    def host(self) -> str:
        """Node name of the host; "" while it is not known."""
        ...

    async def plug(self, wanted: link_pb2.Attachment, *, deadline: float, progress: Progress) -> None:
        """Raises PlugFailed; nothing is left then. Cancelling it undoes it."""
        ...

    async def unplug(self, identity: str, generation: int) -> bool: ...

    async def sync(self, wanted: Sequence[link_pb2.Attachment]) -> link_pb2.SyncResponse: ...

    async def describe(self, identities: Sequence[str], *, flows: int) -> Sequence[link_pb2.Description]: ...

    def health(self) -> link_pb2.HealthReport: ...

    @property
    def health_changed(self) -> asyncio.Event:
        """Set at each change of `health`, and replaced by a fresh event."""
        ...


class LinkService(link_pb2_grpc.LinkServicer):
    def __init__(self, pods: HostPods) -> None:
        self._pods = pods

    async def Plug(self, request: link_pb2.PlugRequest, context: Context) -> AsyncIterator[link_pb2.PlugEvent]:
        self._admit(context)
        events: asyncio.Queue[link_pb2.PlugEvent | None] = asyncio.Queue()
        milliseconds = min(request.deadline_ms or _DEFAULT_PLUG_MS, _LONGEST_PLUG_MS)

        def progress(stage: link_pb2.Stage.ValueType, representor: str) -> None:
            events.put_nowait(link_pb2.PlugEvent(stage=stage, representor=representor))

        work = asyncio.ensure_future(
            self._pods.plug(request.attachment, deadline=milliseconds / 1000, progress=progress)
        )
        work.add_done_callback(lambda _: events.put_nowait(None))
        try:
            # The work is under way while this goes out.
            yield link_pb2.PlugEvent(stage=link_pb2.STAGE_ACCEPTED)
            while (event := await events.get()) is not None:
                yield event
            try:
                work.result()
            except PlugFailed as failed:
                yield link_pb2.PlugEvent(failure=link_pb2.Failure(reason=failed.reason, message=str(failed)))
        finally:
            if not work.done():
                work.cancel()
                with contextlib.suppress(asyncio.CancelledError, LinkError):
                    await work

    async def Unplug(self, request: link_pb2.UnplugRequest, context: Context) -> link_pb2.UnplugResponse:
        self._admit(context)
        return link_pb2.UnplugResponse(removed=await self._pods.unplug(request.id, request.generation))

    async def Sync(self, request: link_pb2.SyncRequest, context: Context) -> link_pb2.SyncResponse:
        self._admit(context)
        return await self._pods.sync(request.attachments)

    async def Describe(self, request: link_pb2.DescribeRequest, context: Context) -> link_pb2.DescribeResponse:
        self._admit(context)
        found = await self._pods.describe(request.ids, flows=request.flows)
        return link_pb2.DescribeResponse(attachments=found)

    async def Health(self, request: link_pb2.HealthRequest, context: Context) -> AsyncIterator[link_pb2.HealthReport]:
        self._admit(context)
        while True:
            changed = self._pods.health_changed
            yield self._pods.health()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), BEAT_SECONDS)

    def _admit(self, context: Context) -> None:
        caller = peer_identity(context)
        if caller is None or caller.component != COMPONENT or not self._pods.host or caller.node != self._pods.host:
            raise NotThisHost(
                f"the caller is {caller or 'unknown'}, this DPU serves host {self._pods.host or '(not known yet)'}; "
                "its cni-node needs a certificate with the host's name"
            )
