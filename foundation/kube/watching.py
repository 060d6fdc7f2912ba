"""Lines of a watch out of the chunks that the network delivers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from foundation.kube.errors import Malformed

LONGEST_LINE = 16 << 20
"""Bytes; etcd refuses objects far below this, so a longer line is a broken stream."""


class Chunks(Protocol):
    """A body as it arrives (`foundation.kube.transport.Body`)."""

    async def readany(self) -> bytes:
        """All that is there, at least a byte; b"" at the end."""

    def hold(self, held: bool) -> None:
        """Leave what arrives in the socket, or take it again."""


class Pace:
    """How often a stream may wake us up: at once while it is calm, in batches when it storms.

    A wake-up costs ten times what an event does. Below `RATE` events a second each is handled as it comes. Above, after
    `BURST` wake-ups, the stream is read every `PAUSE` seconds, until it brings less than `RATE` again: a thousand
    events a second are twenty at a time, at most 20 ms late.
    """

    RATE = 250.0
    BURST = 32.0
    PAUSE = 0.02

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._credit = self.BURST
        self._at = clock()
        self._storm = False

    def pause(self, events: int) -> float:
        """Take one wake-up that brought `events`; the seconds to wait before the next read."""
        now = self._clock()
        since, self._at = now - self._at, now
        if self._storm:
            self._storm = events >= since * self.RATE
            self._credit = self.BURST
        else:
            self._credit = min(self.BURST, self._credit + since * self.RATE) - 1.0
            self._storm = self._credit < 0.0
        return self.PAUSE if self._storm else 0.0


async def lines(content: Chunks, pace: Pace | None = None) -> AsyncIterator[list[bytes]]:
    """All whole lines of each chunk together, so that a burst of events costs one wake-up; `pace` makes bursts.

    Ends with the stream; a part of a line at the end is dropped (the server sends that event again on resume).
    """
    rest: list[bytes] = []
    held = 0
    while chunk := await content.readany():
        head, newline, tail = chunk.rpartition(b"\n")
        if not newline:
            rest.append(chunk)
            held += len(chunk)
            if held > LONGEST_LINE:
                raise Malformed(f"a watch sent a line of more than {LONGEST_LINE} bytes")
            continue
        if rest:
            head = b"".join((*rest, head))
        rest = [tail] if tail else []
        held = len(tail)
        batch = [line for line in head.split(b"\n") if line]
        yield batch
        if pace is not None and (pause := pace.pause(len(batch))) > 0.0:
            content.hold(True)
            await asyncio.sleep(pause)
            content.hold(False)
