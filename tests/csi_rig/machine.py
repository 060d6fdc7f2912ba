"""A virtual machine on one host: what it writes goes the way that the host's kernel and SPDK on its DPU would take.

The stand-ins carry no data: a disk of the host is a loop device over the target's own file, whatever became of the
connections in between. So a write here first looks whether it could arrive: the host has the disk, and the target a
connection of the DPU. While there is none SPDK keeps the write, and sends it when there is one again (bdev_nvme with
fast_io_fail_timeout_sec 0); it is lost when the disk goes from the host.
"""

import asyncio
import os
import stat

from csi import identity
from dpu_offload_stubs.csi import csi_pb2
from foundation.spdk.client import SpdkClient
from foundation.spdk.errors import SpdkClientError
from tests.csi_rig.card_host import CardHost
from tests.csi_rig.plant import MIB

_PAUSE_SECONDS, _PATIENCE_SECONDS = 0.01, 60.0
# A disk that went and came again is seen to have gone no later than this.
_CARD_SECONDS = 0.1


class Lost(Exception):
    """The write never arrives."""


class Machine:
    """`path`: its disk, as the pod has it. `target`: the address of the storage's SPDK."""

    def __init__(self, host: CardHost, target: str, volume: csi_pb2.Volume, path: str) -> None:
        self._host = host
        self._target = target
        self._nqn = identity.subsystem_nqn(volume.volume_id)
        number = os.stat(path).st_rdev
        # A container has a device node of its own, which a monitor opens once.
        node = f"{path}.machine"
        os.mknod(node, 0o600 | stat.S_IFBLK, number)
        self._file = os.open(node, os.O_RDWR | os.O_SYNC)
        os.unlink(node)
        self._entry = host.sysfs / "dev/block" / f"{os.major(number)}:{os.minor(number)}"

    def close(self) -> None:
        os.close(self._file)

    async def write(self, text: bytes) -> None:
        """Waits for a connection, if need be. Raises Lost."""
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while not await self._arrives():
                await asyncio.sleep(_PAUSE_SECONDS)
        os.pwrite(self._file, text.ljust(4096, b"\0"), MIB)

    async def loses(self, text: bytes) -> bool:
        """Whether a write of it never arrives; returns when that is known."""
        try:
            await self.write(text)
        except Lost:
            return True
        return False

    def read(self) -> bytes:
        os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(self._file, 4096, MIB).rstrip(b"\0")

    @property
    def size(self) -> int:
        return os.lseek(self._file, 0, os.SEEK_END)

    async def _arrives(self) -> bool:
        self._look()
        if not await self._connected():
            return False
        await asyncio.sleep(_CARD_SECONDS)
        self._look()
        return await self._connected()

    def _look(self) -> None:
        if not self._entry.exists():
            raise Lost

    async def _connected(self) -> bool:
        try:
            async with SpdkClient(self._target) as client:
                controllers = await client.call("nvmf_subsystem_get_controllers", {"nqn": self._nqn})
        except SpdkClientError:
            return False
        return any(each["hostnqn"] == self._host.nqn for each in controllers)
