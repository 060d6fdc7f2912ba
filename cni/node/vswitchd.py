"""Asking ovs-vswitchd over its control socket (ovs-appctl's protocol: JSON-RPC, one request after another)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path

import msgspec

from cni.node.datapath import Flow, parse
from cni.node.errors import TryLater
from foundation.ovsdb import OvsdbError
from foundation.ovsdb.framing import Framer

_SECONDS = 10.0
_CHUNK = 1 << 16


class Vswitchd:
    """`run_directory` holds its control socket: `ovs-vswitchd.<pid>.ctl`, or one that was named on its start."""

    def __init__(self, run_directory: Path) -> None:
        self._directory = run_directory

    async def flows(self) -> tuple[Flow, ...]:
        """All flows of the kernel's datapath. Raises TryLater when ovs-vswitchd does not answer."""
        # Options before filters: behind one they are silently ignored.
        text = await self.command("dpctl/dump-flows", "-m")
        return await asyncio.to_thread(lambda: tuple(parse(text)))

    async def command(self, name: str, *words: str) -> str:
        """The text that ovs-appctl would print. Raises TryLater, also when the command is refused."""
        (text,) = await self.commands([(name, *words)])
        return text

    async def commands(self, commands: Iterable[tuple[str, ...]]) -> list[str]:
        """The text for each (name, word, ...), over one connection. Raises TryLater at the first that is refused."""
        path = self._socket()
        try:
            async with asyncio.timeout(_SECONDS):
                reader, writer = await asyncio.open_unix_connection(str(path))
                try:
                    return [await _ask(reader, writer, *command) for command in commands]
                finally:
                    writer.close()
        except (OSError, OvsdbError, TimeoutError, msgspec.MsgspecError) as error:
            raise TryLater(f"ovs-vswitchd does not answer at {path}: {error or type(error).__name__}") from error

    def incarnation(self) -> str:
        """Differs after each start of ovs-vswitchd. Raises TryLater when it does not run."""
        path = self._socket()
        try:
            found = path.stat()
        except OSError as error:
            raise TryLater(f"ovs-vswitchd has no control socket {path} any more: {error.strerror}") from error
        return f"{found.st_ino}.{found.st_mtime_ns}"

    def _socket(self) -> Path:
        """Raises TryLater. A killed predecessor leaves its socket behind: the process that has the lock is asked."""
        try:
            pid = (self._directory / "ovs-vswitchd.pid").read_text().strip()
            named = self._directory / f"ovs-vswitchd.{pid}.ctl"
            if pid and named.exists():
                return named
        except OSError:
            pass
        found = sorted(self._directory.glob("*vswitchd*.ctl"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise TryLater(f"no control socket of ovs-vswitchd in {self._directory}; is it running?")
        return found[-1]


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str, *words: str) -> str:
    writer.write(json.dumps({"id": 0, "method": name, "params": words}).encode())
    framer = Framer()
    while chunk := await reader.read(_CHUNK):
        for answer in framer.feed(chunk):
            if answer.error is not None:
                raise TryLater(f"ovs-vswitchd refuses {name}: {answer.error}")
            return msgspec.json.decode(answer.result, type=str)
    raise ConnectionResetError(f"it closed the connection without an answer to {name}")
