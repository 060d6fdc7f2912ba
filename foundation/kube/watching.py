"""Lines of a watch out of the chunks that the network delivers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from foundation.kube.errors import Malformed

LONGEST_LINE = 16 << 20
"""Bytes; etcd refuses objects far below this, so a longer line is a broken stream."""


class Chunks(Protocol):
    """A body as it arrives: all that is there, b"" at the end (`aiohttp.StreamReader`)."""

    async def readany(self) -> bytes: ...


async def lines(content: Chunks) -> AsyncIterator[list[bytes]]:
    """All whole lines of each chunk together, so that a burst of events costs one wake-up.

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
        yield [line for line in head.split(b"\n") if line]
