"""Growing pauses with jitter between attempts."""

from __future__ import annotations

import asyncio
import random


class Backoff:
    """Pauses in seconds: each doubles the one before, up to `maximum`, and is spread over [half, whole].

    The spread keeps a thousand nodes from coming back to a restarted API server in step.
    """

    def __init__(self, initial: float = 0.1, maximum: float = 5.0, *, rng: random.Random | None = None) -> None:
        self._initial = initial
        self._maximum = maximum
        self._next = initial
        self._rng = rng or random.Random()

    def pause(self, *, at_least: float = 0.0) -> float:
        """The next pause; never shorter than `at_least` (a server's Retry-After)."""
        whole = self._next
        self._next = min(self._next * 2, self._maximum)
        return max(at_least, whole * self._rng.uniform(0.5, 1.0))

    async def wait(self, *, at_least: float = 0.0) -> None:
        """Sleep for the next pause."""
        await asyncio.sleep(self.pause(at_least=at_least))

    def reset(self) -> None:
        """Start over after a success."""
        self._next = self._initial
