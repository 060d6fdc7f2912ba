"""One target process for a module's tests, each of which finds it empty; a real one too where $SPDK_TGT names it."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from csi.framework.backends.spdk import BACKEND, SpdkBackend
from csi.framework.backends.spdk.config import SpdkConfig
from foundation.spdk.client import SpdkClient
from lab.spdk.process import real_binary
from tests.csi_rig.target import Target, section

KINDS = ["stand-in", *([pytest.param("real", marks=pytest.mark.real_spdk)] if real_binary() else [])]


@pytest.fixture(scope="module", params=KINDS)
def running(request: pytest.FixtureRequest) -> Iterator[Target]:
    with tempfile.TemporaryDirectory(prefix="tgt-", dir="/tmp") as name:
        target = Target(Path(name), binary=real_binary() if request.param == "real" else "")
        try:
            asyncio.run(target.start())
            yield target
        finally:
            asyncio.run(target.stop())


@pytest.fixture
async def target(running: Target) -> Target:
    await running.empty()
    return running


@pytest.fixture
async def raw(target: Target) -> AsyncIterator[SpdkClient]:
    """The target's own interface, for what the backend must not see or do."""
    async with SpdkClient(target.address) as client:
        yield client


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.fixture
async def backend(target: Target, keys: Path) -> AsyncIterator[SpdkBackend]:
    given = {key: value for key, value in section(target, key_directory=str(keys)).items() if key != "kind"}
    backend = BACKEND.open("spdk", msgspec.convert(given, SpdkConfig))
    await backend.start()
    assert isinstance(backend, SpdkBackend)
    yield backend
    await backend.close()
