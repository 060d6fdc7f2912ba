"""Answers cni-bin on a unix socket: one call a connection, every verb, errors as CNI error objects."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from cni.node import request, result, wire
from cni.node.errors import CniNodeError, NotAvailable, code_of
from cni.node.own_pods import OwnPods
from cni.node.request import Call
from foundation.daemon import logs, metrics
from foundation.daemon.sockets import bind_unix
from foundation.tracing import spans

_log = logging.getLogger(__name__)
_SECONDS = metrics.histogram("cni_seconds", "Time of a CNI call.", ("verb", "code"))
_BACKLOG = 512
_READ_SECONDS = 10.0

Output = dict[str, Any] | None


class CniServer:
    """`pods` is None while cni-node is still starting: calls then get NotAvailable or TryLater."""

    def __init__(self, pods: OwnPods, swept: Callable[[], None]) -> None:
        self._pods = pods
        self._swept = swept
        self._server: asyncio.Server | None = None
        self._calls: set[asyncio.Task[Any]] = set()

    async def listen(self, path: Path) -> None:
        """Only root may call. Raises OSError, ValueError for a path that cannot be used."""
        self._server = await asyncio.start_unix_server(
            self._connected, sock=bind_unix(path, mode=0o600), backlog=_BACKLOG
        )

    async def stop(self) -> None:
        """No new calls; those running are ended, which undoes them."""
        if self._server is not None:
            self._server.close()
        for call in tuple(self._calls):
            call.cancel()
        if self._calls:
            await asyncio.wait(self._calls)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        try:
            async with asyncio.timeout(_READ_SECONDS):
                raw = await wire.read_call(reader)
            # The caller sends nothing more: what can be read now is only its end.
            gone = asyncio.ensure_future(reader.read(1))
            work = asyncio.ensure_future(self._answer(raw, writer))
            try:
                await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    _log.info("the runtime gave up its call")
                    return
                work.result()
                await writer.drain()
            finally:
                gone.cancel()
                work.cancel()
                await asyncio.wait({work})
        except CniNodeError as error:
            writer.write(wire.answer(1, _failure(request.NEWEST, error)))
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError) as error:
            _log.warning("a CNI call was broken off: %r", error)
        finally:
            self._calls.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer(self, raw: wire.RawCall, writer: asyncio.StreamWriter) -> None:
        """The runtime waits for the answer only: what is to be recorded of the call comes after it."""
        verb = raw.variables.get("CNI_COMMAND", "")
        started = asyncio.get_running_loop().time()
        code = 0
        with logs.bound(verb=verb, sandbox=raw.variables.get("CNI_CONTAINERID", "")[:12]):
            try:
                call = request.parse(raw.variables, raw.config)
                pod = f"{call.pod_namespace}/{call.pod_name}"
                with logs.bound(pod=pod), spans.span(f"CNI {verb}", pod=pod):
                    output = await self._verb(verb)(call)
                writer.write(wire.answer(0, msgspec.json.encode(output) + b"\n" if output is not None else b""))
            except CniNodeError as error:
                code = code_of(error)
                writer.write(wire.answer(1, _failure(request.version_of(raw.config), error)))
                details = f" ({error.details})" if error.details else ""
                log = _log.info if isinstance(error, NotAvailable) else _log.warning
                log("%s failed with code %d: %s%s", verb, code, error, details)
            except Exception as error:
                code = code_of(error)
                fault = CniNodeError("cni-node met a fault of its own; its log has the trace", details=repr(error))
                writer.write(wire.answer(1, _failure(request.version_of(raw.config), fault)))
                _log.exception("%s failed by a fault of cni-node", verb)
            finally:
                known = verb if verb in request.VERBS else "unknown"
                seconds = asyncio.get_running_loop().time() - started
                _SECONDS.labels(verb=known, code=str(code)).observe(seconds)
                if code == 0 and verb in ("ADD", "DEL"):
                    _log.info("%s done", verb, extra={"seconds": round(seconds, 4)})

    def _verb(self, verb: str) -> Callable[[Call], Awaitable[Output]]:
        return {
            "ADD": self._pods.add,
            "DEL": self._delete,
            "CHECK": self._check,
            "GC": self._collect,
            "STATUS": self._status,
            "VERSION": self._version,
        }[verb]

    async def _delete(self, call: Call) -> Output:
        await self._pods.delete(call)
        return None

    async def _check(self, call: Call) -> Output:
        await self._pods.check(call)
        return None

    async def _collect(self, call: Call) -> Output:
        await self._pods.gc(call)
        self._swept()
        return None

    async def _status(self, _: Call) -> Output:
        await self._pods.status()
        return None

    async def _version(self, _: Call) -> Output:
        return {"cniVersion": request.NEWEST, "supportedVersions": list(request.VERSIONS)}


def _failure(version: str, error: CniNodeError) -> bytes:
    told = result.failure(version=version, code=code_of(error), message=str(error), details=error.details)
    return msgspec.json.encode(told) + b"\n"
