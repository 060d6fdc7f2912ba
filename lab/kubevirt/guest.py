"""A "virtual machine" whose guest is a network namespace: its network card can be moved from pod to pod.

The guest's card is a tap device there, and this process stands for the hypervisor: it carries frames between that tap
and one in the virt-launcher pod, which hangs on a bridge with the pod's interface, as KubeVirt's bridge binding has it.
Migrating is carrying them to another pod's tap, and announcing the guest there by RARP, as QEMU does.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import struct
from concurrent.futures import ThreadPoolExecutor

from lab.network import namespaces
from lab.network.commands import ip, run
from lab.threads import to_the_end

CARD = "eth0"
TAP, _BRIDGE = "tap0", "k6t-eth0"
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
_CLONE_NEWNET = 0x40000000
_FRAME = 65536
# QEMU's own rhythm: five times, each pause 100 ms longer than the one before (migration parameters announce-*).
ANNOUNCE_SECONDS = (0.0, 0.05, 0.15, 0.25, 0.35)
_libc = ctypes.CDLL(None, use_errno=True)


def rarp(mac: str) -> bytes:
    """The frame with which QEMU announces a card: a reverse ARP request about itself, to everybody."""
    address = bytes.fromhex(mac.replace(":", ""))
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 3) + address + bytes(4) + address + bytes(4)
    return b"\xff" * 6 + address + b"\x80\x35" + body + bytes(60 - 14 - len(body))


class Guest:
    """`namespace` becomes the guest. Use as a context; afterwards nothing is left of it."""

    def __init__(self, namespace: str, *, mac: str, mtu: int = 1400) -> None:
        self.namespace = namespace
        self.mac = mac
        self._mtu = mtu
        self._card = -1
        self._taps: dict[str, int] = {}
        self._at = ""
        self._announcing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Guest:
        await namespaces.create(self.namespace)
        await ip(f"tuntap add dev {CARD} mode tap", namespace=self.namespace)
        self._card = await _opened(self.namespace, CARD)
        # Nobody has waited for duplicate addresses on the wire between a guest and its pod.
        await run(*("ip", "netns", "exec", self.namespace, "sysctl", "-qw", f"net.ipv6.conf.{CARD}.accept_dad=0"))
        await ip(f"link set {CARD} address {self.mac} mtu {self._mtu} up", namespace=self.namespace)
        asyncio.get_running_loop().add_reader(self._card, self._outward)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.pause()
        for pod in tuple(self._taps):
            self.unplug(pod)
        asyncio.get_running_loop().remove_reader(self._card)
        os.close(self._card)
        await namespaces.remove(self.namespace)

    async def plug(self, pod: str, interface: str = "eth0") -> None:
        """Makes this guest's way into pod namespace `pod`, before it is started there."""
        await wire(pod, interface, mtu=self._mtu)
        self._taps[pod] = await _opened(pod, TAP)
        asyncio.get_running_loop().add_reader(self._taps[pod], self._inward, pod)

    def unplug(self, pod: str) -> None:
        """The virt-launcher in this pod has ended."""
        descriptor = self._taps.pop(pod, -1)
        if descriptor >= 0:
            asyncio.get_running_loop().remove_reader(descriptor)
            os.close(descriptor)

    def pause(self) -> None:
        """The guest stands still: nothing goes in or out."""
        self._at = ""
        if self._announcing is not None:
            self._announcing.cancel()
            self._announcing = None

    def run(self, pod: str, *, announce: bool) -> None:
        """The guest goes on in this pod."""
        self.pause()
        self._at = pod
        if announce:
            self._announcing = asyncio.create_task(self._announce(pod))

    async def _announce(self, pod: str) -> None:
        for seconds in ANNOUNCE_SECONDS:
            await asyncio.sleep(seconds)
            with contextlib.suppress(OSError, KeyError):
                os.write(self._taps[pod], rarp(self.mac))

    def _outward(self) -> None:
        frame = os.read(self._card, _FRAME)
        if self._at:
            with contextlib.suppress(OSError, KeyError):
                os.write(self._taps[self._at], frame)

    def _inward(self, pod: str) -> None:
        try:
            frame = os.read(self._taps[pod], _FRAME)
        except OSError:
            # The pod's namespace is gone.
            self.unplug(pod)
            return
        if pod == self._at:
            with contextlib.suppress(OSError):
                os.write(self._card, frame)


async def wire(pod: str, interface: str = "eth0", *, mtu: int = 1400) -> None:
    """A bridge in a pod's namespace with the pod's interface and a tap for the hypervisor, as virt-handler makes it."""
    await ip(
        f"tuntap add dev {TAP} mode tap",
        f"link add {_BRIDGE} type bridge forward_delay 0",
        # The address is the guest's; a bridge would keep frames for it.
        f"link set {interface} down",
        f"link set {interface} address 02:{os.urandom(5).hex(':')}",
        f"link set {interface} master {_BRIDGE} up",
        f"link set {TAP} mtu {mtu} master {_BRIDGE} up",
        f"link set {_BRIDGE} mtu {mtu} up",
        namespace=pod,
    )


async def _opened(namespace: str, name: str) -> int:
    """A descriptor of a tap in a namespace, good from anywhere."""

    def attach() -> int:
        with open(namespaces.path(namespace), "rb") as there:
            if _libc.setns(there.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"cannot enter network namespace {namespace}")
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def in_thread_of_its_own() -> int:
        with ThreadPoolExecutor(1) as executor:
            return executor.submit(attach).result()

    return await to_the_end(in_thread_of_its_own)
