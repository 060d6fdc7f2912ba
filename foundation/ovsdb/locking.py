"""A lock of the database server (RFC 7047 section 4.1.8): who holds it may write, as the server itself checks."""

from __future__ import annotations

import asyncio

import msgspec

from foundation.ovsdb.connection import Connection
from foundation.ovsdb.errors import LockLost
from foundation.ovsdb.operations import Operation


class _Answer(msgspec.Struct):
    locked: bool


_ANSWER = msgspec.json.Decoder(_Answer)


class Lock:
    """Taken from whoever has it on the first connection, asked for politely on later ones; gone for good once stolen.

    So of two holders the later one wins, and the earlier one, coming back from a pause or a lost connection, cannot
    take it back.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.held = asyncio.Event()
        self._stolen = False
        self._taken = False

    def assertion(self) -> Operation:
        """The operation that makes a transaction fail unless we hold the lock."""
        return {"op": "assert", "lock": self.name}

    async def acquire(self, connection: Connection) -> None:
        """On a new connection. Returns when asked for; `held` is set when we have it."""
        if self._stolen:
            return
        raw = await connection.call("lock" if self._taken else "steal", [self.name])
        self._taken = True
        if _ANSWER.decode(raw).locked:
            self.held.set()

    def lost_connection(self) -> None:
        """The server has forgotten us."""
        self.held.clear()

    def notified(self, method: str, name: str) -> None:
        """The server tells that it is ours now ("locked") or somebody else's ("stolen")."""
        if name != self.name:
            return
        if method == "locked":
            self.held.set()
        elif method == "stolen":
            self._stolen = True
            self.held.clear()

    async def wait(self) -> None:
        """Returns when we hold it. Raises LockLost when it was stolen."""
        if not self._stolen and not self.held.is_set():
            await self.held.wait()
        if self._stolen:
            raise LockLost(f"lock {self.name} was taken by another client of the server")
