"""A physical function's link, from the kernel's own announcements."""

import asyncio
import os
import struct
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from cni.device_plugin.app import start
from cni.device_plugin.config import DevicePluginConfig, Pool, Selector
from cni.device_plugin.link_events import LinkEvents, names
from foundation.daemon.running import Daemon

PF, VF0 = "0000:31:00.0", "0000:31:01.0"
VF = "dpu-offload.io/vf"


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def message(kind: int, *attributes: bytes) -> bytes:
    body = struct.pack("=BxHiII", 0, 1, 7, 0, 0) + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


@pytest.mark.parametrize(
    ("datagram", "expected"),
    [
        (message(16, attribute(1, b"\2" * 6), attribute(3, b"ens1f0np0\0")), ["ens1f0np0"]),
        (message(17, attribute(3, b"eth0\0")) + message(16, attribute(3, b"p0\0")), ["eth0", "p0"]),
        (message(20, attribute(3, b"eth0\0")), []),
        (message(16), []),
        (message(16, attribute(3, b"eth0\0"))[:20], []),
        (struct.pack("=IHHII", 4, 16, 0, 0, 0), []),
        (message(16, struct.pack("=HH", 0, 3)), []),
        (b"", []),
    ],
)
def test_names_of_a_datagram(datagram: bytes, expected: list[str]) -> None:
    assert list(names(datagram)) == expected


@pytest.fixture
def link() -> Iterator[str]:
    name = f"dp{os.getpid()}"
    subprocess.run(["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p"], check=True)
    yield name
    subprocess.run(["ip", "link", "del", name], check=False)


async def ip(*arguments: str) -> None:
    process = await asyncio.create_subprocess_exec("ip", *arguments)
    assert await process.wait() == 0


@pytest.mark.root
async def test_a_real_device_goes_up(link: str) -> None:
    seen = asyncio.Event()
    with LinkEvents(lambda name: seen.set() if name == link else None):
        await ip("link", "set", link, "up")
        await asyncio.wait_for(seen.wait(), 30)


@pytest.mark.root
async def test_a_pf_without_link_takes_its_vfs_back(machine: Any, kubelet: Any, link: str) -> None:
    machine.pf(PF, vfs=[VF0], vendor="8086", device="1889", driver="iavf")
    machine.netdev(link, PF)
    config = DevicePluginConfig(
        pools=(Pool(name="vf", selectors=(Selector(),)),),
        plugins_directory=str(kubelet.directory),
        device_info_directory="",
        sysfs=str(machine.sysfs_root),
    )
    async with Daemon("sriov-device-plugin") as daemon:
        await start(config, daemon)
        await kubelet.until(VF, {VF0: "Healthy"})
        machine.set_operstate(link, "down")
        await ip("link", "set", link, "up")  # any announcement: what counts is what sysfs then says
        await kubelet.until(VF, {VF0: "Unhealthy"})
        machine.set_operstate(link, "up")
        await ip("link", "set", link, "down")
        await kubelet.until(VF, {VF0: "Healthy"})
