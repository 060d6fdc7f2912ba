"""How long to wait before the next attempt to connect."""

from __future__ import annotations

import random


class Backoff:
    """Doubling delays in seconds, from ``initial`` up to ``maximum``, each shortened by up to half at random."""

    def __init__(self, initial: float = 0.02, maximum: float = 1.0) -> None:
        self._initial = initial
        self._maximum = maximum
        self._next = initial

    def reset(self) -> None:
        self._next = self._initial

    def delay(self) -> float:
        delay, self._next = self._next, min(self._next * 2, self._maximum)
        return delay * random.uniform(0.5, 1.0)
