"""Other programs, run without a shell and never for longer than they may."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Output:
    """What a program has written, and its exit status."""

    code: int
    out: bytes
    errors: str


async def run(*argv: str, seconds: float) -> Output:
    """Raises TimeoutError when it had to be killed; it is killed as well when the caller is cancelled."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(seconds):
            out, errors = await process.communicate()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    assert process.returncode is not None
    return Output(process.returncode, out, errors.decode("utf-8", "replace").strip())
