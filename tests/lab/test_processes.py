"""Only what the lab started is ended, and all of it."""

import asyncio
import dataclasses
import os
import signal
import sys
from pathlib import Path

from lab import processes

SLEEPER = [sys.executable, "-c", "import signal; signal.pause()"]
STUBBORN = [
    sys.executable,
    "-u",
    "-c",
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up'); signal.pause()",
]


async def test_a_process_is_stopped_by_sigterm(tmp_path: Path) -> None:
    record = processes.start("sleeper", SLEEPER, logs=tmp_path)
    assert record.alive()
    assert await processes.stop([record]) == []
    assert not record.alive()


async def test_what_ignores_sigterm_is_killed_and_named(tmp_path: Path) -> None:
    record = processes.start("stubborn", STUBBORN, logs=tmp_path)
    log = tmp_path / "stubborn.log"
    async with asyncio.timeout(10):
        while "up" not in log.read_text():
            await asyncio.sleep(0.01)
    assert await processes.stop([record], seconds=0.2) == ["stubborn"]
    assert not record.alive()


async def test_a_recycled_pid_is_left_alone(tmp_path: Path) -> None:
    record = processes.start("sleeper", SLEEPER, logs=tmp_path)
    stranger = dataclasses.replace(record, started=record.started - 1)
    assert not stranger.alive()
    await processes.stop([stranger])
    assert record.alive()
    await processes.kill(record)
    assert not record.alive()


async def test_a_signal_to_the_lab_is_not_one_to_its_children(tmp_path: Path) -> None:
    record = processes.start("sleeper", SLEEPER, logs=tmp_path)
    assert os.getsid(record.pid) == record.pid != os.getsid(0)
    os.kill(record.pid, signal.SIGTERM)
    assert await processes.gone(record, 5.0)
