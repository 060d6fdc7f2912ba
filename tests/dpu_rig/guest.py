"""The host behind a function, for tests: what it would come to know of its controller and disks."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any


class Guest:
    """The host behind a function, as far as the stand-in tells it."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self.controller: dict[str, Any] = {}
        self.namespaces: dict[int, dict[str, Any]] = {}
        self.events: list[str] = []
        self.gone = asyncio.Event()
        self._news = asyncio.Event()

    @contextlib.asynccontextmanager
    async def __call__(self) -> AsyncIterator["Guest"]:
        reader, writer = await asyncio.open_unix_connection(str(self._socket))
        task = asyncio.create_task(self._read(reader))
        try:
            yield self
        finally:
            task.cancel()
            # A killed SPDK resets the connection when it had something unread.
            with contextlib.suppress(asyncio.CancelledError, ConnectionResetError):
                await task
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            event = json.loads(line)
            self.events.append(event["event"])
            match event["event"]:
                case "controller":
                    self.controller = event
                case "namespace_add":
                    self.namespaces[event["nsid"]] = event
                case "namespace_remove":
                    self.namespaces.pop(event["nsid"], None)
                case "namespace_resize":
                    self.namespaces[event["nsid"]]["size"] = event["size"]
            self._news.set()
        self.gone.set()
        self._news.set()

    def data(self, nsid: int, length: int) -> bytes:
        """What the disk begins with."""
        shown = self.namespaces[nsid]
        with open(shown["file"], "rb") as file:
            file.seek(shown["offset"])
            return file.read(length)

    async def until(self, condition: Callable[["Guest"], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition(self):
                self._news.clear()
                await self._news.wait()
