"""One target process and one certificate authority for all tests of the module; the rest is made anew each time."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from lab.certificates import Authority
from lab.hardware import loops
from lab.spdk.process import real_binary
from tests.csi_rig.plant import Plant, plant
from tests.csi_rig.target import Target


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short: paths of unix sockets have at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="csi-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def running_target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """The stand-in, unless the test asks for a real spdk_tgt by this fixture's parameter."""
    binary = real_binary() if getattr(request, "param", "") == "real" else ""
    with tempfile.TemporaryDirectory(prefix="tgt-", dir="/tmp") as name:
        target = Target(Path(name), size=64 << 30, binary=binary)
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
async def bare(directory: Path, target: Target, authority: Authority) -> AsyncIterator[Plant]:
    """API server and target only."""
    async with plant(directory, target, authority) as built:
        yield built


@pytest.fixture
async def one(bare: Plant) -> Plant:
    """One host with its DPU, csi-controller and csi-node-host."""
    await bare.add_host("host1")
    await bare.start_controller()
    await bare.start_node("host1")
    return bare


@pytest.fixture
async def two(one: Plant) -> Plant:
    """A second host beside it."""
    await one.add_host("host2")
    await one.start_node("host2")
    await one.ready()
    return one
