"""Blocking calls which may hang for ever, kept away from everything else.

A task that touches a disk whose controller is dead sleeps uninterruptibly. In the event loop's own pool of threads it
would take a place for ever, and at exit be waited for; here each call has a thread of its own that nobody waits for.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

from csi.errors import DeadlineExceeded

R = TypeVar("R")


async def blocking(call: Callable[[], R], *, seconds: float, what: str) -> R:
    """The result of `call()`. Raises DeadlineExceeded when it has none in time; the call may then still go on."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[R] = loop.create_future()

    def settle(result: R | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # R may itself be optional

    def run() -> None:
        result: R | None = None
        error: BaseException | None = None
        try:
            result = call()
        except BaseException as failed:
            error = failed
        # The loop may have been closed in the meantime.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name=what, daemon=True).start()
    try:
        async with asyncio.timeout(seconds):
            return await future
    except TimeoutError as error:
        raise DeadlineExceeded(f"{what}: no answer after {seconds:g} s") from error
