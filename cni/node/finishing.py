"""Lets a step that must not be left half-way come to its end although its caller is cancelled meanwhile."""

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
U = TypeVar("U")


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


async def together(first: Awaitable[T], second: Awaitable[U]) -> tuple[T, U]:
    """Both results. When one fails or the caller is cancelled, the other has ended too before that shows."""
    one, other = asyncio.ensure_future(first), asyncio.ensure_future(second)
    tasks: set[asyncio.Future[Any]] = {one, other}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        unfinished = {task for task in tasks if not task.done()}
        for task in unfinished:
            task.cancel()
        if unfinished:
            await to_the_end(asyncio.wait(unfinished))
    for task in sorted(tasks, key=lambda task: task.cancelled()):
        task.result()
    return one.result(), other.result()
