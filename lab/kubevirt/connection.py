"""One TCP connection that tells how long it stood still: ``python -m lab.kubevirt.connection serve|keep ADDRESS PORT``.

`serve` answers every byte with a byte, prints its port, and ends with its one client. `keep` sends a byte every few
milliseconds for as long as its standard input is open; for each line there it prints, with the next answer, what has
happened since the last one, as JSON: {"answers": n, "gap_ms": the longest time between two answers}.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import sys
import time

EVERY_SECONDS = 0.002
CONNECT_SECONDS = 20.0


async def serve(address: str, port: int) -> None:
    """Serves one client."""
    ended = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _at_once(writer)
        try:
            while data := await reader.read(4096):
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()
            ended.set()

    server = await asyncio.start_server(answer, address, port)
    async with server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await ended.wait()


async def keep(address: str, port: int) -> None:
    """Exit 1 when the connection breaks."""
    reader, writer = await asyncio.wait_for(asyncio.open_connection(address, port), CONNECT_SECONDS)
    _at_once(writer)
    print("connected", flush=True)
    arrivals: list[float] = [time.monotonic()]
    answered = asyncio.Event()

    async def send() -> None:
        while True:
            writer.write(b".")
            await writer.drain()
            await asyncio.sleep(EVERY_SECONDS)

    async def receive() -> None:
        while data := await reader.read(4096):
            arrivals.extend([time.monotonic()] * len(data))
            answered.set()
        raise ConnectionError("the other side has closed")

    async def tell() -> None:
        lines = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        while await lines.readline():
            # A pause that has not ended yet counts to its end.
            answered.clear()
            await answered.wait()
            seen = arrivals.copy()
            gap = max(after - before for before, after in itertools.pairwise(seen))
            del arrivals[: len(seen) - 1]
            print(json.dumps({"answers": len(seen) - 1, "gap_ms": gap * 1000}), flush=True)

    tasks = [asyncio.create_task(work()) for work in (send, receive, tell)]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    for task in done:
        task.result()


def _at_once(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


if __name__ == "__main__":
    work = serve if sys.argv[1] == "serve" else keep
    try:
        asyncio.run(work(sys.argv[2], int(sys.argv[3])))
    except OSError as error:
        sys.exit(f"{sys.argv[2]} port {sys.argv[3]}: {error}")
