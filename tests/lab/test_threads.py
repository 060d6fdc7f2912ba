"""Cleaning up never races with a thread that is still at work."""

import asyncio
import threading
from pathlib import Path

import pytest

from lab import threads


async def test_a_cancelled_caller_hears_of_it_when_the_thread_has_ended(tmp_path: Path) -> None:
    started, go_on = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        go_on.wait(10)
        (tmp_path / "made").touch()

    task = asyncio.create_task(threads.to_the_end(work))
    await asyncio.to_thread(started.wait, 10)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 10)
    assert (tmp_path / "made").exists()


async def test_results_and_errors_come_through() -> None:
    assert await threads.to_the_end(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await threads.to_the_end(lambda: 1 // 0)
