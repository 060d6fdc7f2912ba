"""What surrounds every call that a server answers: deadline, log line, metrics, exception to status."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from typing import Any

import grpc
import grpc.aio

from foundation.daemon import logs, metrics
from foundation.daemon.errors import ErrorTable
from foundation.daemon.identity import peer_identity
from foundation.tracing import spans

_log = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Calls that only ask come every few seconds from probes and side-cars; they are logged when they fail.
_ASKING = re.compile(r"(?:Node|Controller)?(?:Get|List|Probe|Stats|Inventory)")

_CANCELLED_WITHIN_SECONDS = 0.2

_SECONDS = metrics.histogram("grpc_server_seconds", "Time in which calls were answered.", ("service", "method", "code"))
_RUNNING = metrics.gauge("grpc_server_running", "Calls being answered.", ("service", "method"))

Context = grpc.aio.ServicerContext[Any, Any]


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps each handler once; all four kinds of call pass the same `_answer`."""

    def __init__(self, *, errors: ErrorTable, service: str, deadline: float, callers: Collection[str] | None) -> None:
        self._errors = errors
        self._service = service
        self._deadline = deadline
        self._callers = callers
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = handler_call_details.method
        wrapped = self._handlers.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            wrapped = self._handlers[method] = self._wrap(method, handler)
        return wrapped

    def _wrap(self, method: str, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        # A stream of answers lasts as long as the caller wants unless the caller says otherwise.
        streams = handler.response_streaming
        behaviour = (
            (handler.stream_stream if streams else handler.stream_unary)
            if handler.request_streaming
            else (handler.unary_stream if streams else handler.unary_unary)
        )
        deadline = None if streams else self._deadline

        async def answer(request: Any, context: Context) -> Any:
            return await self._answer(method, deadline, behaviour, request, context)

        kind = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[handler.request_streaming, streams]
        return kind(answer, handler.request_deserializer, handler.response_serializer)

    async def _answer(
        self, method: str, deadline: float | None, behaviour: Callable[..., Any], request: Any, context: Context
    ) -> Any:
        short = method.rpartition("/")[2]
        fields: dict[str, object] = {"request": _request_id(context), "method": method, "peer": context.peer()}
        code, details = grpc.StatusCode.OK, ""
        error: BaseException | None = None
        started = time.perf_counter()
        running = _RUNNING.labels(service=self._service, method=short)
        running.inc()
        try:
            with (
                logs.bound(request=fields["request"], method=method),
                spans.served(method, context.invocation_metadata(), request=str(fields["request"])),
            ):
                refusal = self._refusal(context)
                if refusal:
                    code, details = grpc.StatusCode.PERMISSION_DENIED, refusal
                else:
                    remaining = _remaining(context)
                    async with asyncio.timeout(deadline if remaining is None else remaining):
                        return await _result(behaviour, request, context)
        except grpc.aio.AbortError as aborted:
            code, details, error = _code_set(context), _details_set(context), aborted
        except asyncio.CancelledError:
            late = (_remaining(context) or 1.0) <= 0
            code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
            raise
        except grpc.aio.InternalError as failed:
            # So gRPC reports a caller that went away during a write, a moment before it cancels this task.
            try:
                await asyncio.sleep(_CANCELLED_WITHIN_SECONDS)
            except asyncio.CancelledError:
                code = grpc.StatusCode.CANCELLED
                raise
            error = failed
            code, details = self._status(failed, short, str(fields["request"]))
        except Exception as failed:
            error = failed
            code, details = self._status(failed, short, str(fields["request"]))
        finally:
            running.dec()
            seconds = time.perf_counter() - started
            if code is grpc.StatusCode.OK:
                code = _code_set(context)
            _SECONDS.labels(service=self._service, method=short, code=code.name).observe(seconds)
            self._record(short, code, details, error, {**fields, "seconds": round(seconds, 4)})
        if isinstance(error, grpc.aio.AbortError):
            raise error
        return await context.abort(code, logs.redact(details))

    def _refusal(self, context: Context) -> str:
        if self._callers is None or not context.peer_identity_key():
            return ""
        peer = peer_identity(context)
        if peer is None:
            return f"{self._service}: the caller's certificate names no component of this suite"
        if peer.component not in self._callers:
            return f"{self._service}: {peer} may not call this; callers are {', '.join(sorted(self._callers))}"
        return ""

    def _status(self, error: Exception, method: str, request: str) -> tuple[grpc.StatusCode, str]:
        code = self._errors.code(error)
        if not self._errors.knows(error):
            return code, f"internal error of {self._service} in {method}; its log tells more under request {request}"
        if isinstance(error, NotImplementedError) and str(error) in ("", "Method not implemented!"):
            return code, f"{self._service} does not implement {method}"
        return code, str(error) or (
            f"{method} was not done in its time; retry" if isinstance(error, TimeoutError) else type(error).__name__
        )

    def _record(
        self, method: str, code: grpc.StatusCode, details: str, error: BaseException | None, extra: dict[str, object]
    ) -> None:
        unexpected = error is not None and code is grpc.StatusCode.INTERNAL
        if unexpected:
            level = logging.ERROR
        elif code is grpc.StatusCode.OK:
            level = logging.DEBUG if _ASKING.match(method) else logging.INFO
        else:
            level = logging.INFO if code is grpc.StatusCode.CANCELLED else logging.WARNING
        if not _log.isEnabledFor(level):
            return
        trace = error if unexpected or _log.isEnabledFor(logging.DEBUG) else None
        text = f"{method} {code.name}: {details}" if details else f"{method} {code.name}"
        _log.log(level, "%s", text, extra={**extra, "code": code.name}, exc_info=trace)


async def _result(behaviour: Callable[..., Any], request: Any, context: Context) -> Any:
    result = behaviour(request, context)
    if isinstance(result, AsyncGenerator):
        # Closed here and not by the garbage collector: its cleaning up belongs to this call.
        async with contextlib.aclosing(result) as answers:
            async for answer in answers:
                await context.write(answer)
        return None
    # What a generated base class does for a method nobody wrote is a plain function that raises.
    return await result if isinstance(result, Awaitable) else result


def _remaining(context: Context) -> float | None:
    # None where the caller set no deadline, which types-grpcio leaves out.
    remaining: Any = context.time_remaining()
    return None if remaining is None else float(remaining)


def _request_id(context: Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID and isinstance(value, str) and _SAFE_ID.fullmatch(value):
            return value
    return uuid.uuid4().hex[:16]


def _code_set(context: Context) -> grpc.StatusCode:
    code: Any = context.code()
    if isinstance(code, grpc.StatusCode):
        return code
    # Before a status is set grpc.aio has 0 here, and the number of the code where a handler gave one.
    return next((known for known in grpc.StatusCode if known.value[0] == code), grpc.StatusCode.OK)


def _details_set(context: Context) -> str:
    details: Any = context.details()
    return details.decode("utf-8", "replace") if isinstance(details, bytes) else str(details or "")
