"""HTTP towards the API server: one pooled session, status codes to exceptions, retries of what may be repeated."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp

from foundation.daemon.backoff import Backoff, Pauses
from foundation.kube.configuration import Connection
from foundation.kube.errors import KubeError, Unauthorized, Unavailable, decode_status, from_status

CONNECT_SECONDS = 5.0
POOL = 256
READ_BUFFER = 1 << 18


class Body:
    """The body of an answer that goes on and on."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.readany = answer.content.readany
        self._socket = answer.connection.transport if answer.connection is not None else None
        if self._socket is not None and hasattr(self._socket, "set_read_buffer_limits"):
            # a TLS transport that is held would still take in 256 KiB, a wake-up for each record
            self._socket.set_read_buffer_limits(high=1, low=0)

    def hold(self, held: bool) -> None:
        """Leave what arrives in the socket, where it costs nothing, or take it again."""
        if self._socket is None or self._socket.is_closing():
            return
        if held:
            self._socket.pause_reading()
        else:
            self._socket.resume_reading()


class Transport:
    """Sends requests and gives bodies as bytes. Every call has a deadline in seconds."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._session: aiohttp.ClientSession | None = None

    @property
    def connection(self) -> Connection:
        """What this transport talks to."""
        return self._connection

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=POOL, ssl=self._connection.ssl_context or True),
                # a compressed list costs more CPU to unpack than to decode, and the cluster's network is near
                headers={"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "dpu-offload"},
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS),
                read_bufsize=READ_BUFFER,
            )
        return self._session

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        content_type: str = "application/json",
        deadline: float,
        repeatable: bool,
    ) -> bytes:
        """The body of a 2xx answer; KubeError otherwise, Unavailable when the deadline passes.

        A `repeatable` request is tried again on 429, 5xx and a lost connection; another one only on 429, where the
        server says that it has not looked at it. The pause is the server's Retry-After, else it grows with jitter.
        """
        pauses = Pauses(Backoff(0.05, 2.0, jitter=0.5))
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline
        renew = renewed = False
        last: KubeError | None = None
        while True:
            try:
                async with asyncio.timeout_at(end):
                    return await self._once(method, path, query, body, content_type, renew=renew)
            except TimeoutError as error:
                why = f"; before that: {last}" if last else ""
                raise Unavailable(f"{method} {path}: no answer within {deadline:g} s{why}", reason="Timeout") from error
            except Unauthorized:
                if renewed:
                    raise
                renew = renewed = True  # a token may have been rotated under us: read it again, once
            except Unavailable as error:
                renew = False
                if not (repeatable or error.code == 429):
                    raise
                last = error
                pause = pauses.next(at_least=error.retry_after)
                if loop.time() + pause >= end:
                    raise
                await asyncio.sleep(pause)

    async def _once(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: bytes | None,
        content_type: str,
        *,
        renew: bool,
    ) -> bytes:
        try:
            async with self._open().request(
                method, self._connection.server + path, **await self._options(query, body, content_type, renew=renew)
            ) as answer:
                content = await answer.read()
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(f"{method} {path}: {_sentence(error)}", reason="ConnectionLost") from error
        if answer.status >= 300:
            raise _refusal(answer, content, f"{method} {path}")
        return content

    @contextlib.asynccontextmanager
    async def stream(self, path: str, *, query: Mapping[str, str], idle: float) -> AsyncIterator[Body]:
        """The body of an endless answer, read as it comes; `idle` seconds without a byte end it (TimeoutError).

        Raises KubeError when the server refuses, and Unavailable when the connection breaks.
        """
        try:
            options = await self._options(query, None, "", renew=False)
            timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS, sock_read=idle)
            async with self._open().get(self._connection.server + path, timeout=timeout, **options) as answer:
                if answer.status >= 300:
                    if answer.status == 401:
                        await self._connection.credentials.header(renew=True)
                    raise _refusal(answer, await answer.read(), f"GET {path}")
                try:
                    yield Body(answer)
                finally:
                    answer.close()  # an unfinished body must not go back to the pool
        except aiohttp.ConnectionTimeoutError as error:
            raise Unavailable(f"GET {path}: {_sentence(error)}", reason="ConnectionLost") from error
        except TimeoutError:
            raise
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(f"GET {path}: {_sentence(error)}", reason="ConnectionLost") from error

    async def _options(
        self, query: Mapping[str, str] | None, body: bytes | None, content_type: str, *, renew: bool
    ) -> dict[str, Any]:
        headers = {}
        authorization = await self._connection.credentials.header(renew=renew)
        if authorization:
            headers["Authorization"] = authorization
        if body is not None:
            headers["Content-Type"] = content_type
        options: dict[str, Any] = {"headers": headers, "params": query, "data": body, "allow_redirects": False}
        if self._connection.proxy:
            options["proxy"] = self._connection.proxy
        if self._connection.server_hostname:
            options["server_hostname"] = self._connection.server_hostname
        return options


def _refusal(answer: aiohttp.ClientResponse, body: bytes, request: str) -> KubeError:
    try:
        retry_after = float(answer.headers.get("Retry-After", "0"))
    except ValueError:
        retry_after = 0.0  # a date: only proxies send one, and their clock is not ours
    return from_status(decode_status(body), request=request, code=answer.status, retry_after=retry_after)


def _sentence(error: BaseException) -> str:
    return str(error) or type(error).__name__
