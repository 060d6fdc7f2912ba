"""Blocking calls which may hang for ever, kept away from everything else.

A task that touches a disk whose controller is dead sleeps uninterruptibly. In the event loop's own pool of threads it
would take a place for ever, and at exit be waited for; here each call has a thread of its own that nobody waits for.
Whoever asks for the same again while it hangs is told so: kubelet asks every minute, for as long as it lasts.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Final, TypeVar

from csi.errors import DeadlineExceeded

R = TypeVar("R")

_lock: Final = threading.Lock()
# Calls by what they do that were given up and have not come back.
_hanging: Final[set[str]] = set()


async def blocking(call: Callable[[], R], *, seconds: float, what: str) -> R:
    """The result of `call()`. Raises DeadlineExceeded when it has none in time, while it may still go on, and at once
    for the `what` of one that does."""
    if what in _hanging:
        raise DeadlineExceeded(f"{what}: an earlier try still hangs")
    loop = asyncio.get_running_loop()
    future: asyncio.Future[R] = loop.create_future()
    ended = False

    def settle(result: R | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # R may itself be optional

    def run() -> None:
        nonlocal ended
        result: R | None = None
        error: BaseException | None = None
        try:
            result = call()
        except BaseException as failed:
            error = failed
        with _lock:
            ended = True
            _hanging.discard(what)
        # The loop may have been closed in the meantime.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name=what, daemon=True).start()
    try:
        async with asyncio.timeout(seconds):
            return await future
    except TimeoutError as error:
        with _lock:
            if not ended:
                _hanging.add(what)
        raise DeadlineExceeded(f"{what}: no answer after {seconds:g} s") from error
