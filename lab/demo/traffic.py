"""Packets between two pods: ping and one TCP transfer, sent from inside their network namespaces."""

from __future__ import annotations

import asyncio
import re
import sys

PING_SECONDS = 8.0
FIRST_ATTEMPTS = 5
TCP_SECONDS = 15.0


class NoTraffic(RuntimeError):
    """Packets did not arrive."""


async def ping(netns: str, address: str) -> str:
    """Three echo requests from ``netns``, all of which must be answered; returns their mean round trip.

    OVS's userspace datapath drops packets while it resolves a tunnel's other end, about a second once a pair of nodes,
    so single requests go ahead until one is answered.
    """
    for attempt in range(FIRST_ATTEMPTS):
        try:
            await _run(netns, "ping", "-n", "-c", "1", "-W", "1", address, seconds=PING_SECONDS)
            break
        except NoTraffic:
            if attempt == FIRST_ATTEMPTS - 1:
                raise
    output = await _run(netns, "ping", "-n", "-c", "3", "-i", "0.2", "-W", "2", address, seconds=PING_SECONDS)
    if " 0% packet loss" not in output:
        raise NoTraffic(f"ping {address} from {netns}: {' '.join(output.split()[-20:])}")
    match = re.search(r"= [\d.]+/([\d.]+)/", output)
    return f"{match[1]} ms" if match else ""


async def tcp(server_netns: str, server_address: str, client_netns: str) -> None:
    """One megabyte from the client's namespace to the server's, compared by digest."""
    server = await _start(server_netns, sys.executable, "-m", "lab.demo.tcp", "serve", server_address)
    try:
        assert server.stdout is not None
        port = (await asyncio.wait_for(server.stdout.readline(), TCP_SECONDS)).decode().strip()
        if not port:
            raise NoTraffic(f"no TCP server could be started on {server_address} in {server_netns}")
        await _run(
            client_netns, sys.executable, "-m", "lab.demo.tcp", "send", server_address, port, seconds=TCP_SECONDS
        )
    finally:
        if server.returncode is None:
            server.kill()
        await server.wait()


async def _start(netns: str, *command: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        "nsenter",
        f"--net={netns}",
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def _run(netns: str, *command: str, seconds: float) -> str:
    process = await _start(netns, *command)
    try:
        output, _ = await asyncio.wait_for(process.communicate(), seconds)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise NoTraffic(f"{' '.join(command[:3])} in {netns}: no end after {seconds:g} s") from None
    if process.returncode != 0:
        raise NoTraffic(f"{command[0]} in {netns}: {output.decode(errors='replace').strip()[-300:]}")
    return output.decode()
