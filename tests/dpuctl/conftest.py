"""One healthy installation for all tests of what dpuctl sees; each test leaves it as it found it."""

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from cni.node import ovn_controller
from dpuctl.inspection import dialling, machine, storage, switch
from tests.dpuctl.installation import Installation


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def installation() -> AsyncIterator[Installation]:
    # Not pytest's tmp_path: a unix socket's path has 107 bytes at most.
    directory = Path(tempfile.mkdtemp(prefix="dctl-", dir="/tmp"))
    installation = Installation(directory)
    with pytest.MonkeyPatch.context() as patch:
        # What answers here answers late on a busy machine; what does not is known to the test that sees to it.
        for module in (switch, machine, storage, dialling):
            patch.setattr(module, "SECONDS", 30.0)
        patch.setattr(ovn_controller, "_SECONDS", 30.0)
        try:
            await installation.up()
            yield installation
        finally:
            await installation.down()
            shutil.rmtree(directory)
