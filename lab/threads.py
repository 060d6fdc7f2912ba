"""Blocking work in a thread that is waited for even when its caller is cancelled.

A thread can't be stopped: cleared up after it while it still works, it would make things anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


async def to_the_end(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """As ``asyncio.to_thread``, but a cancellation goes on to the caller only when the thread has ended."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        if not work.cancelled():
            work.exception()  # seen: the cancellation is what the caller hears of
        raise
