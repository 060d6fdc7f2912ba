"""Keeping back one reply of SPDK's stand-in, so that something can happen between a call and its end."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any


async def fault(faults: Path, **wish: Any) -> None:
    """Have the stand-in with that control socket make trouble, e.g. do="delay", method=..., seconds=..., times=1."""
    reader, writer = await asyncio.open_unix_connection(str(faults))
    writer.write(json.dumps(wish).encode() + b"\n")
    assert json.loads(await reader.readline())["ok"]
    writer.close()


@contextlib.asynccontextmanager
async def held(faults: Path, method: str) -> AsyncIterator[Awaitable[object]]:
    """Keep back the reply to the next call of `method`, until the block ends; yields the call's coming."""
    reader, writer = await asyncio.open_unix_connection(str(faults))
    writer.write(json.dumps({"do": "hold", "method": method, "times": 1}).encode() + b"\n")
    assert json.loads(await reader.readline())["ok"]
    try:
        yield asyncio.wait_for(reader.readline(), 60)
    finally:
        writer.close()
        await fault(faults, do="clear")
