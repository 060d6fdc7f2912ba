"""Reads shared by those who ask together."""

import asyncio

import pytest

from foundation.daemon.sharing import SharedRead


class Counted:
    """Its answers count its readings; the first `failing` ones fail."""

    def __init__(self, *, failing: int = 0) -> None:
        self.readings = 0
        self.may_end = asyncio.Event()
        self._failing = failing

    async def read(self) -> int:
        self.readings += 1
        number = self.readings
        await self.may_end.wait()
        if number <= self._failing:
            raise OSError("away")
        return number


async def test_nobody_gets_an_answer_older_than_the_question() -> None:
    counted = Counted()
    shared = SharedRead(counted.read)
    first = asyncio.create_task(shared())
    await asyncio.sleep(0)
    later = [asyncio.create_task(shared()) for _ in range(20)]
    await asyncio.sleep(0)
    counted.may_end.set()
    assert await first == 1
    assert set(await asyncio.gather(*later)) == {2}, "they asked after the first reading had begun"
    assert await shared() == 3


async def test_a_failure_is_one_callers_and_the_next_reads_again() -> None:
    counted = Counted(failing=1)
    shared = SharedRead(counted.read)
    calls = [asyncio.create_task(shared()) for _ in range(3)]
    await asyncio.sleep(0)
    counted.may_end.set()
    with pytest.raises(OSError, match="away"):
        await calls[0]
    assert await asyncio.gather(*calls[1:]) == [2, 2]


async def test_a_cancelled_caller_leaves_the_others_their_answer() -> None:
    counted = Counted()
    shared = SharedRead(counted.read)
    first = asyncio.create_task(shared())
    await asyncio.sleep(0)
    second = asyncio.create_task(shared())
    await asyncio.sleep(0)
    first.cancel()
    counted.may_end.set()
    assert await second == 2
