"""The bridge against its own conformance suite: the NVMe front end."""

import pytest

from opi_bridge.conformance.test_nvme_frontend import *  # noqa: F403  # each name is a test or its fixture


@pytest.fixture
def function() -> tuple[int, int]:
    return 0, 1
