"""SPDK's JSON-RPC socket: what it reads at once it runs at once, every 4 ms, and answers as each call finishes."""

from __future__ import annotations

import asyncio
import codecs
import inspect
import json
import logging
import os
import socket
from collections.abc import Awaitable, Coroutine, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.spdk.dispatch import invoke
from lab.spdk.failures import INTERNAL_ERROR, INVALID_REQUEST, RpcFailure
from lab.spdk.faults import Faults, Faulty, spoil
from lab.spdk.json_text import BLANK, Malformed, Number, Pairs, read_value

if TYPE_CHECKING:
    from lab.spdk.instance import Instance

_log = logging.getLogger(__name__)

MAX_CONNECTIONS = 64
RECEIVE_BUFFER = 256 * 1024
_INVALID = {"jsonrpc": "2.0", "id": None, "error": {"code": INVALID_REQUEST, "message": "Invalid request"}}


def _dump(value: Any) -> bytes:
    # Surrogates stand for bytes that are no UTF-8: the freed memory that SPDK sends in one known case.
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogateescape")


def _identifier(value: Any) -> bytes:
    return str(value).encode() if isinstance(value, Number) else _dump(value)


class _Resumed:
    """The rest of a coroutine that was already run to its first wait."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], waits_for: Any) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, Any]:
        waits_for = self._waits_for
        while True:
            try:
                try:
                    sent = yield waits_for
                except BaseException as error:
                    waits_for = self._coroutine.throw(error)
                else:
                    waits_for = self._coroutine.send(sent)
            except StopIteration as end:
                return end.value


class Call:
    """One request under way; ``done`` gets its reply's bytes, empty for a notification that succeeded."""

    def __init__(self, identifier: Any, notification: bool, method: str) -> None:
        self.identifier = identifier
        self.notification = notification
        self.method = method

    def result(self, value: Any) -> bytes:
        if self.notification:
            return b""
        return b'{"jsonrpc":"2.0","id":' + _identifier(self.identifier) + b',"result":' + _dump(value) + b"}"

    def error(self, failure: RpcFailure) -> bytes:
        identifier = b"null" if self.notification else _identifier(self.identifier)
        body = _dump({"code": failure.code, "message": failure.message})
        return b'{"jsonrpc":"2.0","id":' + identifier + b',"error":' + body + b"}"


class Batch:
    """Replies of an array's members, in order of completion."""

    def __init__(self, connection: Connection, members: int) -> None:
        self.connection = connection
        self.open = members
        self.replies: list[bytes] = []

    def reply(self, data: bytes) -> None:
        if data:
            self.replies.append(data)
        self.open -= 1
        if self.open == 0 and self.replies:
            self.connection.reply(b"[" + b",".join(self.replies) + b"]")


class Connection(asyncio.Protocol):
    def __init__(self, server: RpcServer) -> None:
        self.server = server
        self.transport: asyncio.Transport | None = None
        self.received = bytearray()
        self.outgoing: list[bytes] = []
        self.half_closed = False
        self.gone = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.server.wake(self)

    def eof_received(self) -> bool:
        self.half_closed = True
        self.server.wake(self)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        # What was received is still executed; only the replies are lost.
        self.gone = True
        self.server.wake(self)
        self.server.closed(self)

    def reply(self, data: bytes) -> None:
        if data and not self.gone:
            self.outgoing.append(data + b"\n")
            self.server.wake(self)

    def turn(self) -> None:
        """One look of the server at this connection: requests run, then what is ready is sent."""
        try:
            self._read()
        except (Malformed, UnicodeDecodeError) as error:
            _log.info("malformed request, connection closed: %s", error)
            self.outgoing.clear()
            self.drop()
            return
        if self.outgoing and self.transport is not None and not self.gone:
            self.transport.write(b"".join(self.outgoing))
            self.outgoing.clear()
        if self.half_closed and self.transport is not None:
            # What is under way still happens, and half a request never will: neither gets an answer.
            self.transport.close()

    def drop(self) -> None:
        self.gone = True
        if self.transport is not None:
            self.transport.abort()

    def _read(self) -> None:
        if not self.received:
            return
        # A character may be cut at the end of what has come.
        text, _ = codecs.utf_8_decode(bytes(self.received), "strict", False)
        at = 0
        while True:
            while at < len(text) and text[at] in BLANK:
                at += 1
            if at == len(text):
                break
            read = read_value(text, at)
            if read is None:
                break
            value, end = read
            if end - at >= RECEIVE_BUFFER:
                raise Malformed("the request is larger than the receive buffer")
            at = end
            self._message(value)
        consumed = len(text[:at].encode())
        incomplete = len(self.received) - consumed
        if incomplete >= RECEIVE_BUFFER:
            raise Malformed("the request is larger than the receive buffer")
        del self.received[:consumed]

    def _message(self, value: Any) -> None:
        if isinstance(value, list) and not isinstance(value, Pairs):
            if not value:
                self.reply(_dump(_INVALID))
                return
            batch = Batch(self, len(value))
            for member in value:
                self.server.start(member, batch)
            return
        self.server.start(value, self)


Replies = Connection | Batch | Faulty


