"""Running the programs that prepare a guest."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

SECONDS = 120.0


class ToolFailed(RuntimeError):
    """A program ended with an error; the message holds its command line and the end of what it said."""


async def run(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str],
    program: Path | None = None,
    stdin: bytes = b"",
) -> bytes:
    """Standard output. `program` is what to start where that is not the command's first word. Raises ToolFailed."""
    words = [str(word) for word in command]
    process = await asyncio.create_subprocess_exec(
        *words,
        executable=str(program) if program else None,
        env=dict(environment),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(SECONDS):
            output, errors = await process.communicate(stdin)
    except TimeoutError:
        raise ToolFailed(f"{' '.join(words)} did not end within {SECONDS:g} s") from None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode:
        last = errors.decode(errors="replace").strip().splitlines()[-5:]
        raise ToolFailed(f"{' '.join(words)} failed with {process.returncode}: {' | '.join(last)}")
    return output
