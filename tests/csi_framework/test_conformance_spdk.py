"""Backend kind `spdk` under the conformance suite, on the stand-in (or on the spdk_tgt that SPDK_TGT names)."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import msgspec
import pytest

from csi.framework.backend import Qos
from csi.framework.backends.spdk import BACKEND
from csi.framework.backends.spdk.config import SpdkConfig, SpdkParameters
from csi.framework.conformance.storage import Storage
from csi.framework.conformance.suite import BackendConformance
from tests.csi_rig.target import Target, section


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    target = Target(tmp_path_factory.mktemp("t"))
    asyncio.run(target.start())
    yield target
    asyncio.run(target.stop())


@pytest.fixture
async def target(running: Target) -> Target:
    await running.empty()
    return running


class TestSpdk(BackendConformance):
    @pytest.fixture
    async def storage(self, target: Target) -> AsyncIterator[Storage]:
        given = {key: value for key, value in section(target).items() if key != "kind"}
        backend = BACKEND.open("spdk", msgspec.convert(given, SpdkConfig))
        await backend.start()
        yield Storage(
            backend=backend,
            parameters=SpdkParameters(),
            restart=target.restart,
            limits=Qos(read_write_iops=5000, read_mb_per_second=50),
        )
        await backend.close()
