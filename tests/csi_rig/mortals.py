"""csi-controller and csi-node-host as processes that are killed and replaced, with the calls of those who retry."""

import asyncio
import contextlib
import json
import mmap
import os
import select
import signal
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio
import msgspec
import yaml

from dpu_offload_stubs.csi import csi_pb2, csi_pb2_grpc
from foundation.daemon.serving import dial
from tests.csi_rig.plant import Plant
from tests.csi_rig.target import section
from tests.csi_rig.wire import Wire

R = TypeVar("R")
_HERE = Path(__file__).resolve().parent
# What external-provisioner and kubelet retry: everything, for ever. A test has an end.
_PATIENCE_SECONDS = 40.0
_CONTROL = struct.Struct("iiii")


class Died(Exception):
    """A daemon ended while it was being started; the message is the end of its log."""


class Deeds:
    """The page that `deeds.c` shares with the test."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "deeds"
        self.path.write_bytes(bytes(mmap.PAGESIZE))
        with self.path.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), mmap.PAGESIZE)

    def arm(self, pid: int, left: int, *, after: bool) -> None:
        self._page[: _CONTROL.size] = _CONTROL.pack(pid, left, after, 0)

    def disarm(self) -> None:
        self.arm(0, -1, after=False)


class Mortals:
    """`wire` stands between csi-controller and the target."""

    def __init__(self, plant: Plant, nursery: subprocess.Popen[bytes], deeds: Deeds, wire: Wire) -> None:
        self.plant = plant
        self.deeds = deeds
        self.wire = wire
        self.pids: dict[str, int] = {}
        self.kills = 0
        self._nursery = nursery
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def start(self, daemon: str) -> None:
        if daemon == "csi-controller":
            backends = {"spdk": section(self.plant.target, address=f"unix:{self.wire.path}")}
            config: Any = self.plant.controller_config(backends=backends, converge_seconds=60.0)
        else:
            config = self.plant.node_config("host1")
        path = self.plant.directory / f"{daemon}.yaml"
        path.write_text(yaml.safe_dump(msgspec.to_builtins(config)))
        order = {"daemon": daemon, "config": str(path), "log": str(self.plant.directory / f"{daemon}.log")}
        self.pids[daemon] = await asyncio.to_thread(self._bear, order)
        if (old := self._channels.pop(daemon, None)) is not None:
            await old.close()
        await self._listens(config.socket, daemon)
        channel = self._channels[daemon] = dial(f"unix:{config.socket}", name=daemon, deadline=10)
        if daemon == "csi-controller":
            self.plant.take(channel)
        else:
            self.plant.nodes["host1"] = csi_pb2_grpc.NodeStub(channel)
        await self._answers(csi_pb2_grpc.IdentityStub(channel), daemon)

    def _bear(self, order: dict[str, str]) -> int:
        assert self._nursery.stdin is not None
        assert self._nursery.stdout is not None
        self._nursery.stdin.write(json.dumps(order).encode() + b"\n")
        self._nursery.stdin.flush()
        return int(self._nursery.stdout.readline())

    async def _answers(self, stub: csi_pb2_grpc.IdentityStub, daemon: str) -> None:
        while not (await stub.Probe(csi_pb2.ProbeRequest(), timeout=_PATIENCE_SECONDS)).ready.value:
            self._still_there(daemon)
            await asyncio.sleep(0.01)

    async def _listens(self, path: str, daemon: str) -> None:
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_unix_connection(path)
                writer.close()
                return
            self._still_there(daemon)
            await asyncio.sleep(0.01)

    def _still_there(self, daemon: str) -> None:
        if not self.alive(daemon):
            raise Died((self.plant.directory / f"{daemon}.log").read_text()[-2000:])

    async def kill(self, daemon: str) -> None:
        """Returns when it is dead; nobody starts another."""
        pid = self.pids[daemon]
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        await self.dead(daemon)

    async def dead(self, daemon: str) -> None:
        try:
            descriptor = os.pidfd_open(self.pids[daemon])
        except ProcessLookupError:
            return
        try:
            await asyncio.to_thread(select.select, [descriptor], [], [], _PATIENCE_SECONDS)
        finally:
            os.close(descriptor)

    def alive(self, daemon: str) -> bool:
        return Path(f"/proc/{self.pids[daemon]}").exists()

    async def retried(self, call: Callable[[], Awaitable[R]]) -> R:
        """As side-cars and kubelet: until it succeeds, whoever has to be started anew meanwhile."""
        end = asyncio.get_running_loop().time() + _PATIENCE_SECONDS
        while True:
            try:
                return await call()
            except grpc.aio.AioRpcError:
                if asyncio.get_running_loop().time() > end:
                    raise
                for daemon in self.pids:
                    if not self.alive(daemon):
                        self.kills += 1
                        # The kill may have been meant for the first calls of the new one.
                        with contextlib.suppress(Died, grpc.aio.AioRpcError):
                            await self.start(daemon)
                await asyncio.sleep(0.02)

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()
        for daemon in self.pids:
            await self.kill(daemon)


@contextlib.contextmanager
def nursery(directory: Path) -> Any:
    """Compiles the fault point and starts the process that bears the daemons."""
    library = directory / "deeds.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, _HERE / "deeds.c", "-ldl"], check=True)
    deeds = Deeds(directory)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.csi_rig.nursery", "csi-controller", "csi-node-host"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "LD_PRELOAD": str(library), "DEEDS": str(deeds.path)},
        cwd=_HERE.parents[1],
    )
    try:
        yield process, deeds
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.wait(20)
        process.stdout.close()


@contextlib.asynccontextmanager
async def mortals(plant: Plant, process: subprocess.Popen[bytes], deeds: Deeds) -> AsyncIterator[Mortals]:
    await plant.add_host("host1")
    async with Wire(plant.directory / "wire.sock", plant.target.socket) as wire:
        built = Mortals(plant, process, deeds, wire)
        try:
            await built.start("csi-controller")
            await built.start("csi-node-host")
            yield built
        finally:
            await built.close()
