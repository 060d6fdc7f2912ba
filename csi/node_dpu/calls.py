"""Which volumes csi-controller is or was just asking for: reasons to leave an attachment alone."""

import contextlib
import time
from collections.abc import Callable, Iterator


class RecentCalls:
    """Attach calls under way or ended less than `grace` seconds ago."""

    def __init__(self, grace: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._grace = grace
        self._clock = clock
        self._running: dict[str, int] = {}
        self._ended: dict[str, float] = {}

    @contextlib.contextmanager
    def attaching(self, volume_id: str) -> Iterator[None]:
        self._running[volume_id] = self._running.get(volume_id, 0) + 1
        try:
            yield
        finally:
            left = self._running.pop(volume_id) - 1
            if left:
                self._running[volume_id] = left
            self._ended[volume_id] = self._clock()

    def detached(self, volume_id: str) -> None:
        self._ended.pop(volume_id, None)

    def running(self, volume_id: str) -> bool:
        return volume_id in self._running

    def recent(self, volume_id: str) -> bool:
        """Whether the volume was asked for within the grace."""
        if volume_id in self._running:
            return True
        ended = self._ended.get(volume_id)
        if ended is None:
            return False
        if self._clock() - ended < self._grace:
            return True
        del self._ended[volume_id]
        return False
