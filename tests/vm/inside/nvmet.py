"""Runs in the guest: the kernel's own NVMe-oF target under backend kind `nvmet`, and the kernel's initiator.

The last line of output is what was seen, in JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import mmap
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from csi import identity
from csi.errors import Unavailable
from csi.framework.backend import HostKeys, Portal, SizeRange, Volume, VolumeSpec
from csi.framework.backends.nvmet import NvmetBackend
from csi.framework.backends.nvmet.config import NvmetConfig, NvmetParameters
from csi.node_host.disks import Disk, Disks
from csi.node_host.fabrics import Fabrics
from csi.publication import PublishContext
from foundation.pci import Sysfs
from foundation.pci.uevents import Uevents

PORTALS = (Portal("tcp", "127.0.0.1", 4420),)
SECONDS = 60.0
MIB = 1 << 20
BLOCK = 4096
NO_KEYS = HostKeys()


class Initiator:
    """This machine as a host of its own target, under a node's name."""

    def __init__(self, node: str, uevents: Uevents) -> None:
        self.nqn = identity.host_nqn(node)
        self._host_id = identity.host_id(node)
        self._fabrics = Fabrics(sysfs=Sysfs(), dev_root=Path("/dev"), node=node)
        self._disks = Disks(sysfs=Sysfs(), dev_root=Path("/dev"), physical_functions={}, uevents=uevents)

    async def connect(self, volume: Volume) -> str:
        """Why not, "" when it is connected."""
        try:
            await asyncio.to_thread(self._fabrics.connect, self._context(volume))
        except Unavailable as error:
            return str(error)
        return ""

    def connect_again(self, volume: Volume) -> None:
        """A second connection of this machine, under another host's name. Raises OSError."""
        wanted = self._context(volume)
        (portal,) = volume.portals
        options = f"nqn={wanted.subsystem_nqn},transport=tcp,traddr={portal.address},trsvcid={portal.port}"
        descriptor = os.open("/dev/nvme-fabrics", os.O_RDWR)
        try:
            os.write(descriptor, f"{options},hostnqn={self.nqn},hostid={self._host_id},reconnect_delay=1".encode())
        finally:
            os.close(descriptor)

    async def disk(self, volume: Volume) -> Disk:
        """The disk when it has the volume's size."""
        return await self._disks.wait(self._context(volume), seconds=SECONDS, rescan_after=SECONDS, function=False)

    def disconnect(self, volume: Volume) -> None:
        self._fabrics.disconnect(self._context(volume).subsystem_nqn)

    def state(self) -> str:
        """Of this host's controller, "" for none."""
        for controller in Path("/sys/class/nvme").iterdir():
            # Functions have no such attribute, and a controller may go while it is read.
            with contextlib.suppress(OSError):
                if (controller / "hostnqn").read_text().strip() == self.nqn:
                    return (controller / "state").read_text().strip()
        return ""

    async def until(self, reached: Callable[[str], bool]) -> str:
        """No event tells of a controller's state."""
        async with asyncio.timeout(SECONDS):
            while not reached(self.state()):
                await asyncio.sleep(0.1)
        return self.state()

    def _context(self, volume: Volume) -> PublishContext:
        name = identity.VolumeId("files", volume.key)
        portals = [{"transport": p.transport, "address": p.address, "port": p.port} for p in volume.portals]
        return PublishContext(
            namespace_uuid=identity.namespace_uuid(name),
            subsystem_nqn=identity.subsystem_nqn(name),
            size_bytes=volume.size,
            portals=json.dumps(portals),
            host_nqn=self.nqn,
        )


def write(disk: str, data: bytes, *, at: int) -> None:
    """Past the page cache."""
    block = mmap.mmap(-1, len(data))
    block.write(data)
    descriptor = os.open(disk, os.O_WRONLY | os.O_DIRECT | os.O_SYNC)
    try:
        os.pwrite(descriptor, block, at)
    finally:
        os.close(descriptor)


async def main(directory: str) -> None:
    seen: dict[str, Any] = {}
    with Uevents() as uevents:
        backend = NvmetBackend("files", NvmetConfig(directory=directory, portals=PORTALS))
        await backend.start()
        first, second, stranger = (Initiator(name, uevents) for name in ("first", "second", "stranger"))
        spec = VolumeSpec(token=identity.hashed("v"), size=SizeRange(16 * MIB), parameters=NvmetParameters())
        volume = await backend.create(spec)
        for host in (first, second):
            await backend.grant(volume.key, host.nqn, keys=NO_KEYS, shared=True)
        seen["refused"] = await stranger.connect(volume)
        seen["connected"] = await first.connect(volume)
        # By hand: csi-node-host sees that this machine has a connection to that portal already.
        await asyncio.to_thread(second.connect_again, volume)
        disk = await first.disk(volume)
        seen["size"] = disk.size
        await asyncio.to_thread(write, disk.path, b"hello".ljust(BLOCK), at=BLOCK)
        with open(Path(directory) / f"{volume.key}.img", "rb") as file:
            file.seek(BLOCK)
            seen["read"] = file.read(5).decode()
        volume = await backend.expand(volume.key, SizeRange(24 * MIB))
        seen["expanded"] = (await first.disk(volume)).size
        seen["before"] = [first.state(), second.state()]
        await backend.revoke(volume.key, first.nqn)
        # The kernel gives a controller up whose reconnect the target refuses for good.
        seen["cut off"] = await first.until(lambda state: not state)
        seen["other"] = await second.until(lambda state: state == "live")
        await asyncio.to_thread(write, disk.path, b"again".ljust(BLOCK), at=0)
        seen["after"] = [first.state(), second.state()]
        await asyncio.to_thread(first.disconnect, volume)
        await backend.revoke(volume.key, second.nqn)
        await backend.delete(volume.key)
        left = Path("/sys/kernel/config/nvmet")
        seen["left"] = [path.name for name in ("subsystems", "hosts") for path in (left / name).iterdir()]
    sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
