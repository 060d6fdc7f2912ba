"""One target process and one certificate authority for all tests of the module; the rest is made anew each time."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from lab.certificates import Authority
from lab.hardware import loops
from tests.csi_rig.plant import Plant, plant
from tests.csi_rig.target import Target


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short: paths of unix sockets have at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="csi-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def running_target() -> Iterator[Target]:
    with tempfile.TemporaryDirectory(prefix="tgt-", dir="/tmp") as name:
        target = Target(Path(name), size=8 << 30)
        asyncio.run(target.start())
        yield target
        asyncio.run(_clear(target))


async def _clear(target: Target) -> None:
    await target.stop()
    for device in await loops.below(target.file.parent):
        await loops.detach(device)


@pytest.fixture
async def target(running_target: Target) -> Target:
    await running_target.empty()
    return running_target


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"))


@pytest.fixture
async def one(directory: Path, target: Target, authority: Authority) -> AsyncIterator[Plant]:
    """One host with its DPU, csi-controller and csi-node-host."""
    async with plant(directory, target, authority) as built:
        await built.add_host("host1")
        await built.start_controller()
        await built.start_node("host1")
        yield built
