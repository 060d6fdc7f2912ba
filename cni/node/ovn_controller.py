"""Asking ovn-controller whether it follows the southbound database (`ovn-appctl connection-status`)."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import msgspec

_SECONDS = 1.0
_BEAT_SECONDS = 4.0
# An answer that comes twice is not just a moment between two southbound servers.
_TWICE_SECONDS = 0.3


class _Answer(msgspec.Struct):
    result: str | None = None
    error: str | None = None


class OvnController:
    """`run_directory` holds its control socket, `ovn-controller.<pid>.ctl`."""

    def __init__(self, run_directory: Path) -> None:
        self._directory = run_directory
        self.last = ""
        """What `problem` said last, kept by `watch`."""

    async def watch(self, changed: Callable[[], None]) -> None:
        """For ever: asks on a beat; `changed` is called after another answer."""
        while True:
            before, self.last = self.last, await self.problem()
            if self.last != before:
                changed()
            await asyncio.sleep(_BEAT_SECONDS)

    async def lasting_problem(self) -> str:
        """As `problem`, when it still is one a moment later."""
        if await self.problem():
            await asyncio.sleep(_TWICE_SECONDS)
            return await self.problem()
        return ""

    async def problem(self) -> str:
        """Why it cannot install flows now; "" when it can, or when its directory is not shared with cni-node."""
        if not self._directory.is_dir():
            return ""
        found = sorted(self._directory.glob("ovn-controller*.ctl"), key=lambda path: path.stat().st_mtime)
        if not found:
            return f"ovn-controller does not run: it has no control socket in {self._directory}"
        try:
            async with asyncio.timeout(_SECONDS):
                status = await _ask(found[-1])
        except (OSError, TimeoutError, msgspec.MsgspecError) as error:
            return f"ovn-controller does not answer at {found[-1]}: {error or 'no answer in time'}"
        return "" if status == "connected" else f"ovn-controller is {status} to the southbound database"


async def _ask(path: Path) -> str:
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        writer.write(json.dumps({"id": 0, "method": "connection-status", "params": []}).encode())
        text = b""
        while chunk := await reader.read(4096):
            text += chunk
            try:
                answer = msgspec.json.decode(text, type=_Answer)
            except msgspec.DecodeError:
                continue
            return (answer.result or answer.error or "").strip()
    finally:
        writer.close()
    raise ConnectionResetError("it closed the connection")
