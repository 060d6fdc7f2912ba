"""The client of SPDK's JSON-RPC."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from foundation.daemon.backoff import Backoff, Pauses
from foundation.spdk.address import HttpAddress, TcpAddress, UnixAddress, parse_address
from foundation.spdk.errors import SpdkClientError, SpdkMalformedReply, SpdkTimeout, SpdkUnavailable
from foundation.spdk.stream import StreamConnection

if TYPE_CHECKING:
    from foundation.spdk.http_proxy import HttpProxy

T = TypeVar("T")

_log = logging.getLogger(__name__)

_ANY = msgspec.json.Decoder()

DEFAULT_DEADLINE = 10.0
_CONNECT_SECONDS = 5.0
_RECONNECT = Backoff(initial=0.02, maximum=1.0, jitter=0.5)


class Caller(Protocol):
    """What the typed wrappers in ``foundation.spdk.methods`` need."""

    async def call(
        self, method: str, params: Mapping[str, Any] | None = None, *, deadline: float = DEFAULT_DEADLINE
    ) -> Any: ...

    async def call_as(
        self, kind: type[T], method: str, params: Mapping[str, Any] | None = None, *, deadline: float = DEFAULT_DEADLINE
    ) -> T: ...


class SpdkClient:
    """Calls one SPDK process; one connection, opened when first needed, any number of calls at once.

    ``address``: ``unix:/path`` (or a bare path), ``tcp:host:port``, or ``http://user@host:port/`` with the password in
    ``password_file``. SPDK serves 64 connections at once and lets others wait without a word: share one client.

    Every call has a deadline in seconds, connecting included. While nobody answers, a call fails at once with
    SpdkUnavailable, it does not wait; ``connect`` waits, with back-off. Once ``on_connect`` has been used, the client
    connects again by itself after a loss, so that its owner can compare and repair as soon as SPDK is back.
    """

    def __init__(self, address: str, *, password_file: str = "") -> None:
        self.address = parse_address(address)
        self._http: HttpProxy | None = None
        if isinstance(self.address, HttpAddress):
            # requests takes 50 ms to import, which everybody else need not wait for.
            from foundation.spdk.http_proxy import HttpProxy

            self._http = HttpProxy(self.address, password_file)
        self._connection: StreamConnection | None = None
        self._connecting: asyncio.Task[StreamConnection] | None = None
        self._reconnecting: asyncio.Task[None] | None = None
        self._on_connect: list[Callable[[], None]] = []
        self._on_disconnect: list[Callable[[SpdkUnavailable], None]] = []
        self._closed = False

    async def __aenter__(self) -> SpdkClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def connected(self) -> bool:
        return self._connection is not None and self._connection.usable

    def on_connect(self, callback: Callable[[], None]) -> None:
        """Called after each connection made; from then on a lost connection is made anew in the background."""
        self._on_connect.append(callback)

    def on_disconnect(self, callback: Callable[[SpdkUnavailable], None]) -> None:
        """Called with the reason when an open connection is lost; not for ``close``, not over HTTP."""
        self._on_disconnect.append(callback)

    async def connect(self, *, deadline: float = DEFAULT_DEADLINE) -> None:
        """Tries until SPDK accepts the connection. Raises SpdkUnavailable (the last reason) after ``deadline``."""
        if self._http is not None:
            return
        pauses = Pauses(_RECONNECT)
        end = asyncio.get_running_loop().time() + deadline
        while True:
            try:
                async with asyncio.timeout_at(end):
                    await self._connected()
                    return
            except TimeoutError as error:
                raise SpdkTimeout(f"SPDK at {self.address} did not accept a connection in {deadline:g} s") from error
            except SpdkUnavailable:
                delay = pauses.next()
                if self._closed or asyncio.get_running_loop().time() + delay >= end:
                    raise
                await asyncio.sleep(delay)

    async def call(
        self, method: str, params: Mapping[str, Any] | None = None, *, deadline: float = DEFAULT_DEADLINE
    ) -> Any:
        """The result as plain Python objects. Raises SpdkError, SpdkTimeout, SpdkUnavailable, SpdkRequestTooLarge."""
        return await self.call_as(Any, method, params, deadline=deadline)

    async def call_as(
        self, kind: type[T], method: str, params: Mapping[str, Any] | None = None, *, deadline: float = DEFAULT_DEADLINE
    ) -> T:
        """The result as ``kind``. Raises as ``call`` does, and SpdkMalformedReply when it has another shape."""
        if self._closed:
            raise SpdkUnavailable(f"{method}: the client of SPDK at {self.address} is closed")
        if self._http is not None:
            raw = await self._http.call(method, params, deadline)
        else:
            end = asyncio.get_running_loop().time() + deadline
            connection = self._connection
            if connection is None or not connection.usable:
                connection = await self._connect_for(method, deadline)
            request_id, future = connection.send(method, params)
            raw = await connection.wait(request_id, future, end, deadline)
        result = self._decode(kind, method, raw)
        if isinstance(result, SpdkMalformedReply):
            raise result
        return result  # type: ignore[no-any-return]  # it was decoded as T

    async def batch(
        self, calls: Sequence[tuple[str, Mapping[str, Any] | None]], *, deadline: float = DEFAULT_DEADLINE
    ) -> list[Any]:
        """All calls in one write, each finished for itself; results in the order of ``calls``.

        A call that failed has its exception (an SpdkClientError) in its place. SPDK starts all of them before it
        finishes any, so calls that depend on one another's results must not share a batch (a subsystem and what is
        added to it may: the subsystem exists as soon as its request was read). No JSON array is sent: its answer would
        wait for the slowest member, and for ever if one never ends.
        """
        if self._closed or self._http is not None:
            return await self._each(calls, deadline)
        end = asyncio.get_running_loop().time() + deadline
        try:
            connection = self._connection
            if connection is None or not connection.usable:
                connection = await self._connect_for(f"{len(calls)} calls", deadline)
            outcomes = await connection.many(calls, end, deadline)
        except SpdkUnavailable as error:
            return [error] * len(calls)
        return [
            outcome if isinstance(outcome, SpdkClientError) else self._decode(Any, method, outcome)
            for (method, _), outcome in zip(calls, outcomes, strict=True)
        ]

    async def _each(self, calls: Sequence[tuple[str, Mapping[str, Any] | None]], deadline: float) -> list[Any]:
        results = await asyncio.gather(
            *(self.call(method, params, deadline=deadline) for method, params in calls), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, SpdkClientError):
                raise result
        return list(results)

    def _decode(self, kind: Any, method: str, raw: msgspec.Raw) -> Any:
        """The result, or the exception that says why there is none."""
        try:
            return _ANY.decode(raw) if kind is Any else msgspec.json.decode(raw, type=kind)
        except ValueError as error:
            # A DecodeError, or text that is no UTF-8 (SPDK 26.05 can send freed memory).
            return SpdkMalformedReply(f"SPDK at {self.address} answered {method} unexpectedly: {error}")

    async def close(self) -> None:
        self._closed = True
        for task in (self._reconnecting, self._connecting):
            if task is not None and not task.done():
                task.cancel()
                await asyncio.wait([task])
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def _connect_for(self, method: str, deadline: float) -> StreamConnection:
        try:
            async with asyncio.timeout(deadline):
                return await self._connected()
        except TimeoutError as error:
            raise SpdkTimeout(f"{method}: SPDK at {self.address} accepted no connection in {deadline:g} s") from error

    async def _connected(self) -> StreamConnection:
        if self._closed:
            raise SpdkUnavailable(f"the client of SPDK at {self.address} is closed")
        if self._connection is not None and self._connection.usable:
            return self._connection
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.get_running_loop().create_task(self._open(), name=f"connect {self.address}")
            # Its error is taken by whoever waits; when nobody does any more, that is no reason to complain.
            self._connecting.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(self._connecting)

    async def _open(self) -> StreamConnection:
        loop = asyncio.get_running_loop()
        address = self.address

        def factory() -> StreamConnection:
            return StreamConnection(str(address), self._lost)

        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                if isinstance(address, UnixAddress):
                    _, connection = await loop.create_unix_connection(factory, address.path)
                else:
                    assert isinstance(address, TcpAddress)
                    _, connection = await loop.create_connection(factory, address.host, address.port)
        except TimeoutError as error:
            raise SpdkUnavailable(f"SPDK at {address} accepted no connection in {_CONNECT_SECONDS:g} s") from error
        except OSError as error:
            raise SpdkUnavailable(f"SPDK at {address} cannot be reached: {error}; is it running?") from error
        self._connection = connection
        for callback in self._on_connect:
            callback()
        return connection

    def _lost(self, connection: StreamConnection, reason: SpdkUnavailable) -> None:
        if connection is not self._connection or self._closed:
            return
        self._connection = None
        _log.info("%s", reason)
        for callback in self._on_disconnect:
            callback(reason)
        if self._on_connect and (self._reconnecting is None or self._reconnecting.done()):
            self._reconnecting = asyncio.get_running_loop().create_task(
                self._reconnect(), name=f"reconnect {self.address}"
            )

    async def _reconnect(self) -> None:
        pauses = Pauses(_RECONNECT)
        while not self._closed:
            try:
                await self._connected()
                return
            except SpdkUnavailable:
                await pauses.wait()
