"""The DPU's SPDK dies with every function in use: all that the host had is there again."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dpu_offload_stubs.attacher.v1 import attacher_pb2 as pb
from lab.ports import free_port
from tests.dpu_rig.rig import DpuRig, Pair, Volume, eventually

MANY = 250


@pytest.fixture
async def rig(tmp_path: Path, pair: Pair) -> AsyncIterator[DpuRig]:
    rig = DpuRig(tmp_path, pair, functions=MANY)
    await rig.start()
    yield rig
    await rig.stop()


async def _attachments(rig: DpuRig) -> dict[str, pb.Attachment]:
    return {one.volume_id: one for one in (await rig.stub.List(pb.ListRequest())).attachments}


async def _read_by_the_host(rig: DpuRig, volume: Volume, attached: pb.Attachment) -> None:
    async with rig.guest(attached)() as guest:
        await guest.until(lambda g: 1 in g.namespaces)
        assert (guest.controller["nqn"], guest.namespaces[1]["uuid"]) == (volume.nqn, volume.uuid)
        assert guest.data(1, len(volume.data)) == volume.data


async def test_250_volumes_are_back_on_their_functions_with_their_data(rig: DpuRig) -> None:
    port = free_port()
    volumes = await asyncio.gather(*(rig.file_volume(f"v{number}", port=port) for number in range(MANY)))
    await asyncio.gather(*(rig.stub.Attach(volume.request()) for volume in volumes))
    before = await _attachments(rig)
    assert len({one.function.virtual_function for one in before.values()}) == MANY
    places = {path: path.stat().st_ino for path in rig.sockets.iterdir()}
    async with contextlib.AsyncExitStack() as stack:
        guests = [await stack.enter_async_context(rig.guest(one)()) for one in before.values()]
        await rig.restart_dpu()
        for guest in guests:
            assert "namespace_remove" not in guest.events, "no disk was taken from a host"

    async def back() -> bool:
        return await _attachments(rig) == before

    await eventually(back, "all attachments are as they were", pause=0.3)
    assert {path: path.stat().st_ino for path in rig.sockets.iterdir()} == places, "no function was unplugged"
    await asyncio.gather(*(_read_by_the_host(rig, volume, before[volume.id]) for volume in volumes))
