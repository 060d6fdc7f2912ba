"""The small guest: it has a card and a disk, and what it wrote outlives it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from lab.network import namespaces
from lab.network.commands import run
from lab.vm import devices
from lab.vm.guest import Parts
from lab.vm.tiny import TinyGuest, TinyGuestFailed

pytestmark = [pytest.mark.vm, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]
SECONDS = 100.0
MAC = "02:d9:0a:03:00:01"
SERVER = """
start 10.99.0.7
end 10.99.0.7
interface tap0
lease_file {directory}/leases
pidfile {directory}/pid
option subnet 255.255.255.0
option router 10.99.0.1
"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def parts() -> Parts:
    return await Parts.prepare()


@pytest_asyncio.fixture(loop_scope="session")
async def network(parts: Parts, tmp_path: Path) -> AsyncIterator[str]:
    """A namespace with a tap and a DHCP server."""
    name = f"tiny{os.getpid()}"
    await namespaces.create(name)
    inside = ("ip", "netns", "exec", name)
    (tmp_path / "udhcpd.conf").write_text(SERVER.format(directory=tmp_path))
    (tmp_path / "leases").touch()
    await run(*inside, "ip", "tuntap", "add", "tap0", "mode", "tap")
    await run(*inside, "ip", "address", "add", "10.99.0.1/24", "dev", "tap0")
    await run(*inside, "ip", "link", "set", "tap0", "up")
    busybox = parts.unpacked.busybox
    server = await asyncio.create_subprocess_exec(*inside, busybox, "udhcpd", "-f", tmp_path / "udhcpd.conf")
    try:
        yield name
    finally:
        server.terminate()
        await server.wait()
        await namespaces.remove(name)


async def test_a_lease_and_a_disk_that_stays(parts: Parts, network: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    cards = (devices.tap("tap0", mac=MAC), devices.block(str(disk)))
    for script, expected in (
        (
            "lease eth0; echo written > /dev/vda; ping -c 1 10.99.0.1 > /dev/null && echo 'lab: ping'; sleep 1000",
            "ping",
        ),
        ("read word < /dev/vda; echo lab: $word", "written"),
    ):
        kernel, unpacked = parts.kernel, parts.unpacked
        async with TinyGuest(unpacked, kernel, script=script, devices=cards, netns=network) as guest:
            if "lease" in script:
                assert await guest.says("eth0", seconds=SECONDS) == "10.99.0.7/24"
            await guest.says(expected, seconds=SECONDS)
    assert disk.read_bytes().startswith(b"written\n")


async def test_the_end_of_a_guest_is_told(parts: Parts) -> None:
    async with TinyGuest(parts.unpacked, parts.kernel, script="echo lab: working", devices=(), drivers=()) as guest:
        with pytest.raises(TinyGuestFailed, match=r"the guest ended without 'done'.*lab: working"):
            await guest.says("done", seconds=SECONDS)
