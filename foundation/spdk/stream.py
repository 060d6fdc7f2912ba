"""One connection to SPDK over a stream socket: ids to futures."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from foundation.spdk.errors import SpdkClientError, SpdkError, SpdkMalformedReply, SpdkTimeout, SpdkUnavailable
from foundation.spdk.framing import Framer, FramingError
from foundation.spdk.messages import Reply, decode_reply, encode_request

_log = logging.getLogger(__name__)

_WRITE_AT = 32 * 1024


class StreamConnection(asyncio.Protocol):
    """Any number of calls at once; answers come in the order in which SPDK finishes, matched by id.

    A call that runs out of time leaves the connection as it is: ids are never used twice, so a late answer finds nobody
    and is dropped. A reply that is no JSON-RPC ends the connection, for nothing after it can be trusted; one that never
    ends does so with the first call that runs out of time meanwhile. Requests made in one turn of the event loop leave
    in one write, up to 32 KiB: SPDK reads every 4 ms, and runs what it has read.
    """

    def __init__(self, address: str, on_lost: Callable[[StreamConnection, SpdkUnavailable], None]) -> None:
        self._address = address
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._ids = itertools.count(1)
        self._calls: dict[int, tuple[asyncio.Future[msgspec.Raw], str]] = {}
        self._framer: Framer[Reply] = Framer(decode_reply)
        self._outgoing: list[bytes] = []
        self._queued = 0
        self._transport: asyncio.Transport | None = None
        self._reason: SpdkUnavailable | None = None
        self._answered = False
        self.late = 0

    @property
    def usable(self) -> bool:
        return self._reason is None and self._transport is not None

    def send(self, method: str, params: Mapping[str, Any] | None) -> tuple[int, asyncio.Future[msgspec.Raw]]:
        """Queues a request; the future gets the raw result or the exception."""
        if self._reason is not None:
            raise self._reason
        request_id = next(self._ids)
        data = encode_request(request_id, method, params)
        future: asyncio.Future[msgspec.Raw] = self._loop.create_future()
        self._calls[request_id] = (future, method)
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(data)
        self._queued += len(data)
        if self._queued >= _WRITE_AT:
            # SPDK may begin with these while the rest is being written down.
            self._flush()
        return request_id, future

    async def wait(
        self, request_id: int, future: asyncio.Future[msgspec.Raw], end: float, deadline: float
    ) -> msgspec.Raw:
        """The raw result. Raises SpdkError, SpdkUnavailable, SpdkTimeout at ``end`` on the loop's clock.

        ``deadline`` is what the caller asked for, in seconds.
        """
        timer = self._loop.call_at(end, self._expire, request_id, deadline)
        try:
            return await future
        finally:
            timer.cancel()
            self._calls.pop(request_id, None)

    async def many(
        self, calls: Sequence[tuple[str, Mapping[str, Any] | None]], end: float, deadline: float
    ) -> list[msgspec.Raw | SpdkClientError]:
        """As ``send`` and ``wait`` for each call, one clock for all; a failed call has its exception there."""
        waiting: list[tuple[int, asyncio.Future[msgspec.Raw]] | SpdkClientError] = []
        for method, params in calls:
            try:
                waiting.append(self.send(method, params))
            except SpdkClientError as error:
                waiting.append(error)
        ids = [entry[0] for entry in waiting if isinstance(entry, tuple)]
        timer = self._loop.call_at(end, self._expire_all, ids, deadline)
        outcomes: list[msgspec.Raw | SpdkClientError] = []
        try:
            for entry in waiting:
                if not isinstance(entry, tuple):
                    outcomes.append(entry)
                    continue
                try:
                    outcomes.append(await entry[1])
                except SpdkClientError as error:
                    outcomes.append(error)
        finally:
            timer.cancel()
            for entry in waiting[len(outcomes) :]:
                # Only when this was cancelled itself: nobody wants the rest.
                if isinstance(entry, tuple):
                    self._calls.pop(entry[0], None)
                    entry[1].cancel() or entry[1].cancelled() or entry[1].exception()
        return outcomes

    def _expire_all(self, ids: Sequence[int], deadline: float) -> None:
        for request_id in ids:
            self._expire(request_id, deadline)

    def _expire(self, request_id: int, deadline: float) -> None:
        future, method = self._calls.pop(request_id, (None, ""))
        if future is None or future.done():
            return
        hint = "" if self._answered else "; it has answered nothing on this connection, and serves at most 64 at once"
        future.set_exception(
            SpdkTimeout(f"SPDK at {self._address} did not answer {method} within {deadline:g} s{hint}")
        )
        if self._framer.doubtful:
            # Whatever comes would be taken for the rest of it.
            self._break("left a reply unfinished")

    def close(self) -> None:
        self._lose(SpdkUnavailable(f"the connection to SPDK at {self._address} was closed by us"))
        if self._transport is not None:
            self._transport.close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._reason is not None:
            return
        try:
            replies = self._framer.feed(data)
        except FramingError as error:
            self._break(f"sent something that is not a JSON-RPC reply ({error})")
            return
        for reply in replies:
            self._answer(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        why = f"broke ({exc})" if exc else "was closed by SPDK"
        cut = f", {self._framer.pending} bytes into a reply" if self._framer.pending else ""
        methods = ", ".join(sorted({method for _, method in self._calls.values()}))
        hint = (
            f"; unanswered: {methods} (SPDK closes without a word on a request it cannot read, and when it dies)"
            if methods
            else ""
        )
        self._lose(SpdkUnavailable(f"the connection to SPDK at {self._address} {why}{cut}{hint}"))

    def _answer(self, reply: Reply) -> None:
        self._answered = True
        future, method = self._calls.pop(reply.id, (None, "")) if isinstance(reply.id, int) else (None, "")
        if future is None:
            if reply.id is None:
                message = reply.error.message if reply.error else "no error"
                self._break(f"answered without an id ({message}): it could not read one of the requests")
                return
            self.late += 1
            _log.debug("dropped a late answer of SPDK at %s (id %s)", self._address, reply.id)
            return
        if future.done():
            return
        if reply.error is not None:
            future.set_exception(SpdkError(reply.error.code, reply.error.message, method))
        elif isinstance(reply.result, msgspec.Raw):
            future.set_result(reply.result)
        else:
            future.set_exception(
                SpdkMalformedReply(f"SPDK at {self._address} answered {method} with neither result nor error")
            )

    def _flush(self) -> None:
        if self._outgoing and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(self._outgoing))
        self._outgoing.clear()
        self._queued = 0

    def _break(self, what: str) -> None:
        self._lose(SpdkMalformedReply(f"SPDK at {self._address} {what}; the connection was given up"))
        if self._transport is not None:
            self._transport.abort()

    def _lose(self, reason: SpdkUnavailable) -> None:
        if self._reason is not None:
            return
        self._reason = reason
        calls, self._calls = self._calls, {}
        for future, _ in calls.values():
            if not future.done():
                future.set_exception(reason)
        self._on_lost(self, reason)
