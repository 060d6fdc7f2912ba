"""Faults on demand, for tests: a control socket that is absent unless asked for.

One JSON object a line, answered by {"ok":true}:
{"do":"delay","method","seconds","times"}: the reply comes later;
{"do":"drop","method","times"}: the connection is cut instead of a reply;
{"do":"garble","method","times"}: a reply that is no JSON;
{"do":"silence","method","times"}: not carried out, never answered;
{"do":"hold","method","times"}: the reply waits for a clear; {"held":method} tells the asker that it does;
{"do":"clear"}: no more of it.
``method`` "*" is any; ``times`` 0 is for ever. But for silence the call itself is carried out.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lab.spdk.server import Batch, Call, Connection


@dataclass
class Fault:
    do: str
    method: str
    times: int = 1
    seconds: float = 0.0
    writer: asyncio.StreamWriter | None = None
    """Who asked for it."""


class Faults:
    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._held: list[Callable[[], None]] = []
        self._server: asyncio.Server | None = None

    async def listen(self, path: str) -> None:
        self._server = await asyncio.start_unix_server(self._serve, path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            asked: dict[str, Any] = json.loads(line)
            if asked["do"] == "clear":
                self._clear()
            else:
                self._faults.append(Fault(**asked, writer=writer))
            writer.write(b'{"ok":true}\n')
            await writer.drain()
        writer.close()

    def _clear(self) -> None:
        self._faults.clear()
        held, self._held = self._held, []
        for release in held:
            release()

    def hold(self, fault: Fault, method: str, release: Callable[[], None]) -> None:
        """Keep a reply back until the next clear."""
        self._held.append(release)
        if fault.writer is not None and not fault.writer.is_closing():
            fault.writer.write(json.dumps({"held": method}).encode() + b"\n")

    def take(self, method: str) -> Fault | None:
        """The fault that hits this call, if one does; counted as used."""
        for fault in self._faults:
            if fault.method in ("*", method):
                if fault.times:
                    fault.times -= 1
                    if not fault.times:
                        self._faults.remove(fault)
                return fault
        return None


class Faulty:
    """Takes a call's reply and spoils it."""

    def __init__(
        self, faults: Faults, fault: Fault, method: str, replies: Connection | Batch, connection: Connection
    ) -> None:
        self._faults = faults
        self._fault = fault
        self._method = method
        self._replies = replies
        self._connection = connection

    def reply(self, data: bytes) -> None:
        if self._fault.do == "delay":
            asyncio.get_running_loop().call_later(self._fault.seconds, self._replies.reply, data)
        elif self._fault.do == "hold":
            self._faults.hold(self._fault, self._method, lambda: self._replies.reply(data))
        elif self._fault.do == "drop":
            self._connection.drop()
        elif self._fault.do == "garble":
            self._replies.reply(data[: len(data) // 2] + b"\xff}{")


def spoil(faults: Faults | None, call: Call, replies: Connection | Batch) -> Connection | Batch | Faulty | None:
    """Where the reply of ``call`` goes; None when it is never to be answered."""
    fault = faults.take(call.method) if faults else None
    if faults is None or fault is None:
        return replies
    if fault.do == "silence":
        return None
    from lab.spdk.server import Batch

    connection = replies.connection if isinstance(replies, Batch) else replies
    return Faulty(faults, fault, call.method, replies, connection)
