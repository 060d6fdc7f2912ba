"""A TCP connection from a guest that is kept open while things happen to the guest."""

from __future__ import annotations

import asyncio
import json
import sys
from types import TracebackType

_SECONDS = 30.0


class Broken(RuntimeError):
    """The connection did not come, or did not stay."""


class Watched:
    """A connection from namespace `source` to a server in namespace `target`, as an asynchronous context."""

    def __init__(self, source: str, target: str, address: str) -> None:
        self._source, self._target, self._address = source, target, address
        self._processes: list[asyncio.subprocess.Process] = []

    async def __aenter__(self) -> Watched:
        try:
            server = await self._start(self._target, "serve", self._address, "0")
            port = (await self._line(server)).strip()
            self._client = await self._start(self._source, "keep", self._address, port)
            await self._line(self._client)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._processes):
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def gap(self) -> float:
        """The longest time without an answer since this was last asked, in milliseconds. Raises Broken."""
        assert self._client.stdin is not None
        self._client.stdin.write(b"\n")
        return float(json.loads(await self._line(self._client))["gap_ms"])

    async def _start(self, namespace: str, *arguments: str) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *("ip", "netns", "exec", namespace, sys.executable, "-m", "lab.kubevirt.connection", *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self._processes.append(process)
        return process

    @staticmethod
    async def _line(process: asyncio.subprocess.Process) -> str:
        assert process.stdout is not None
        try:
            line = await asyncio.wait_for(process.stdout.readline(), _SECONDS)
        except TimeoutError:
            raise Broken(f"nothing came through for {_SECONDS:g} s") from None
        if not line:
            raise Broken("the connection has broken")
        return line.decode()
