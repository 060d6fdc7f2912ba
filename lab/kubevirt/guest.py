"""A "virtual machine" whose guest is a network namespace: its network card can be moved from pod to pod.

The guest's card is a tap device there, and a process (lab/kubevirt/carrier.py) stands for the hypervisor. Migrating is
having it carry frames to another pod's tap, and announce the guest there, as QEMU does.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

from lab.kubevirt.taps import CARD, wire
from lab.network import namespaces
from lab.network.commands import ip, run

_SECONDS = 30.0


class HypervisorGone(RuntimeError):
    """The process that carries a guest's frames has ended, or is silent."""


class Guest:
    """`namespace` becomes the guest. Use as a context; afterwards nothing is left of it."""

    def __init__(self, namespace: str, *, mac: str, mtu: int = 1400) -> None:
        self.namespace = namespace
        self.mac = mac
        self._mtu = mtu
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Guest:
        await namespaces.create(self.namespace)
        await ip(f"tuntap add dev {CARD} mode tap", namespace=self.namespace)
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "lab.kubevirt.carrier", self.namespace, self.mac),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        await self._done()
        # Nobody has waited for duplicate addresses on the wire between a guest and its pod.
        await run(*("ip", "netns", "exec", self.namespace, "sysctl", "-qw", f"net.ipv6.conf.{CARD}.accept_dad=0"))
        await ip(f"link set {CARD} address {self.mac} mtu {self._mtu} up", namespace=self.namespace)
        return self

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await namespaces.remove(self.namespace)

    async def plug(self, pod: str, interface: str = "eth0") -> None:
        """Makes this guest's way into pod namespace `pod`, before it is started there."""
        await wire(pod, interface, mtu=self._mtu)
        await self._tell(f"plug {pod}")

    async def unplug(self, pod: str) -> None:
        """The virt-launcher in this pod has ended."""
        await self._tell(f"unplug {pod}")

    async def pause(self) -> None:
        """The guest stands still: nothing goes in or out."""
        await self._tell("pause")

    async def run(self, pod: str, *, announce: bool) -> None:
        """The guest goes on in this pod."""
        await self._tell(f"{'announce' if announce else 'run'} {pod}")

    async def _tell(self, command: str) -> None:
        async with self._turn:
            assert self._process.stdin is not None
            self._process.stdin.write(f"{command}\n".encode())
            await self._done()

    async def _done(self) -> None:
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(_SECONDS):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise HypervisorGone(f"the hypervisor of {self.namespace} was silent for {_SECONDS:g} s") from None
        if not line:
            raise HypervisorGone(f"the hypervisor of {self.namespace} has ended")
