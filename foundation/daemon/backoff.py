"""How long to wait before trying again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """Exponential back-off: `initial` seconds, then `factor` times more each time, never over `maximum`.

    `jitter` is the share taken off at random (0.2: a wait between 80 and 100 % of the step), so that many waiters of
    one cause spread out and `maximum` still holds.
    """

    initial: float = 0.1
    maximum: float = 30.0
    jitter: float = 0.2
    factor: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.initial <= self.maximum:
            raise ValueError(
                f"back-off needs 0 < initial <= maximum, got initial {self.initial} and maximum {self.maximum}"
            )
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"back-off jitter is a share between 0 and 1, got {self.jitter}")
        if self.factor < 1:
            raise ValueError(f"back-off factor is at least 1, got {self.factor}")

    def delay(self, failures: int, *, uniform: Callable[[], float] = random.random) -> float:
        """Seconds to wait after this many failures in a row (1 or more). `uniform` draws from [0, 1)."""
        if failures < 1:
            raise ValueError(f"a delay follows at least one failure, got {failures}")
        # Past this exponent any step is over any sensible maximum, and a float would overflow.
        step = self.initial * self.factor ** min(failures - 1, 64)
        return min(step, self.maximum) * (1 - self.jitter * uniform())

    def __iter__(self) -> Iterator[float]:
        """The delays after the first, second, third ... failure, without end."""
        failures = 0
        while True:
            failures += 1
            yield self.delay(failures)


class Pauses:
    """The waits within one row of failures; a success ends the row."""

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self.failures = 0

    def next(self, *, at_least: float = 0.0) -> float:
        """Count a failure; the seconds to wait after it, and no fewer than `at_least` (a server's Retry-After)."""
        self.failures += 1
        return max(at_least, self._backoff.delay(self.failures))

    async def wait(self, *, at_least: float = 0.0) -> None:
        """Count a failure and wait."""
        await asyncio.sleep(self.next(at_least=at_least))

    def reset(self) -> None:
        """Begin a new row, after a success."""
        self.failures = 0
