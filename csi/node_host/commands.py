"""Programs of the host (mkfs, fsck, blkid, …): run without a shell, with a deadline, with their words in errors."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Collection

import msgspec

from csi.errors import DeadlineExceeded, Internal

_REAP_SECONDS = 1.0


class Output(msgspec.Struct, frozen=True):
    """`code` is the exit status."""

    code: int
    out: str
    err: str


async def run(*argv: str, seconds: float, accept: Collection[int] = (0,)) -> Output:
    """Raises Internal for a missing program or another exit status than `accept`, DeadlineExceeded when it is killed.

    asyncio starts programs by vfork and exec, which is safe beside gRPC's threads.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError as error:
        raise Internal(f"{argv[0]} is not installed on this node") from error
    try:
        async with asyncio.timeout(seconds):
            out, err = await process.communicate()
    except BaseException as error:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        # One that sleeps uninterruptibly is left behind; it ends when its disk does.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _REAP_SECONDS)
        if isinstance(error, TimeoutError):
            raise DeadlineExceeded(f"{argv[0]} did not end within {seconds:g} s and was killed") from error
        raise
    code = process.returncode
    assert code is not None
    result = Output(code, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"))
    if code not in accept:
        words = (result.err.strip() or result.out.strip())[-400:]
        raise Internal(f"{' '.join(argv)} failed with {code}: {words or 'no message'}")
    return result
