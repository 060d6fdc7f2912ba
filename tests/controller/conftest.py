"""A real OVN for the controller's tests, from `lab.network`."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lab.network import Network, NetworkSpec, NodeSpec


@pytest.fixture
async def network() -> AsyncIterator[Network]:
    """Two chassis with OVS and ovn-controller, beside a plain host; its own prefix, so a lab may run meanwhile."""
    name = f"oc{os.getpid()}"
    nodes = (NodeSpec("node-a"), NodeSpec("node-b"), NodeSpec("node-host", "plain"))
    network = await Network.up(NetworkSpec(directory=Path("/run") / name, prefix=name, nodes=nodes))
    yield network
    await network.down()
