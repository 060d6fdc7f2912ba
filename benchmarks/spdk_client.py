"""What the SPDK client costs: calls a second and CPU a call, beside a bare socket that sends the same bytes.

Both talk to the same stand-in, looked at without its 4 ms beat, in turns within one run; the floor reads lines and
does not even parse them. Serial calls are measured with the beat: its 4 ms are in both.
"""

from __future__ import annotations

import asyncio
import json
import socket
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks import report
from foundation.spdk.client import SpdkClient
from lab.spdk.process import SpdkProcess

_CALLS = 2000
_ROUNDS = 15
_METHOD = "spdk_get_version"


def _raw(path: Path) -> float:
    """Seconds for the calls over a bare blocking socket, all requests ahead of all replies."""
    requests = b"".join(
        json.dumps({"jsonrpc": "2.0", "method": _METHOD, "id": number}).encode() for number in range(_CALLS)
    )
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(b'{"jsonrpc":"2.0","method":"spdk_get_version","id":0}')
        connection.recv(65536)
        start = time.perf_counter()
        connection.sendall(requests)
        left = _CALLS
        while left:
            left -= connection.recv(1 << 20).count(b"\n")
        return time.perf_counter() - start


async def _client(client: SpdkClient) -> tuple[float, float]:
    """Seconds and CPU seconds for the calls, all under way at once."""
    start, cpu = time.perf_counter(), time.process_time()
    results = await client.batch([(_METHOD, None)] * _CALLS, deadline=60)
    seconds, used = time.perf_counter() - start, time.process_time() - cpu
    assert all(result["fields"]["major"] == 26 for result in results)
    return seconds, used


async def _apart(client: SpdkClient) -> float:
    """CPU seconds for the calls when each is a task of its own, as different volumes make them."""
    cpu = time.process_time()
    await asyncio.gather(*(client.call(_METHOD, deadline=60) for _ in range(_CALLS)))
    return time.process_time() - cpu


async def _serial(client: SpdkClient, path: Path, calls: int) -> tuple[float, float]:
    """Medians of one call after another, in seconds: ours, and over a bare socket, in turns."""
    ours, bare = [], []
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        for _ in range(calls):
            start = time.perf_counter()
            await client.call(_METHOD)
            ours.append(time.perf_counter() - start)
            start = time.perf_counter()
            connection.sendall(b'{"jsonrpc":"2.0","method":"spdk_get_version","id":0}')
            connection.recv(65536)
            bare.append(time.perf_counter() - start)
    return statistics.median(ours), statistics.median(bare)


async def _measure(directory: Path) -> None:
    floor: list[float] = []
    ours: list[tuple[float, float]] = []
    apart: list[float] = []
    async with (
        SpdkProcess(directory, "busy", arguments=["--beat-ms", "0"]) as process,
        SpdkClient(process.address) as client,
    ):
        await client.connect()
        for _ in range(_ROUNDS):
            floor.append(await asyncio.to_thread(_raw, process.socket))
            ours.append(await _client(client))
            apart.append(await _apart(client))
    async with SpdkProcess(directory, "beat") as process, SpdkClient(process.address) as client:
        serial, bare = await _serial(client, process.socket, 50)
    # Medians for the two that are compared, as both meet the same neighbours; for CPU the best, for others only add.
    report.add(
        "spdk_client.pipelined_calls",
        value=_CALLS / statistics.median(seconds for seconds, _ in ours),
        unit="calls/s",
        floor=_CALLS / statistics.median(floor),
        goal={"of": "ratio", "min": 0.5},
    )
    report.add("spdk_client.cpu_per_call", value=min(used for _, used in ours) / _CALLS * 1e6, unit="us")
    report.add("spdk_client.cpu_per_call_in_a_task", value=min(apart) / _CALLS * 1e6, unit="us")
    report.add(
        "spdk_client.serial_call", value=serial * 1e3, unit="ms", floor=bare * 1e3, goal={"of": "ratio", "max": 1.5}
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(_measure(Path(directory)))


if __name__ == "__main__":
    main()
