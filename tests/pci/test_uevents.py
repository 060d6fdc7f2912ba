"""Uevents against the kernel's own socket: parsing, order, strangers, overflow."""

import asyncio
import os
import socket
import struct

import pytest

from foundation.pci.uevents import OVERFLOW, Uevent, Uevents, parse

HEADER = struct.Struct("=IHHII")
VF = "/devices/pci0000:00/0000:00:03.0/0000:03:00.0/0000:03:00.2"


def body(action: str, devpath: str, **fields: str) -> bytes:
    lines = {"ACTION": action, "DEVPATH": devpath, **fields}
    return b"\0".join(
        [f"{action}@{devpath}".encode(), *(f"{key}={value}".encode() for key, value in lines.items()), b""]
    )


@pytest.mark.parametrize(
    ("datagram", "expected"),
    [
        (body("bind", VF, SUBSYSTEM="pci", DRIVER="vfio-pci"), ("bind", VF, "pci", "0000:03:00.2")),
        (body("add", f"{VF}/net/eth0", SUBSYSTEM="net"), ("add", f"{VF}/net/eth0", "net", "0000:03:00.2")),
        (
            body("change", "/devices/virtual/block/b", SUBSYSTEM="block"),
            ("change", "/devices/virtual/block/b", "block", ""),
        ),
        (body("remove", "/devices/x"), ("remove", "/devices/x", "", "")),
        (body("add", "/devices/a=b", NAME="c=d"), ("add", "/devices/a=b", "", "")),
    ],
)
def test_a_kernel_event(datagram: bytes, expected: tuple[str, str, str, str]) -> None:
    event = parse(datagram)
    assert event is not None
    assert (event.action, event.devpath, event.subsystem, event.pci_address) == expected


@pytest.mark.parametrize(
    "datagram", [b"", b"\0", b"libudev\0\xfe\xed\xca\xfe", b"add@", b"add@relative/path\0", b"\xff\xfe"]
)
def test_anything_else_is_no_event(datagram: bytes) -> None:
    assert parse(datagram) is None


def send(*bodies: bytes) -> None:
    """Through the kernel's end of the socket, which broadcasts them as its own."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 15) as sender:
        for text in bodies:
            sender.sendto(HEADER.pack(HEADER.size + len(text), 0x10, 0x1, 1, 0) + text, (0, 0))


@pytest.mark.root
async def test_events_arrive_in_order() -> None:
    seen: list[str] = []
    done = asyncio.Event()

    def note(event: Uevent) -> None:
        if "test-order" in event.devpath:
            seen.append(event.devpath)
        if event.devpath.endswith("/end"):
            done.set()

    with Uevents() as events:
        events.subscribe(lambda event: 1 / 0 if "test-order" in event.devpath else None)
        end = events.subscribe(note)
        send(*(body("add", f"/devices/test-order/{number}", SUBSYSTEM="pci") for number in range(50)))
        send(body("add", "/devices/test-order/end"))
        await asyncio.wait_for(done.wait(), 5)
        end()
        assert seen == [*(f"/devices/test-order/{number}" for number in range(50)), "/devices/test-order/end"]


@pytest.mark.root
async def test_a_stranger_is_not_heard() -> None:
    heard: list[str] = []
    done = asyncio.Event()

    def note(event: Uevent) -> None:
        heard.append(event.devpath)
        if event.devpath == "/devices/genuine":
            done.set()

    with Uevents() as events:
        assert events._socket is not None
        port = events._socket.getsockname()[0]
        events.subscribe(note)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 15) as stranger:
            stranger.sendto(body("add", "/devices/forged"), (port, 0))
        send(body("add", "/devices/genuine"))
        await asyncio.wait_for(done.wait(), 5)
    assert "/devices/forged" not in heard


@pytest.mark.root
async def test_lost_events_are_reported() -> None:
    done = asyncio.Event()
    with Uevents() as events:
        assert events._socket is not None
        events._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        events.subscribe(lambda event: done.set() if event.action == OVERFLOW else None)
        # All of them before the loop reads the first.
        send(*(body("add", f"/devices/test-flood/{number}", PAD="x" * 512) for number in range(200)))
        await asyncio.wait_for(done.wait(), 5)


@pytest.mark.root
async def test_nothing_is_left_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Uevents():
        pass
    assert len(os.listdir("/proc/self/fd")) == before