class RpcServer:
    """``beat``: seconds between two looks at the sockets (SPDK: 0.004); nothing runs while nothing comes."""

    def __init__(self, instance: Instance, *, beat: float, faults: Faults | None = None) -> None:
        self.instance = instance
        self.beat = beat
        self.faults = faults
        self._sockets: dict[str, socket.socket] = {}
        self._connections: set[Connection] = set()
        self._ready: dict[Connection, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting = False

    def listen(self, path: str) -> None:
        """Takes over a socket file that a killed process left behind; refuses one that somebody answers on."""
        if Path(path).is_socket():
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(path)
                except ConnectionRefusedError:
                    os.unlink(path)
                else:
                    raise SystemExit(f"{path} is in use: another SPDK answers there")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(128)
        listener.setblocking(False)
        self._sockets[path] = listener
        self._accept_when_free()

    def close(self) -> None:
        for path, listener in self._sockets.items():
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
            Path(path).unlink(missing_ok=True)
        self._sockets.clear()
        for connection in list(self._connections):
            connection.drop()

    def _accept_when_free(self) -> None:
        loop = asyncio.get_running_loop()
        for listener in self._sockets.values():
            if len(self._connections) < MAX_CONNECTIONS:
                loop.add_reader(listener, self._accept, listener)
            else:
                loop.remove_reader(listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            accepted, _ = listener.accept()
        except (BlockingIOError, InterruptedError):
            return
        accepted.setblocking(False)
        connection = Connection(self)
        self._connections.add(connection)
        self._spawn(self._adopt(connection, accepted))
        self._accept_when_free()

    async def _adopt(self, connection: Connection, accepted: socket.socket) -> None:
        # A new connection is looked at one beat after it was accepted.
        await asyncio.sleep(self.beat)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, accepted)

    def closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if self._sockets:
            self._accept_when_free()

    def wake(self, connection: Connection) -> None:
        self._ready[connection] = None
        if self._timer is None:
            loop = asyncio.get_running_loop()
            now = loop.time()
            at = (int(now / self.beat) + 1) * self.beat if self.beat else now
            self._timer = loop.call_at(at, self._turn)

    def _turn(self) -> None:
        self._timer = None
        ready, self._ready = self._ready, {}
        for connection in ready:
            connection.turn()
        # Those whose replies left in this same look have nothing more to do.
        self._ready = {connection: None for connection in self._ready if connection.outgoing}
        if not self._ready:
            self._disarm()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def start(self, value: Any, replies: Connection | Batch) -> None:
        call, params = _request(value)
        if isinstance(call, bytes):
            replies.reply(call)
            return
        spoilt = spoil(self.faults, call, replies)
        if spoilt is None:
            return
        self._run(call, params, spoilt)

    def _run(self, call: Call, params: Any, replies: Replies) -> None:
        try:
            answer = invoke(self.instance, call.method, params)
        except RpcFailure as failure:
            replies.reply(call.error(failure))
            return
        except Exception:
            self._own_fault(call, replies)
            return
        if inspect.iscoroutine(answer):
            self._begin(call, answer, replies)
        else:
            replies.reply(call.result(answer))

    def _begin(self, call: Call, answer: Coroutine[Any, Any, Any], replies: Replies) -> None:
        """Runs it to its first wait here: the requests of one read see what those before them have begun."""
        try:
            waits_for = answer.send(None)
        except StopIteration as end:
            replies.reply(call.result(end.value))
        except RpcFailure as failure:
            replies.reply(call.error(failure))
        except Exception:
            self._own_fault(call, replies)
        else:
            self._spawn(self._finish(call, _Resumed(answer, waits_for), replies))

    async def _finish(self, call: Call, answer: Awaitable[Any], replies: Replies) -> None:
        try:
            replies.reply(call.result(await answer))
        except RpcFailure as failure:
            replies.reply(call.error(failure))
        except Exception:
            self._own_fault(call, replies)

    def _own_fault(self, call: Call, replies: Replies) -> None:
        """A mistake of the stand-in must not pass for an answer of SPDK's, nor for a hang."""
        _log.exception("%s failed in the stand-in itself", call.method)
        replies.reply(call.error(RpcFailure(INTERNAL_ERROR, "the stand-in itself failed: see its log")))

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a call failed in the stand-in itself", exc_info=error)


def _request(value: Any) -> tuple[Call | bytes, Any]:
    """The call, or the reply to something that is none."""
    invalid = _dump(_INVALID)
    if not isinstance(value, Pairs):
        return invalid, None
    members = dict(value)
    if len(members) != len(value) or not members.keys() <= {"jsonrpc", "method", "params", "id"}:
        return invalid, None
    identifier = members.get("id")
    if not (identifier is None or isinstance(identifier, str)):
        return invalid, None
    name = members.get("method")
    if members.get("jsonrpc", "2.0") != "2.0" or not isinstance(name, str) or isinstance(name, Number):
        return invalid, None
    call = Call(identifier, identifier is None, name)
    params = members.get("params")
    if params is not None and not isinstance(params, list):
        return call.error(RpcFailure(INVALID_REQUEST, "Invalid request")), None
    return call, params
