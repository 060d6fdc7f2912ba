"""SIGKILL at each step of Attach and Detach: the next start ends what was begun, and nothing is left over."""

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from benchmarks import report
from dpu_offload_stubs.attacher.v1 import attacher_pb2 as pb
from dpu_offload_stubs.attacher.v1 import attacher_pb2_grpc
from foundation.daemon.serving import dial
from tests.dpu_rig.rig import DpuRig, Pair, Volume, eventually

ATTACH = (
    "bdev_null_create",
    "nvmf_create_subsystem",
    "bdev_nvme_attach_controller",
    "nvmf_subsystem_add_ns",
    "nvmf_subsystem_allow_any_host",
    "nvmf_subsystem_add_listener",
)
DETACH = (
    "nvmf_subsystem_remove_ns",
    "nvmf_subsystem_remove_listener",
    "nvmf_delete_subsystem",
    "bdev_nvme_detach_controller",
    "bdev_null_delete",
)


class Daemons:
    """Both daemons as one process."""

    def __init__(self, rig: DpuRig) -> None:
        self._rig = rig
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        command = [sys.executable, "-m", "tests.dpu_rig.daemons", str(self._rig.directory), self._rig.dpu.address]
        self._process = await asyncio.to_thread(_spawn, command, self._rig.directory / "daemons.log")
        await self._rig.ready()

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None


def _spawn(command: list[str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("ab") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
    assert process.stdout is not None
    process.stdout.readline()
    return process


@pytest.fixture
async def rig(tmp_path: Path, pair: Pair) -> AsyncIterator[DpuRig]:
    rig = DpuRig(tmp_path, pair)
    await asyncio.gather(rig.target.start(), rig.dpu.start())
    await rig.open_target()
    rig.channel = dial(f"unix:{rig.attacher_socket}", name="volume-attacher", deadline=30)
    yield rig
    await rig.fault(do="clear")
    await rig.stop()


async def _killed_during(rig: DpuRig, daemons: Daemons, method: str, call: Any) -> None:
    """Let `call` run until SPDK is busy with `method`, kill the daemons there, and start them again."""
    await rig.fault(do="delay", method=method, seconds=0.15, times=1)
    running = asyncio.ensure_future(call)
    await asyncio.sleep(0.1)
    daemons.kill()
    with contextlib.suppress(grpc.aio.AioRpcError):
        await running
    await rig.fault(do="clear")
    await daemons.start()


async def _again(call: Any) -> Any:
    """Repeat as csi-controller does, for as long as the answer says that repeating helps."""
    async with asyncio.timeout(40):
        while True:
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                if error.code() not in (
                    grpc.StatusCode.UNAVAILABLE,
                    grpc.StatusCode.ABORTED,
                    grpc.StatusCode.CANCELLED,
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                ):
                    raise
                await asyncio.sleep(0.05)


@pytest.mark.timeout(240)
async def test_attach_survives_a_kill_at_each_step(rig: DpuRig) -> None:
    clean = 0
    async with _daemons(rig) as (daemons, stub):
        for method in ATTACH:
            volume = await rig.volume(f"a{clean}")
            await _killed_during(rig, daemons, method, stub.Attach(volume.request()))
            attached = await _again(lambda volume=volume: stub.Attach(volume.request()))
            assert attached.state == pb.ATTACHMENT_STATE_ATTACHED
            await _sees(rig, attached, volume)
            await _again(lambda volume=volume: stub.Detach(pb.DetachRequest(volume_id=volume.id)))
            await _nothing_left(rig, method)
            clean += 1
            report.merge("faults.json", {"dpu attach": {"points": len(ATTACH), "clean": clean}})


@pytest.mark.timeout(240)
async def test_detach_ends_by_itself_after_a_kill_at_each_step(rig: DpuRig) -> None:
    clean = 0
    async with _daemons(rig) as (daemons, stub):
        for method in DETACH:
            volume = await rig.volume(f"d{clean}")
            await _again(lambda volume=volume: stub.Attach(volume.request()))
            await _killed_during(rig, daemons, method, stub.Detach(pb.DetachRequest(volume_id=volume.id)))
            # Nobody calls again: the intent alone finishes it.
            await _nothing_left(rig, method)
            clean += 1
            report.merge("faults.json", {"dpu detach": {"points": len(DETACH), "clean": clean}})


@contextlib.asynccontextmanager
async def _daemons(rig: DpuRig) -> AsyncIterator[tuple[Daemons, Any]]:
    daemons = Daemons(rig)
    await daemons.start()
    try:
        yield daemons, attacher_pb2_grpc.VolumeAttacherStub(rig.channel)
    finally:
        daemons.kill()


async def _sees(rig: DpuRig, attached: pb.Attachment, volume: Volume) -> None:
    async with rig.guest(attached)() as guest:
        await guest.until(lambda g: 1 in g.namespaces)
        assert guest.namespaces[1]["uuid"] == volume.uuid


async def _nothing_left(rig: DpuRig, method: str) -> None:
    async def nothing() -> bool:
        return not await rig.leftovers()

    try:
        await eventually(nothing, "nothing is left")
    except AssertionError as error:
        raise AssertionError(f"after a kill during {method} there is left: {await rig.leftovers()}") from error
