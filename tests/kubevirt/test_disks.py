"""A migrating machine's disk as csi-controller sees it: on two DPUs at once, then on one; and a function of its own."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from csi import identity
from dpu_offload_stubs.csi import csi_pb2
from foundation.spdk.client import SpdkClient
from foundation.spdk.methods import nvmf
from lab.certificates import Authority
from lab.hardware import loops
from tests.csi_rig.plant import MIB, Mode, Plant, block_capability, plant
from tests.csi_rig.target import Target

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]
SHARED = block_capability(Mode.MULTI_NODE_MULTI_WRITER)
SOURCE, TARGET = "source", "target"


@pytest.fixture(scope="module")
def running_target() -> Iterator[Target]:
    with tempfile.TemporaryDirectory(prefix="kv-", dir="/tmp") as name:
        target = Target(Path(name), size=4 << 30)
        asyncio.run(target.start())
        yield target
        asyncio.run(cleared(target))


async def cleared(target: Target) -> None:
    await target.stop()
    for device in await loops.below(target.file.parent):
        await loops.detach(device)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"))


@pytest.fixture
async def two(running_target: Target, authority: Authority) -> AsyncIterator[Plant]:
    """Two hosts with a DPU each."""
    await running_target.empty()
    with tempfile.TemporaryDirectory(prefix="kv-", dir="/tmp") as name:
        async with plant(Path(name), running_target, authority) as built:
            for host in (SOURCE, TARGET):
                await built.add_host(host)
            yield built


@pytest.fixture
async def running(two: Plant) -> Plant:
    """With csi-controller and both csi-node-hosts."""
    await two.start_controller()
    for host in (SOURCE, TARGET):
        await two.start_node(host)
    return two


async def writers(built: Plant, volume: csi_pb2.Volume) -> set[str]:
    """The hosts whose DPU the target lets in."""
    nqn = identity.subsystem_nqn(identity.parse_volume_id(volume.volume_id))
    async with SpdkClient(built.target.address) as client:
        subsystem = await nvmf.only(client, nqn)
        allowed = {host.nqn for host in subsystem.hosts} if subsystem is not None else set()
    names = {identity.host_nqn(f"{host}-dpu"): host for host in (SOURCE, TARGET)}
    return {names[nqn] for nqn in allowed}


async def attach(built: Plant, volume: csi_pb2.Volume, host: str) -> str:
    """Up to the device in the pod of a machine."""
    context = await built.publish(volume, host, SHARED)
    await built.stage(volume, host, context, SHARED)
    return await built.mount(volume, host, SHARED)


async def detach(built: Plant, volume: csi_pb2.Volume, host: str) -> None:
    await built.unmount(volume, host)
    await built.unstage(volume, host)
    await built.unpublish(volume, host)


def written(path: str, text: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_SYNC)
    try:
        os.pwrite(descriptor, text.ljust(4096, b"\0"), MIB)
    finally:
        os.close(descriptor)


def read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(descriptor, 4096, MIB).rstrip(b"\0")
    finally:
        os.close(descriptor)


async def test_the_disk_is_on_both_while_the_machine_moves_and_on_one_afterwards(running: Plant) -> None:
    volume = await running.create(capability=SHARED)
    here, there = SOURCE, TARGET
    written(await attach(running, volume, here), b"before")
    for number in range(2):
        path = await attach(running, volume, there)
        assert await writers(running, volume) == {SOURCE, TARGET}
        assert read(path) == (b"before", b"moved 0")[number]
        await detach(running, volume, here)
        assert await writers(running, volume) == {there}
        assert not running.dpus[here].attached
        written(path, b"moved %d" % number)
        here, there = there, here
    await detach(running, volume, here)
    assert await writers(running, volume) == set()


async def test_a_failed_migration_leaves_the_disk_to_the_source(running: Plant) -> None:
    volume = await running.create(capability=SHARED)
    path = await attach(running, volume, SOURCE)
    await running.publish(volume, TARGET, SHARED)
    # The target is lost, with its DPU: cut off all the same.
    await running.dpus[TARGET].stop()
    await running.unpublish(volume, TARGET)
    assert await writers(running, volume) == {SOURCE}
    written(path, b"still mine")


async def test_a_function_of_its_own_excludes_live_migration_from_the_beginning(running: Plant) -> None:
    passthrough = {"dpu-offload.io/passthrough": "true"}
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await running.create("a", capability=SHARED, parameters=passthrough)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "dpu-offload.io/passthrough excludes live migration" in str(refused.value.details())
    # Nor later, for a volume that one machine has already.
    alone = block_capability()
    volume = await running.create("b", capability=alone, parameters=passthrough)
    await running.publish(volume, SOURCE, alone)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await running.publish(volume, TARGET, SHARED)
    assert "excludes live migration" in str(refused.value.details())
    assert await writers(running, volume) == {SOURCE}
