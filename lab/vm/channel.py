"""Asking the agent inside the guest, over a virtio port."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

_LINE_LIMIT = 64 << 20
_GRACE_SECONDS = 10.0


class GuestGone(RuntimeError):
    """The guest ended or started anew before it had answered."""


@dataclass(frozen=True)
class Done:
    """How a program in the guest ended."""

    code: int
    output: str
    errors: str


class Channel:
    """One guest; requests run side by side."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Done]] = {}
        self._ready = asyncio.Event()
        self.boots = 0
        self.ended = asyncio.Event()
        self._reader = asyncio.create_task(self._read(reader), name="guest's answers")

    @classmethod
    async def connect(cls, path: Path) -> Self:
        """Raises OSError."""
        return cls(*await asyncio.open_unix_connection(str(path), limit=_LINE_LIMIT))

    async def ready(self) -> None:
        """Returns when the guest has started (again)."""
        await self._ready.wait()

    def expect_boot(self) -> None:
        """The guest is about to start anew."""
        self._ready.clear()
        self._fail("the guest starts anew")

    async def run(
        self,
        argv: Sequence[str],
        *,
        seconds: float,
        stdin: str = "",
        cwd: str = "/",
        environment: Mapping[str, str] | None = None,
        warm: bool = False,
    ) -> Done:
        """Run a program in the guest, which kills it after `seconds`; a `warm` one is a Python module's name.

        Raises GuestGone, TimeoutError.
        """
        if self.ended.is_set():
            raise GuestGone("the guest has ended")
        number = next(self._numbers)
        answer: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        request = {
            "id": number,
            "argv": list(argv),
            "seconds": seconds,
            "stdin": stdin,
            "cwd": cwd,
            "environment": dict(environment or {}),
            "warm": warm,
        }
        self._writer.write(json.dumps(request).encode() + b"\n")
        try:
            async with asyncio.timeout(seconds + _GRACE_SECONDS):
                await self._writer.drain()
                return await answer
        finally:
            self._waiting.pop(number, None)

    async def close(self) -> None:
        """The agent sees the end of its channel, and powers the guest off."""
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                self._take(json.loads(line))
        except OSError:
            pass
        finally:
            self.ended.set()
            self._fail("the guest has ended")

    def _take(self, message: Mapping[str, Any]) -> None:
        if "ready" in message:
            self.boots += 1
            self._ready.set()
            return
        answer = self._waiting.get(message["id"])
        if answer is not None and not answer.done():
            answer.set_result(Done(message["code"], message["output"], message["errors"]))

    def _fail(self, reason: str) -> None:
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(GuestGone(reason))
