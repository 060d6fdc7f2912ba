"""The HTTP endpoint of a daemon: /metrics, /healthz, /readyz, with what the daemon itself has to say in JSON.

Sixty lines of HTTP/1.1 rather than a web framework: aiohttp's server alone would cost 17 MiB in every daemon of every
node.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeAlias
from urllib.parse import parse_qsl

import msgspec

from foundation.daemon import logs, metrics
from foundation.daemon.health import Health
from foundation.daemon.sockets import bind_unix

_log = logging.getLogger(__name__)

_REQUEST_SECONDS = 5.0
_ANSWER_SECONDS = 30.0
_LARGEST_HEAD = 16 * 1024
_JSON = "application/json"
_STATUS = {200: "OK", 400: "Bad Request", 404: "Not Found", 503: "Service Unavailable"}

Page: TypeAlias = Callable[[Mapping[str, str]], Awaitable[tuple[int, object]]]
"""Gets the query's parameters; gives the status (200, 400, 404 or 503) and what is sent as JSON."""


class Endpoint:
    """Serves one daemon's metrics and health; `address` is where, once started."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._server: asyncio.Server | None = None
        self._path: Path | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._pages: dict[str, Page] = {}
        self.address = ""

    def serve(self, path: str, page: Page) -> None:
        """Answer GET requests for `path`, such as "/offload", with `page`."""
        self._pages[path] = page

    async def start(self, listen: str) -> None:
        """Listen on `host:port`, `[v6]:port` or `unix:/path`.

        :raises OSError: the address is taken or not ours.
        :raises ValueError: it is no address.
        """
        if listen.startswith("unix:"):
            self._path = Path(listen.removeprefix("unix:"))
            listener = bind_unix(self._path, mode=0o600)
            self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=_LARGEST_HEAD)
            self.address = listen
            return
        host, colon, port = listen.rpartition(":")
        if not colon or not port.isdigit():
            raise ValueError(f"http: expected host:port or unix:/path, got {listen!r}")
        try:
            self._server = await asyncio.start_server(
                self._serve, host.strip("[]") or None, int(port), limit=_LARGEST_HEAD
            )
        except (OSError, OverflowError) as error:
            raise OSError(f"http: cannot listen on {listen}: {why(error)}") from None
        bound = self._server.sockets[0].getsockname()
        self.address = f"[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"{bound[0]}:{bound[1]}"

    async def stop(self) -> None:
        """Stop listening; a request that is half read is dropped."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in self._serving:
            task.cancel()
        if self._serving:
            await asyncio.wait(self._serving)
        if self._path is not None:
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISSOCK(self._path.lstat().st_mode):
                    self._path.unlink()
            self._path = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._serving.add(task)
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
            async with asyncio.timeout(_ANSWER_SECONDS):
                status, kind, body = await self._answer(head.split(b"\r\n", 1)[0].decode("latin-1"))
                writer.write(
                    f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
                    "Cache-Control: no-store\r\nConnection: close\r\n\r\n".encode("latin-1")
                )
                if not head.startswith(b"HEAD "):
                    writer.write(body)
                await writer.drain()
        except TimeoutError:
            # Closing alone would keep what it does not read for as long as it likes.
            writer.transport.abort()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass  # A client that went away or talks something else is its own affair.
        except asyncio.CancelledError:
            # Only `stop` cancels, and asyncio.streams reports a handler that ends cancelled as an error.
            writer.transport.abort()
        finally:
            writer.close()
            if task is not None:
                self._serving.discard(task)

    async def _answer(self, request_line: str) -> tuple[str, str, bytes]:
        method, _, rest = request_line.partition(" ")
        path, _, query = rest.partition(" ")[0].partition("?")
        served = ("/metrics", "/healthz", "/readyz", *self._pages)
        if path not in served:
            return "404 Not Found", "text/plain", f"served here: {' '.join(served)}\n".encode()
        if method not in ("GET", "HEAD"):
            return "405 Method Not Allowed", "text/plain", b"only GET and HEAD\n"
        if path in self._pages:
            return await self._page(path, dict(parse_qsl(query, keep_blank_values=True)))
        if path == "/metrics":
            kind, body = metrics.exposition()
            return "200 OK", kind, body
        if path == "/healthz":
            # The event loop wrote this, so it runs; a probe's own time-out finds the loop that does not.
            return "200 OK", _JSON, b'{"live":true}\n'
        checks = {
            name: {"ok": check.ok, "reason": logs.redact(check.reason)}
            for name, check in sorted(self._health.checks.items())
        }
        ready = self._health.ready
        status = "200 OK" if ready else "503 Service Unavailable"
        return status, _JSON, msgspec.json.encode({"ready": ready, "checks": checks}) + b"\n"

    async def _page(self, path: str, parameters: Mapping[str, str]) -> tuple[str, str, bytes]:
        try:
            number, content = await self._pages[path](parameters)
        except Exception:
            _log.exception("answering %s failed by a fault of ours", path)
            return "500 Internal Server Error", _JSON, b'{"error":"the daemon\'s log has the reason"}\n'
        return f"{number} {_STATUS[number]}", _JSON, msgspec.json.encode(content) + b"\n"


def why(error: OSError | OverflowError) -> str:
    """Why a listener could not be had, without asyncio's repetition of the address."""
    if isinstance(error, socket.gaierror):
        return str(error.strerror)
    return os.strerror(error.errno or 0) if isinstance(error, OSError) else "a port is a number up to 65535"
