"""The demo as a user runs it: interrupted at some moment it cleans up, and the next one works at once."""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest

from lab import clearing
from lab.hardware import loops

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


def arguments(run: Path) -> list[str]:
    return [sys.executable, "-m", "lab.app", "demo", "--run-dir", str(run), "--prefix", run.name]


async def nothing_left(run: Path) -> None:
    assert not run.exists()
    assert not [netns.name for netns in Path("/run/netns").glob(f"{run.name}-*")]
    assert clearing.mounts_below(run) == []
    assert await loops.below(run) == []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            assert str(run).encode() not in (process / "cmdline").read_bytes()


@pytest.mark.parametrize("seconds", [0.8, 4.0, 9.0])
async def test_an_interrupt_at_any_moment_cleans_up(seconds: float) -> None:
    run = Path("/run") / f"di{os.getpid()}"
    process = await asyncio.create_subprocess_exec(
        *arguments(run), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    await asyncio.sleep(seconds)
    process.send_signal(signal.SIGINT)
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 130, output.decode()
    await nothing_left(run)


async def test_a_killed_demo_is_cleared_by_the_next_and_two_exclude_each_other() -> None:
    run = Path("/run") / f"dk{os.getpid()}"
    first = await asyncio.create_subprocess_exec(*arguments(run), stdout=asyncio.subprocess.DEVNULL)
    async with asyncio.timeout(60):
        while not (run / "opi.sock").exists():
            await asyncio.sleep(0.05)
    second = await asyncio.create_subprocess_exec(
        *arguments(run), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await asyncio.wait_for(second.communicate(), 60)
    assert second.returncode == 1
    assert "another dpu-lab" in errors.decode()
    first.kill()
    await first.wait()
    third = await asyncio.create_subprocess_exec(
        *arguments(run), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(third.communicate(), 120)
    assert third.returncode == 0, output.decode()
    await nothing_left(run)
