"""The host's end of the link: one lasting channel to a DPU, its health, its view of what the host wants."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import grpc.aio

from cni.link.errors import PeerAway, PlugFailed
from cni.link.service import Progress
from dpu_offload_stubs.link.v1 import link_pb2, link_pb2_grpc
from foundation.daemon.serving import TlsFiles, dial
from foundation.daemon.work import Backoff

_log = logging.getLogger(__name__)

# The DPU beats every two seconds; two missing beats and it counts as away. One whose process ends is known at once.
_SILENCE_SECONDS = 5.0
# A DPU that answers others but not yet this call is busy, not away.
_LONGEST_ACCEPT_SECONDS = 10.0
_SYNC_SECONDS = 60.0
_SYNC_AGAIN = Backoff(5.0, 60.0)
_CONNECTING_SECONDS = 0.5
_BACKOFF = Backoff(0.1, 1.0)


class LinkClient:
    """`wanted` gives all attachments which this DPU shall have; `synced` is called after each Sync with its answer."""

    def __init__(
        self,
        dpu: str,
        target: str,
        *,
        server_name: str,
        tls: TlsFiles,
        wanted: Callable[[], Sequence[link_pb2.Attachment]],
        synced: Callable[[link_pb2.SyncResponse], None] = lambda _: None,
        accept_seconds: float = 0.8,
    ) -> None:
        self.dpu = dpu
        self.target = target
        self.cards: frozenset[str] = frozenset()
        self._wanted = wanted
        self._synced = synced
        self._channel = dial(target, tls=tls, server_name=server_name, name="cni-link")
        self._stub = link_pb2_grpc.LinkStub(self._channel)
        self._reason = "not connected yet"
        self._up = asyncio.Event()
        self._tried = asyncio.Event()
        self._fallen = asyncio.Event()
        self._failures = 0
        self._accept_seconds = accept_seconds
        self._heard = 0.0
        self._mute_since = -1.0

    def problem(self) -> str:
        """Why the DPU cannot plug now; "" when it can."""
        return f"DPU {self.dpu} at {self.target}: {self._reason}" if self._reason else ""

    async def run(self) -> None:
        """Keeps the link up, for ever."""
        while True:
            try:
                await self._follow()
            except (PeerAway, grpc.aio.AioRpcError) as error:
                self._down(_text(error))
            self._failures += 1
            await asyncio.sleep(_BACKOFF.delay(self._failures))

    async def close(self) -> None:
        await self._channel.close()

    async def plug(self, attachment: link_pb2.Attachment, *, deadline: float, progress: Progress) -> None:
        """Returns when the flows are installed. Raises PlugFailed with the DPU's reason; PeerAway within a second when
        the DPU is not there."""
        await self._connected()
        request = link_pb2.PlugRequest(attachment=attachment, deadline_ms=int(deadline * 1000))
        call = self._stub.Plug(request, timeout=deadline + 1.0)
        down = asyncio.ensure_future(self._fallen.wait())
        try:
            accepted = False
            while True:
                reading = asyncio.ensure_future(call.read())
                if not accepted:
                    await self._sign_of_life(reading, down)
                    accepted = True
                await asyncio.wait({reading, down}, return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    reading.cancel()
                    raise PeerAway(self.problem())
                event = reading.result()
                if event is grpc.aio.EOF:
                    raise PeerAway(f"DPU {self.dpu} ended Plug without a result")
                assert isinstance(event, link_pb2.PlugEvent)
                self._heard = asyncio.get_running_loop().time()
                if event.HasField("failure"):
                    raise PlugFailed(event.failure.reason, event.failure.message)
                progress(event.stage, event.representor)
                if event.stage == link_pb2.STAGE_FLOWS_INSTALLED:
                    return
        except grpc.aio.AioRpcError as error:
            raise PeerAway(f"DPU {self.dpu} at {self.target}: {_text(error)}") from error
        finally:
            call.cancel()
            down.cancel()

    async def unplug(self, identity: str, generation: int, *, deadline: float) -> bool:
        """Returns when the DPU has let go. Raises PeerAway."""
        if not self._up.is_set():
            raise PeerAway(self.problem())
        if self._mute_since >= self._heard:
            # The undoing of a Plug that nobody answered: its caller need not wait once more.
            raise PeerAway(f"DPU {self.dpu} at {self.target}: silent")
        request = link_pb2.UnplugRequest(id=identity, generation=generation)
        try:
            return bool((await self._stub.Unplug(request, timeout=deadline)).removed)
        except grpc.aio.AioRpcError as error:
            raise PeerAway(f"DPU {self.dpu} at {self.target}: {_text(error)}") from error

    async def describe(self, *identities: str, flows: int = 0, deadline: float = 5.0) -> Sequence[link_pb2.Description]:
        """What the DPU has of these attachments, or of all, with up to `flows` flows of each. Raises PeerAway."""
        await self._connected()
        request = link_pb2.DescribeRequest(ids=identities, flows=flows)
        try:
            answer = await self._stub.Describe(request, timeout=deadline)
        except grpc.aio.AioRpcError as error:
            raise PeerAway(f"DPU {self.dpu} at {self.target}: {_text(error)}") from error
        return answer.attachments

    async def _sign_of_life(self, reading: asyncio.Future[Any], down: asyncio.Future[Any]) -> None:
        """Returns when `reading` or `down` is done. Raises PeerAway when the DPU has been silent towards everybody."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        while not reading.done() and not down.done():
            quiet_since = max(started, self._heard)
            end = min(quiet_since + self._accept_seconds, started + _LONGEST_ACCEPT_SECONDS)
            if loop.time() >= end:
                reading.cancel()
                self._mute_since = loop.time()
                raise PeerAway(
                    f"DPU {self.dpu} at {self.target}: no answer to Plug within {loop.time() - started:.1f} s"
                )
            await asyncio.wait({reading, down}, timeout=end - loop.time(), return_when=asyncio.FIRST_COMPLETED)

    async def _connected(self) -> None:
        """A link just being made is waited for, one known to be down is not."""
        if not self._up.is_set() and not self._tried.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._up.wait(), _CONNECTING_SECONDS)
        if not self._up.is_set():
            raise PeerAway(self.problem())

    async def _follow(self) -> None:
        health = self._stub.Health(link_pb2.HealthRequest(), wait_for_ready=False)
        again: asyncio.Task[None] | None = None
        try:
            epoch: int | None = None
            while True:
                try:
                    report = await asyncio.wait_for(health.read(), _SILENCE_SECONDS)
                except TimeoutError:
                    raise PeerAway(f"silent for {_SILENCE_SECONDS:.0f} s") from None
                if report is grpc.aio.EOF:
                    raise PeerAway("its cni-node has stopped")
                assert isinstance(report, link_pb2.HealthReport)
                self._heard = asyncio.get_running_loop().time()
                self.cards = frozenset(report.card_serials)
                if epoch is None:
                    failed = await self._sync()
                    if failed:
                        again = asyncio.create_task(self._sync_again(), name=f"Sync with {self.dpu}")
                    epoch = report.epoch
                    self._failures = 0
                    _log.info("link to DPU %s is up", self.dpu)
                reason = "" if report.ready else report.reason
                if reason != self._reason:
                    _log.info("DPU %s: %s", self.dpu, reason or "ready")
                self._reason = reason
                if not self._up.is_set():
                    self._fallen.clear()
                    self._up.set()
        finally:
            health.cancel()
            if again is not None:
                again.cancel()
                await asyncio.wait({again})

    async def _sync_again(self) -> None:
        """Until the DPU could do all of it: what a live pod needs may come later than the DPU's cni-node."""
        for pause in _SYNC_AGAIN:
            await asyncio.sleep(pause)
            try:
                if not await self._sync():
                    return
            except grpc.aio.AioRpcError as error:
                # When the link is down, the next one begins with a Sync.
                _log.warning("Sync with DPU %s failed: %s", self.dpu, _text(error))

    async def _sync(self) -> int:
        """How many attachments the DPU could not plug or remove."""
        answer = await self._stub.Sync(link_pb2.SyncRequest(attachments=self._wanted()), timeout=_SYNC_SECONDS)
        for failed in answer.failed:
            _log.warning("DPU %s cannot plug %s: %s", self.dpu, failed.id, failed.failure.message)
        self._synced(answer)
        return len(answer.failed)

    def _down(self, reason: str) -> None:
        self._tried.set()
        if reason != self._reason:
            _log.warning("link to DPU %s is down: %s", self.dpu, reason)
        self._reason = reason
        self._up.clear()
        self._fallen.set()


def _text(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error)
