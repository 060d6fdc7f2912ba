"""One healthy installation for all tests of what dpuctl sees; each test leaves it as it found it."""

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.dpuctl.installation import Installation


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def installation() -> AsyncIterator[Installation]:
    # Not pytest's tmp_path: a unix socket's path has 107 bytes at most.
    directory = Path(tempfile.mkdtemp(prefix="dctl-", dir="/tmp"))
    installation = Installation(directory)
    try:
        await installation.up()
        yield installation
    finally:
        await installation.down()
        shutil.rmtree(directory)
