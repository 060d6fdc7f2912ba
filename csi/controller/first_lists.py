"""Waiting until Kubernetes has been read once: before, nobody can say which hosts there are, nor what they have."""

import asyncio
from typing import Final

from csi.errors import Unavailable

# Less than the side-cars wait for an answer.
_SECONDS: Final = 8.0


class FirstLists:
    """Of nodes, volumes and attachments."""

    def __init__(self) -> None:
        self._read = asyncio.Event()

    @property
    def read(self) -> bool:
        return self._read.is_set()

    def note(self) -> None:
        """All of them have been read."""
        self._read.set()

    async def wait(self) -> None:
        """Raises Unavailable."""
        try:
            async with asyncio.timeout(_SECONDS):
                await self._read.wait()
        except TimeoutError:
            raise Unavailable(
                "Kubernetes has not been read yet, so nobody knows who has which volume: does the API server answer, "
                "and may csi-controller list nodes, persistentvolumes and volumeattachments?"
            ) from None
