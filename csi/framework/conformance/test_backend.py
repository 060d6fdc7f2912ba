"""The suite over the storage that the command line names."""

import pytest

from csi.framework.conformance.storage import Storage
from csi.framework.conformance.suite import BackendConformance


class TestConfiguredBackend(BackendConformance):
    @pytest.fixture
    async def storage(self, configured_storage: Storage) -> Storage:
        return configured_storage
