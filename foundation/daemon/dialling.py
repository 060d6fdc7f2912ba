"""Channels to other services: keepalive, quick reconnect, a deadline on every call."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from typing import Any

import grpc
import grpc.aio

from foundation.daemon import logs, metrics
from foundation.daemon.interceptors import REQUEST_ID
from foundation.daemon.renewing import RenewingChannel
from foundation.daemon.tls import Material, TlsFiles, WatchedFiles, channel_credentials
from foundation.tracing import spans

_log = logging.getLogger(__name__)
_SECONDS = metrics.histogram("grpc_client_seconds", "Time in which calls ended.", ("service", "method", "code"))

# A peer that vanished is noticed after the sum of both. Our servers allow pings this often (serving.py).
_KEEPALIVE_MS = 10_000
_KEEPALIVE_TIMEOUT_MS = 5_000


def dial(
    target: str, *, name: str, tls: TlsFiles | None = None, server_name: str = "", deadline: float = 10.0
) -> grpc.aio.Channel:
    """A channel to `unix:/path` or `host:port`; it connects with the first call and reconnects by itself within a
    second.

    `name` stands for the called service in logs and metrics. `server_name` is what the server's certificate must name
    where that is not the host of `target`. A call without a time-out of its own gets `deadline` seconds, unless its
    answers are a stream. Every call carries the request id of the call it is made for.

    :raises ValueError: TLS over a unix socket, or a host and port without TLS.
    :raises TlsError: the certificate files cannot be used.
    """
    options: list[tuple[str, Any]] = [
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        # Despite its name this is how long one attempt may take.
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.enable_http_proxy", 0),
        ("grpc.service_config_disable_resolution", 1),
        # Channels of one process to one target would otherwise share a connection and its certificate.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    interceptors = _interceptors(name, deadline)
    if target.startswith("unix:"):
        if tls is not None:
            raise ValueError(f"{name}: a unix socket ({target}) takes no TLS; its guard is its file mode")
        # Go servers close a connection whose authority is the socket's path.
        options.append(("grpc.default_authority", "localhost"))
        return grpc.aio.insecure_channel(target, options=options, interceptors=interceptors)
    if tls is None:
        raise ValueError(f"{name}: {target} is reached over the network, which takes TLS files")
    options += [
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    if server_name:
        options += [("grpc.ssl_target_name_override", server_name), ("grpc.default_authority", server_name)]

    def make(material: Material) -> grpc.aio.Channel:
        credentials = channel_credentials(material)
        return grpc.aio.secure_channel(target, credentials, options=options, interceptors=interceptors)

    return RenewingChannel(WatchedFiles(tls), make)


def _interceptors(name: str, deadline: float) -> list[grpc.aio.ClientInterceptor]:
    return [
        _UnaryUnary(name, deadline),
        _UnaryStream(name, deadline),
        _StreamUnary(name, deadline),
        _StreamStream(name, deadline),
    ]


class _Calls:
    """What the four kinds of call share."""

    def __init__(self, name: str, deadline: float) -> None:
        self._name = name
        self._deadline = deadline

    def _details(self, details: grpc.aio.ClientCallDetails, *, streams: bool) -> grpc.aio.ClientCallDetails:
        metadata = grpc.aio.Metadata(*(details.metadata or ()))
        if metadata.get(REQUEST_ID) is None:
            metadata[REQUEST_ID] = str(logs.context().get("request") or uuid.uuid4().hex[:16])
        for key, value in spans.carried().items():
            metadata[key] = value
        timeout = details.timeout
        if timeout is None and not streams:
            timeout = self._deadline
        return grpc.aio.ClientCallDetails(
            details.method, timeout, metadata, details.credentials, details.wait_for_ready
        )

    async def _finished(self, details: grpc.aio.ClientCallDetails, call: Any, started: float) -> None:
        """Wait for the call's end and record it; whoever gives up waiting gives up the call."""
        try:
            code, text = await call.code(), await call.details()
        except asyncio.CancelledError:
            call.cancel()
            self._record(details, grpc.StatusCode.CANCELLED, "", started)
            raise
        self._record(details, code, text, started)

    def _watch(self, details: grpc.aio.ClientCallDetails, call: Any, started: float) -> None:
        """Record the call when it ends, without waiting for it here."""
        loop = asyncio.get_running_loop()
        tasks: set[asyncio.Task[None]] = set()

        def ended(_: Any) -> None:
            if not loop.is_closed():
                task = loop.create_task(self._finished(details, call, started))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

        call.add_done_callback(ended)

    def _record(
        self, details: grpc.aio.ClientCallDetails, code: grpc.StatusCode, text: str | None, started: float
    ) -> None:
        seconds = time.perf_counter() - started
        raw: Any = details.method
        method = (raw.decode() if isinstance(raw, bytes) else str(raw)).rpartition("/")[2]
        _SECONDS.labels(service=self._name, method=method, code=code.name).observe(seconds)
        extra = {"service": self._name, "code": code.name, "seconds": round(seconds, 4)}
        if code in (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED):
            _log.debug("%s %s %s", self._name, method, code.name, extra=extra)
        else:
            _log.warning("%s %s %s: %s", self._name, method, code.name, text, extra=extra)


class _UnaryUnary(_Calls, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[Any]],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        started = time.perf_counter()
        details = self._details(client_call_details, streams=False)
        call = await continuation(details, request)
        await self._finished(details, call, started)
        return call


class _UnaryStream(_Calls, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[Any]],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        started = time.perf_counter()
        details = self._details(client_call_details, streams=True)
        call = await continuation(details, request)
        self._watch(details, call, started)
        return call


class _StreamUnary(_Calls, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[Any]],
        client_call_details: grpc.aio.ClientCallDetails,
        request_iterator: AsyncIterable[Any] | Iterable[Any],
    ) -> Any:
        started = time.perf_counter()
        details = self._details(client_call_details, streams=False)
        call = await continuation(details, request_iterator)
        self._watch(details, call, started)
        return call


class _StreamStream(_Calls, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[Any]],
        client_call_details: grpc.aio.ClientCallDetails,
        request_iterator: AsyncIterable[Any] | Iterable[Any],
    ) -> Any:
        started = time.perf_counter()
        details = self._details(client_call_details, streams=True)
        call = await continuation(details, request_iterator)
        self._watch(details, call, started)
        return call
