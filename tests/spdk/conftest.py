"""SPDK processes for the tests: always the stand-in, and a real spdk_tgt too where $SPDK_TGT names one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from foundation.spdk.client import SpdkClient
from lab.spdk.process import SpdkProcess, real_binary

QUICK = ("--beat-ms", "1", "--attach-ms", "2", "--dhchap-ms", "5", "--second-ms", "100", "--stall-ms", "200")


class Spdk:
    """A running process with a client; ``real`` tells which kind it is."""

    def __init__(self, process: SpdkProcess) -> None:
        self.process = process
        self.client = SpdkClient(process.address)

    @property
    def real(self) -> bool:
        return bool(self.process.binary)

    @property
    def directory(self) -> Path:
        return self.process.directory

    async def call(self, method: str, **params: Any) -> Any:
        return await self.client.call(method, params, deadline=20)

    def file(self, name: str, mib: int) -> str:
        """A sparse file."""
        path = self.directory / name
        with path.open("ab") as file:
            file.truncate(mib * 1024 * 1024)
        return str(path)


Start = Callable[..., Awaitable[Spdk]]


KINDS = ["stand-in", *([pytest.param("real", marks=pytest.mark.real_spdk)] if real_binary() else [])]


@pytest.fixture(params=KINDS)
async def start(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts processes of one kind; all of them are stopped after the test."""
    running: list[Spdk] = []

    async def start_one(name: str = "spdk", *arguments: str, mode: str = "dpu") -> Spdk:
        binary = real_binary() if request.param == "real" else ""
        process = SpdkProcess(tmp_path, name, mode=mode, binary=binary, arguments=[*QUICK, *arguments])
        await process.start()
        running.append(Spdk(process))
        return running[-1]

    yield start_one
    for spdk in running:
        await spdk.client.close()
        await spdk.process.kill()


@pytest.fixture
async def stand_in(tmp_path: Path) -> AsyncIterator[Start]:
    """As ``start``, for what only the stand-in can do: faults on demand, guests without a hypervisor."""
    running: list[Spdk] = []

    async def start_one(name: str = "spdk", *arguments: str, mode: str = "dpu") -> Spdk:
        process = SpdkProcess(tmp_path, name, mode=mode, arguments=[*QUICK, *arguments])
        await process.start()
        running.append(Spdk(process))
        return running[-1]

    yield start_one
    for spdk in running:
        await spdk.client.close()
        await spdk.process.kill()


async def eventually(probe: Callable[[], Awaitable[bool]], *, within: float = 20.0) -> None:
    """For what SPDK tells nobody about: asks again until it is so. Raises TimeoutError."""
    async with asyncio.timeout(within):
        while not await probe():
            await asyncio.sleep(0.01)


async def fault(path: Path, **what: Any) -> None:
    """Orders a fault at a stand-in's control socket."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(json.dumps(what).encode() + b"\n")
    await writer.drain()
    assert await reader.readline() == b'{"ok":true}\n'
    writer.close()
    await writer.wait_closed()
