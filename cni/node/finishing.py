"""Lets a step that must not be left half-way come to its end although its caller is cancelled meanwhile."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; a cancellation takes effect after it. `work` needs a deadline of its own."""
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        if not task.cancelled():
            # The caller is gone and cannot be told; looking keeps asyncio from reporting it as lost.
            task.exception()
        raise asyncio.CancelledError
    return task.result()
