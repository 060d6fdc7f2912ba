"""One stage for all of cni-node's tests on real OVN; each test leaves it as it found it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.node.stage import BINARY, MODES, Stage


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    assert os.geteuid() == 0, "these tests make network namespaces: run them as root"
    assert BINARY.exists(), "cni-bin is not built: run `python hatch_build.py`"
    stage = Stage(Path(tmp_path_factory.mktemp("stage")))
    try:
        await stage.up()
        await asyncio.gather(*(stage.start(node) for node in MODES))
        await stage.settled()
        yield stage
    finally:
        await stage.down()
