"""A controller's core on an empty northbound database, for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.controller.stage import Northbound, Stage, node

FAMILIES = {"v4": ("10.1.{}.0/24",), "v6": ("fd01:{}::/64",), "dual": ("10.1.{}.0/24", "fd01:{}::/64")}


@pytest.fixture
def northbound() -> Iterator[Northbound]:
    server = Northbound()
    yield server
    server.remove()


@pytest.fixture
async def stage(northbound: Northbound) -> AsyncIterator[Stage]:
    """Nodes n1 and n2, dual stack, and a host n3 whose DPU is d3."""
    async with Stage(northbound.remote) as stage:
        stage.put("node", *nodes("dual"))
        yield stage


def nodes(families: str) -> list[dict[str, Any]]:
    texts = FAMILIES[families]
    modes = {
        "d3": {"dpu-offload.io/mode": "dpu", "dpu-offload.io/host-node": "n3"},
        "n3": {"dpu-offload.io/mode": "host"},
    }
    return [
        node(name, *(text.format(index) for text in texts), labels=modes.get(name), ip=f"192.0.2.{index}")
        for index, name in enumerate(("n1", "n2", "n3", "d3"), start=1)
    ]
