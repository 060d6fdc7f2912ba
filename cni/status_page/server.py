"""The page over HTTP/1.1: one file of HTML, one stream of server-sent events. GET only; nothing can be changed."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Final

import msgspec

from cni.status_page.following import Following, Update
from foundation.daemon.endpoint import why

PAGE: Final = Path(__file__).with_name("page.html")
_REQUEST_SECONDS: Final = 10.0
_BEAT_SECONDS: Final = 15.0
_WRITE_SECONDS: Final = 30.0
_LARGEST_HEAD: Final = 16 * 1024
_VIEWERS: Final = 64
_COMMON: Final = (
    "Cache-Control: no-store\r\nConnection: close\r\n"
    "X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n"
    # The page's own script and style stand in the file; it loads nothing, and nobody may frame it.
    "Content-Security-Policy: default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; frame-ancestors 'none'\r\n"
)

_USUAL_ENDS: Final = (
    TimeoutError,
    ConnectionError,
    asyncio.IncompleteReadError,
    asyncio.LimitOverrunError,
    asyncio.CancelledError,
)


class StatusPage:
    """`listen` is host:port; `address` says where it is, once started."""

    def __init__(self, following: Following) -> None:
        self._following = following
        self._page = PAGE.read_bytes()
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._viewers = 0
        self.address = ""

    async def start(self, listen: str) -> None:
        """Raises ValueError for what is no address, OSError for one that cannot be listened on."""
        host, colon, port = listen.rpartition(":")
        if not colon or not port.isdigit():
            raise ValueError(f"status_page.listen: expected host:port, got {listen!r}")
        try:
            self._server = await asyncio.start_server(
                self._serve, host.strip("[]") or None, int(port), limit=_LARGEST_HEAD
            )
        except (OSError, OverflowError) as error:
            raise OSError(f"status_page.listen: cannot listen on {listen}: {why(error)}") from None
        bound = self._server.sockets[0].getsockname()
        self.address = f"[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"{bound[0]}:{bound[1]}"

    async def stop(self) -> None:
        """Ends the server with all its streams."""
        if self._server is not None:
            self._server.close()
        for task in self._serving:
            task.cancel()
        if self._serving:
            await asyncio.wait(self._serving)
        await self._following.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
            method, _, rest = head.split(b"\r\n", 1)[0].decode("latin-1").partition(" ")
            await self._answer(method, rest.partition(" ")[0].partition("?")[0], reader, writer)
            writer.close()
        except _USUAL_ENDS:
            # A viewer that went away is no fault, and only `stop` cancels. Closing alone would keep what one that
            # reads nothing leaves lying.
            writer.transport.abort()
        finally:
            self._serving.discard(task)

    async def _answer(self, method: str, path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if method not in ("GET", "HEAD"):
            await _send(writer, "405 Method Not Allowed", b"this page can only be looked at\n", head=False)
        elif path == "/":
            await _send(writer, "200 OK", self._page, kind="text/html; charset=utf-8", head=method == "HEAD")
        elif path != "/events":
            await _send(writer, "404 Not Found", b"served here: / and /events\n", head=method == "HEAD")
        elif self._viewers >= _VIEWERS:
            await _send(writer, "503 Service Unavailable", b"too many viewers\n", head=method == "HEAD")
        else:
            self._viewers += 1
            try:
                await self._stream(reader, writer)
            finally:
                self._viewers -= 1

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Server-sent events (HTML standard, 9.2) until the viewer goes."""
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{_COMMON}\r\n".encode("latin-1"))
        queue: asyncio.Queue[Update] = asyncio.Queue(1)

        async def fill() -> None:
            async with contextlib.aclosing(self._following.updates()) as updates:
                async for update in updates:
                    await queue.put(update)

        filling = asyncio.create_task(fill())
        gone = asyncio.create_task(reader.read())
        try:
            while not gone.done():
                waiting = asyncio.create_task(queue.get())
                await asyncio.wait({waiting, gone, filling}, timeout=_BEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if waiting.done():
                    writer.write(b"data: " + msgspec.json.encode(waiting.result()) + b"\n\n")
                else:
                    waiting.cancel()
                    if filling.done():
                        return
                    writer.write(b": still here\n\n")
                async with asyncio.timeout(_WRITE_SECONDS):
                    await writer.drain()
        finally:
            for task in (filling, gone):
                task.cancel()
            await asyncio.wait({filling, gone})


async def _send(
    writer: asyncio.StreamWriter, status: str, body: bytes, *, kind: str = "text/plain", head: bool
) -> None:
    top = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{_COMMON}\r\n"
    writer.write(top.encode("latin-1") + (b"" if head else body))
    async with asyncio.timeout(_WRITE_SECONDS):
        await writer.drain()
