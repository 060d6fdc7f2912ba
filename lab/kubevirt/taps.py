"""The taps between a pod and the hypervisor in it, as KubeVirt's bridge binding has them."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from concurrent.futures import ThreadPoolExecutor

from lab.network import namespaces
from lab.network.commands import ip
from lab.threads import to_the_end

CARD = "eth0"
TAP, BRIDGE = "tap0", "k6t-eth0"
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


async def wire(pod: str, interface: str = "eth0", *, mtu: int = 1400) -> None:
    """A bridge in a pod's namespace with the pod's interface and a tap for the hypervisor, as virt-handler makes it."""
    await ip(
        f"tuntap add dev {TAP} mode tap",
        f"link add {BRIDGE} type bridge forward_delay 0",
        # The address is the guest's; a bridge would keep frames for it.
        f"link set {interface} down",
        f"link set {interface} address 02:{os.urandom(5).hex(':')}",
        f"link set {interface} master {BRIDGE} up",
        f"link set {TAP} mtu {mtu} master {BRIDGE} up",
        f"link set {BRIDGE} mtu {mtu} up",
        namespace=pod,
    )


async def opened(namespace: str, name: str) -> int:
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
