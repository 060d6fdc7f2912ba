"""Backend kind `spdk` under the conformance suite, on the stand-in."""

import pytest

from csi.framework.backend import Qos
from csi.framework.backends.spdk import SpdkBackend
from csi.framework.backends.spdk.config import SpdkParameters
from csi.framework.conformance.storage import Storage
from csi.framework.conformance.suite import BackendConformance
from tests.csi_rig.target import Target


class TestSpdk(BackendConformance):
    @pytest.fixture
    async def storage(self, backend: SpdkBackend, target: Target) -> Storage:
        return Storage(
            backend=backend,
            parameters=SpdkParameters(),
            restart=target.restart,
            limits=Qos(read_write_iops=5000, read_mb_per_second=50),
        )
