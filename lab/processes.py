"""The lab's processes: started by it, recorded by it, and only those ended by it.

A process is known by its pid and its start time, so that a recycled pid is never signalled.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

STOP_SECONDS = 8.0


class ProcessDied(RuntimeError):
    """A process of the lab ended when it should have gone on."""


@dataclasses.dataclass(frozen=True)
class ProcessRecord:
    """What is written down of a process: enough to find it again, and to tell it from a stranger."""

    name: str
    pid: int
    started: int

    def alive(self) -> bool:
        return start_time(self.pid) == self.started


def start_time(pid: int) -> int | None:
    """Clock ticks after boot at which ``pid`` started (proc(5), stat field 22); None when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])


def last_lines(log: Path, count: int = 4) -> str:
    """The end of a log, for an error message."""
    try:
        return " | ".join(log.read_text(errors="replace").splitlines()[-count:])
    except FileNotFoundError:
        return ""


def start(
    name: str, command: Sequence[str | Path], *, logs: Path, environment: Mapping[str, str] | None = None
) -> ProcessRecord:
    """Start ``command`` in a session of its own, with its output in ``<logs>/<name>.log``."""
    logs.mkdir(parents=True, exist_ok=True)
    log = str(logs / f"{name}.log")
    arguments = [str(part) for part in command]
    # Not asyncio's subprocess: its transport kills the child when the loop closes, and `dpu-lab up` leaves it running.
    pid = os.posix_spawnp(
        arguments[0],
        arguments,
        {**os.environ, **(environment or {})},
        setsid=True,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
    )
    started = start_time(pid)
    if started is None:
        raise ProcessDied(f"{name} ended at once: {last_lines(logs / f'{name}.log')}")
    return ProcessRecord(name=name, pid=pid, started=started)


async def stop(records: Sequence[ProcessRecord], *, seconds: float = STOP_SECONDS) -> list[str]:
    """End the processes side by side: SIGTERM, and SIGKILL for what is left after ``seconds``.

    Returns the names of those that had to be killed.
    """
    waits = [asyncio.create_task(_stop_one(record, seconds)) for record in records]
    return [name for name in await asyncio.gather(*waits) if name]


async def _stop_one(record: ProcessRecord, seconds: float) -> str:
    if not _signal(record, signal.SIGTERM):
        return ""
    if await gone(record, seconds):
        return ""
    _signal(record, signal.SIGKILL)
    await gone(record, seconds)
    return record.name


async def kill(record: ProcessRecord) -> None:
    """SIGKILL, and wait until the kernel has let go of the process."""
    _signal(record, signal.SIGKILL)
    if not await gone(record, STOP_SECONDS):
        raise ProcessDied(f"{record.name} (pid {record.pid}) is still there {STOP_SECONDS:g} s after SIGKILL")


async def gone(record: ProcessRecord, seconds: float) -> bool:
    """Wait for the end of a process, whoever its parent is, by pidfd. False when ``seconds`` have passed."""
    if not record.alive():
        return True
    try:
        descriptor = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return True
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await asyncio.wait_for(ended.wait(), seconds)
    except TimeoutError:
        return not record.alive()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        _reap(record.pid)
    return True


def _signal(record: ProcessRecord, number: signal.Signals) -> bool:
    if not record.alive():
        return False
    try:
        os.kill(record.pid, number)
    except ProcessLookupError:
        return False
    return True


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):  # started by an earlier dpu-lab: not ours to reap
        os.waitpid(pid, os.WNOHANG)
