"""Reads that are shared by all who ask at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

R = TypeVar("R")


class SharedRead(Generic[R]):
    """Many calls, few reads: whoever asks while a read is under way shares the next one.

    No caller gets an answer that was read before it asked. A read that fails fails for one caller; the next one reads
    again.
    """

    def __init__(self, read: Callable[[], Awaitable[R]]) -> None:
        self._read = read
        self._lock = asyncio.Lock()
        self._asked = 0
        # The latest answer, with how many calls had been made when its reading began.
        self._latest: tuple[int, R] | None = None

    async def __call__(self) -> R:
        self._asked += 1
        mine = self._asked
        async with self._lock:
            if self._latest is None or self._latest[0] < mine:
                begun = self._asked
                self._latest = begun, await self._read()
            return self._latest[1]
