"""Calls that hang: given up in time, and not piled up."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from csi.errors import DeadlineExceeded
from csi.node_host.bounded import blocking


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def threads(name: str) -> int:
    return sum(thread.name == name for thread in threading.enumerate())


async def test_what_hangs_is_not_tried_again_while_it_hangs(gate: threading.Event) -> None:
    what = "statvfs /hung"
    with pytest.raises(DeadlineExceeded, match="no answer"):
        await blocking(gate.wait, seconds=0.05, what=what)
    for _ in range(3):
        with pytest.raises(DeadlineExceeded, match="still hangs"):
            await blocking(gate.wait, seconds=0.05, what=what)
    assert threads(what) == 1
    assert await blocking(lambda: 1, seconds=30, what="statvfs /other") == 1
    gate.set()
    async with asyncio.timeout(30):
        while threads(what):
            await asyncio.sleep(0.01)
    assert await blocking(lambda: 2, seconds=30, what=what) == 2


async def test_two_that_do_not_hang_go_side_by_side(gate: threading.Event) -> None:
    first = asyncio.ensure_future(blocking(gate.wait, seconds=30, what="twice"))
    await asyncio.sleep(0)
    assert await blocking(lambda: 3, seconds=30, what="twice") == 3
    gate.set()
    assert await first
