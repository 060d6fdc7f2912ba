"""A wire between csi-controller and its target on which somebody is killed at the n-th call."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

Kill = Callable[[], Awaitable[None]]


class Wire:
    """Passes JSON-RPC on from `path` to `target`. `arm(n, …)`: at the call after n more, `kill` is awaited, before the
    target has seen that call or when it has answered it; the answer is then lost."""

    def __init__(self, path: Path, target: Path) -> None:
        self.path = path
        self._target = target
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()
        self._left = -1
        self._after = False
        self._kill: Kill | None = None
        self._spared = asyncio.Event()
        self.calls = 0
        self.kills = 0

    async def __aenter__(self) -> "Wire":
        self._server = await asyncio.start_unix_server(self._accepted, self.path, limit=1 << 24)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for link in list(self._links):
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)
        await self._server.wait_closed()

    def arm(self, left: int, *, after: bool, kill: Kill) -> None:
        self._left, self._after, self._kill = left, after, kill
        self._spared.clear()

    def disarm(self) -> None:
        """Also a kill that waits for its call's answer is called off."""
        self._left, self._kill = -1, None
        self._spared.set()

    async def _strike(self, kill: Kill) -> None:
        """The end of this link, which the kill brings about, must not break it off."""
        self._kill = None
        self.kills += 1
        task = asyncio.ensure_future(kill())
        self._links.add(task)
        task.add_done_callback(self._links.discard)
        await asyncio.shield(task)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        try:
            with contextlib.suppress(ConnectionError, FileNotFoundError):
                await self._link(reader, writer)
        finally:
            self._links.discard(task)
            writer.close()

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opening = asyncio.ensure_future(asyncio.open_unix_connection(self._target, limit=1 << 24))
        try:
            answers, calls = await asyncio.shield(opening)
        except asyncio.CancelledError:
            # Given up at the moment in which it came about, it would stay open.
            _, calls = await opening
            calls.close()
            raise
        fatal: set[Any] = set()

        async def back() -> None:
            async for answer in _objects(answers):
                if answer.get("id") in fatal and self._kill is not None:
                    await self._strike(self._kill)
                    return
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()

        async def forth() -> None:
            async for call in _objects(reader):
                self.calls += 1
                self._left -= self._left >= 0
                if self._left < 0 and self._kill is not None and not fatal:
                    if not self._after:
                        await self._strike(self._kill)
                        return
                    fatal.add(call["id"])
                calls.write(json.dumps(call).encode())
                await calls.drain()
                if fatal:
                    # What was written together with it the target has not read yet.
                    await self._spared.wait()
                    fatal.clear()

        ways = {asyncio.ensure_future(back()), asyncio.ensure_future(forth())}
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            calls.close()
            with contextlib.suppress(OSError):
                await calls.wait_closed()


async def _objects(reader: asyncio.StreamReader) -> Any:
    """JSON values that follow one another without a separator, as SPDK sends them."""
    decoder, text = json.JSONDecoder(), ""
    while data := await reader.read(1 << 16):
        text += data.decode()
        while text := text.lstrip():
            try:
                value, end = decoder.raw_decode(text)
            except ValueError:
                break
            text = text[end:]
            yield value
