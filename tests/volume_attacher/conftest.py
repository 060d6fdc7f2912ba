"""A DPU with its target, for the attacher's tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.dpu_rig.fixtures import every_request_is_valid, shared_pair
from tests.dpu_rig.rig import DpuRig, Pair

__all__ = ["every_request_is_valid", "shared_pair"]


@pytest.fixture
async def rig(tmp_path: Path, pair: Pair) -> AsyncIterator[DpuRig]:
    rig = DpuRig(tmp_path, pair)
    await rig.start()
    yield rig
    await rig.stop()
