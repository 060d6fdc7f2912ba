"""The bridge over one SPDK stand-in, and a client of the OPI API that knows only the protos."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from foundation.daemon.serving import dial
from opi_bridge.conformance.client import OpiClient
from tests.dpu_rig.fixtures import every_request_is_valid, shared_pair
from tests.dpu_rig.rig import DpuRig, Pair

__all__ = ["every_request_is_valid", "shared_pair"]


@pytest.fixture
async def rig(tmp_path: Path, pair: Pair) -> AsyncIterator[DpuRig]:
    rig = DpuRig(tmp_path, pair, with_attacher=False)
    await rig.start()
    yield rig
    await rig.stop()


@pytest.fixture
async def api(rig: DpuRig) -> AsyncIterator[OpiClient]:
    async with dial(f"unix:{rig.bridge_socket}", name="opi-bridge") as channel:
        client = OpiClient(channel)
        await client.until_ready()
        yield client
