"""Random histories of attach, detach, kill, restart, growth and path loss: what is there in the end is what was wanted.

DPU_OFFLOAD_INTERLEAVINGS sets how many are tried; the default keeps the test run short.
"""

import asyncio
import contextlib
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import report
from dpu_offload_stubs.attacher.v1 import attacher_pb2 as pb
from tests.dpu_rig.rig import DpuRig, Pair, Volume, eventually

EXAMPLES = int(os.environ.get("DPU_OFFLOAD_INTERLEAVINGS", "3"))
VOLUMES = 3
# The codes after which external-attacher holds that work may still be going on.
RETRY = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)

numbers = st.integers(0, VOLUMES - 1)
steps = st.one_of(
    st.tuples(st.just("attach"), numbers, st.booleans()),
    st.tuples(st.just("detach"), numbers, st.booleans()),
    st.tuples(st.just("lose path"), numbers),
    st.tuples(st.just("regain path"), numbers),
    st.tuples(st.just("grow"), numbers),
    st.tuples(st.just("kill spdk")),
    st.tuples(st.just("restart bridge")),
    st.tuples(st.just("restart attacher")),
    st.tuples(st.just("wait")),
)


@dataclass
class History:
    """What happened so far: what is wanted of each volume, and which calls nobody waited for."""

    rig: DpuRig
    volumes: list[Volume]
    wanted: dict[int, bool] = field(default_factory=dict)
    grown: dict[int, int] = field(default_factory=dict)
    lost: set[int] = field(default_factory=set)
    running: list[asyncio.Task[None]] = field(default_factory=list)

    async def step(self, what: str, *more: Any) -> None:
        rig = self.rig
        match what:
            case "attach" | "detach":
                number, patient = more
                self.wanted[number] = what == "attach"
                call = asyncio.create_task(self._once(what, number))
                self.running.append(call)
                if patient:
                    await call
            case "lose path":
                await self._listen(more[0], up=False)
            case "regain path":
                await self._listen(more[0], up=True)
            case "grow":
                self.grown[more[0]] = self.grown.get(more[0], 0) + 1
                await rig.at_target.call(
                    "bdev_lvol_resize", {"name": self._lvol(more[0]), "size_in_mib": 4 + self.grown[more[0]]}
                )
            case "kill spdk":
                await rig.restart_dpu()
            case "restart bridge":
                assert rig.bridge is not None
                await rig.bridge.aclose()
                await rig.start_bridge()
            case "restart attacher":
                assert rig.attacher is not None
                await rig.attacher.aclose()
                await rig.start_attacher()
            case "wait":
                await asyncio.sleep(0.03)

    def _lvol(self, number: int) -> str:
        return f"lvs/v{number}"

    async def _listen(self, number: int, *, up: bool) -> None:
        volume = self.volumes[number]
        if up == (number not in self.lost):
            return
        if up:
            self.lost.discard(number)
            await self.rig.listen(volume, volume.ports[0])
        else:
            self.lost.add(number)
            await self.rig.unlisten(volume, volume.ports[0])

    async def _once(self, what: str, number: int) -> None:
        """One call, as impatient as a sidecar; a refusal that repeating cures is no news."""
        try:
            await self._call(what == "attach", number, timeout=2.0)
        except grpc.aio.AioRpcError as error:
            if error.code() not in RETRY:
                raise

    async def _call(self, attach: bool, number: int, *, timeout: float) -> None:
        volume = self.volumes[number]
        if attach:
            await self.rig.stub.Attach(volume.request(), timeout=timeout)
        else:
            await self.rig.stub.Detach(pb.DetachRequest(volume_id=volume.id), timeout=timeout)

    async def settle(self) -> None:
        """Repeat the last wish for each volume until it is granted, as Kubernetes would."""
        await asyncio.gather(*self.running)
        for number in range(VOLUMES):
            await self._listen(number, up=True)
        await self.rig.ready()
        for number, attach in self.wanted.items():
            await self._insist(attach, number)

    async def _insist(self, attach: bool, number: int) -> None:
        async with asyncio.timeout(30):
            while True:
                try:
                    return await self._call(attach, number, timeout=10.0)
                except grpc.aio.AioRpcError as error:
                    if error.code() not in RETRY:
                        raise
                    await asyncio.sleep(0.02)

    async def check(self) -> None:
        """Actual = desired, seen by the attacher, by SPDK and by the host."""
        wanted = {self.volumes[number].id: number for number, attach in self.wanted.items() if attach}

        async def equal() -> bool:
            shown = {one.volume_id: one for one in (await self.rig.stub.List(pb.ListRequest())).attachments}
            return set(shown) == set(wanted) and all(
                one.state == pb.ATTACHMENT_STATE_ATTACHED
                and one.size_bytes == (4 + self.grown.get(wanted[volume], 0)) << 20
                for volume, one in shown.items()
            )

        await eventually(equal, f"exactly {sorted(wanted)} are attached, in their full size")
        for one in (await self.rig.stub.List(pb.ListRequest())).attachments:
            async with self.rig.guest(one)() as guest:
                await guest.until(lambda g: 1 in g.namespaces)
                assert guest.namespaces[1]["uuid"] == one.namespace_uuid

    async def leave(self) -> None:
        for number in self.wanted:
            await self._insist(False, number)

        async def nothing() -> bool:
            return not await self.rig.leftovers()

        await eventually(nothing, "nothing is left")


async def _live(pair: Pair, directory: Path, history: list[tuple[Any, ...]]) -> None:
    rig = DpuRig(directory, pair, beat=0.05)
    await rig.start()
    try:
        volumes = await _lvols(rig)
        told = History(rig, volumes)
        for what, *more in history:
            await told.step(what, *more)
        await told.settle()
        await told.check()
        await told.leave()
    finally:
        with contextlib.suppress(Exception):
            await rig.at_target.call("bdev_lvol_delete_lvstore", {"lvs_name": "lvs"})
        await rig.stop()


async def _lvols(rig: DpuRig) -> list[Volume]:
    file = rig.directory / "disk.img"
    with file.open("wb") as disk:
        disk.truncate(256 << 20)
    call = rig.at_target.call
    await call("bdev_aio_create", {"name": "aio0", "filename": str(file), "block_size": 4096})
    await call("bdev_lvol_create_lvstore", {"bdev_name": "aio0", "lvs_name": "lvs", "cluster_sz": 1 << 20})
    volumes = []
    for number in range(VOLUMES):
        lvol = {"lvs_name": "lvs", "lvol_name": f"v{number}", "size_in_mib": 4, "thin_provision": True}
        disk_name = await call("bdev_lvol_create", lvol)
        volumes.append(await rig.volume(f"v{number}", disk=disk_name))
    return volumes


@pytest.mark.timeout(max(60, 30 * EXAMPLES))
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=EXAMPLES < 50,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(history=st.lists(steps, min_size=2, max_size=12))
def test_every_history_ends_as_wanted(pair: Pair, history: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory(prefix="il-") as directory:
        asyncio.run(_live(pair, Path(directory), history))
    _tried[0] += 1
    report.merge("faults.json", {"dpu interleavings": {"points": _tried[0], "clean": _tried[0]}})


_tried = [0]
