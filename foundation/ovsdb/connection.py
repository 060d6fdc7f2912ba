"""One JSON-RPC connection to an OVSDB server: requests out, replies matched by id, notifications handed on."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import msgspec

from foundation.ovsdb.errors import ConnectionLost, ProtocolViolation, RequestRefused, Unavailable
from foundation.ovsdb.framing import Framer, Message
from foundation.ovsdb.remotes import OvsdbTls, Remote, tls_context

_ENCODER = msgspec.json.Encoder()


class Connection(asyncio.Protocol):
    """Not for direct construction: use `connect`. `closed` resolves to the reason once the peer is gone."""

    def __init__(self, on_notification: Callable[[str, msgspec.Raw], None]) -> None:
        loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[str] = loop.create_future()
        self.last_heard = loop.time()
        self._loop = loop
        self._framer = Framer()
        self._ids = itertools.count(1)
        self._pending: dict[int, asyncio.Future[msgspec.Raw]] = {}
        self._on_notification = on_notification
        self._transport: asyncio.WriteTransport | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self.last_heard = self._loop.time()
        try:
            for message in self._framer.feed(data):
                self._dispatch(message)
        except ProtocolViolation as error:
            self.close(str(error))

    def connection_lost(self, exc: Exception | None) -> None:
        self.close(str(exc) if exc else "the peer closed the connection")

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _dispatch(self, message: Message) -> None:
        if message.method is None:
            future = self._pending.pop(message.id, None) if isinstance(message.id, int) else None
            if future is None or future.done():
                return  # its caller has given up
            if message.error is not None:
                future.set_exception(RequestRefused(f"the OVSDB server refused a request: {message.error}"))
            else:
                future.set_result(message.result)
        elif message.method == "echo":
            self._write({"id": message.id, "result": message.params, "error": None})
        elif message.id is None:
            self._on_notification(message.method, message.params)
        else:
            self._write({"id": message.id, "result": None, "error": "unknown method"})

    def _write(self, message: dict[str, Any]) -> None:
        if self._transport is not None and not self.closed.done():
            self._transport.write(_ENCODER.encode(message))

    def send(self, method: str, params: Any) -> asyncio.Future[msgspec.Raw]:
        """Sends a request at once; the future holds the raw result.

        It fails with RequestRefused (an error answer) or ConnectionLost (outcome unknown).
        Raises Unavailable if closed.
        """
        if self.closed.done():
            raise Unavailable(f"the OVSDB connection is closed: {self.closed.result()}")
        number = next(self._ids)
        future: asyncio.Future[msgspec.Raw] = self._loop.create_future()
        self._pending[number] = future
        self._write({"id": number, "method": method, "params": params})
        return future

    async def call(self, method: str, params: Any) -> msgspec.Raw:
        """Like `send`, but waits for room in the socket first and for the answer after."""
        if not self._writable.is_set():
            await self._writable.wait()
        return await self.send(method, params)

    def close(self, reason: str = "closed by us") -> None:
        """Ends the connection; requests in flight fail with ConnectionLost."""
        if not self.closed.done():
            self.closed.set_result(reason)
        self._writable.set()
        pending, self._pending = self._pending, {}
        for future in pending.values():
            if not future.done():
                future.set_exception(ConnectionLost(f"the OVSDB connection was lost before an answer: {reason}"))
                future.exception()  # a caller that timed out is not there to look
        if self._transport is not None:
            self._transport.abort()


async def connect(
    remote: Remote, on_notification: Callable[[str, msgspec.Raw], None], *, tls: OvsdbTls | None, deadline: float
) -> Connection:
    """Opens a connection. Raises Unavailable with the reason, within `deadline` seconds."""
    loop = asyncio.get_running_loop()

    def factory() -> Connection:
        return Connection(on_notification)

    try:
        async with asyncio.timeout(deadline):
            if remote.path:
                _, connection = await loop.create_unix_connection(factory, remote.path)
            else:
                context = None
                if remote.tls:
                    if tls is None:
                        raise Unavailable(f"{remote} needs TLS files (authority, certificate, key)")
                    context = await asyncio.to_thread(tls_context, tls)
                _, connection = await loop.create_connection(
                    factory,
                    remote.host,
                    remote.port,
                    ssl=context,
                    server_hostname=remote.host if context is not None else None,
                )
            return connection
    except TimeoutError:
        raise Unavailable(f"{remote} did not accept a connection within {deadline} s") from None
    except OSError as error:  # ssl.SSLError is one too
        raise Unavailable(f"cannot connect to {remote}: {error}") from error
