"""When to look at the bridge again: soon after a change, yet not in the middle of a burst of work."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Final

# Seconds without work before a look after a change, and the longest that work puts it off.
_BURST: Final = 0.05
_PATIENCE: Final = 1.0


class Looks:
    def __init__(self) -> None:
        self._wanted = asyncio.Event()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._working = 0

    def soon(self) -> None:
        self._wanted.set()

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """While work is under way, a look would only find it half done."""
        self._working += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._working -= 1
            if not self._working:
                self._quiet.set()

    async def turn(self) -> None:
        """Return when it is time for the next look; each reads everything, so that changes are gathered."""
        await self._wanted.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await self._calm()
        self._wanted.clear()

    async def _calm(self) -> None:
        while True:
            await self._quiet.wait()
            await asyncio.sleep(_BURST)
            if self._quiet.is_set():
                return
