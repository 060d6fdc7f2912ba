"""File systems on a disk: what is there, make one where there is nothing, check, grow.

Nothing is ever formatted that is not blank: whose ends hold anything, or that has a signature which libblkid knows.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Final

from csi.capabilities import FILE_SYSTEMS
from csi.errors import FailedPrecondition, Internal
from csi.node_host import superblocks
from csi.node_host.bounded import blocking
from csi.node_host.commands import run
from csi.node_host.disks import Disk

_log = logging.getLogger(__name__)
DEFAULT: Final = "ext4"
UNKNOWN: Final = "data of an unknown kind"
_HEAD_SECONDS: Final = 30.0
_BLKID_NOTHING: Final = 2

_MAKE: Final[Mapping[str, Sequence[str]]] = {
    # No discard of the whole disk: a new volume is blank, and a thin one would only be read through.
    "ext4": ("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1"),
    "xfs": ("mkfs.xfs", "-q", "-f", "-K"),
    "btrfs": ("mkfs.btrfs", "-q", "-f", "-K"),
}
# A clone has its source's UUID; XFS refuses to mount both on one node without this.
MOUNT_OPTIONS: Final[Mapping[str, Sequence[str]]] = {"xfs": ("nouuid",)}


class FileSystems:
    def __init__(self, *, format_options: Mapping[str, Sequence[str]], seconds: float) -> None:
        self._format_options = format_options
        self._seconds = seconds

    async def signature(self, disk: Disk) -> str:
        """The file system's name, any other content's description, or "" for a blank disk.

        blkid says "nothing found" of a disk that it cannot read, too: so both ends are read here first, and a disk
        that does not give them is an error, never blank. What no program here knows may be somebody's data as well.
        """
        empty = await blocking(lambda: _empty_ends(disk), seconds=_HEAD_SECONDS, what=f"read {disk.path}")
        output = await run("blkid", "-p", "-o", "export", disk.path, seconds=self._seconds, accept=(0, _BLKID_NOTHING))
        if output.code == _BLKID_NOTHING:
            return "" if empty else UNKNOWN
        values = dict(line.split("=", 1) for line in output.out.splitlines() if "=" in line)
        if "TYPE" in values:
            return values["TYPE"]
        if "PTTYPE" in values:
            return f"a {values['PTTYPE']} partition table"
        raise Internal(f"blkid of {disk.path} gave neither TYPE nor PTTYPE: {output.out[:200]!r}")

    async def make(self, disk: Disk, fs_type: str) -> None:
        """The caller has seen that the disk is blank."""
        arguments = (*_MAKE[fs_type], *self._format_options.get(fs_type, ()), disk.path)
        await run(*arguments, seconds=self._seconds)

    async def check(self, disk: Disk, fs_type: str) -> None:
        """ext4 is repaired as far as that is safe; xfs and btrfs repair themselves when they are mounted.

        Raises FailedPrecondition when errors are left.
        """
        if fs_type != "ext4":
            return
        # fsck(8), bits: 1 corrected, 2 reboot asked for, 4 errors left, 8 could not run.
        output = await run("fsck.ext4", "-p", disk.path, seconds=self._seconds, accept=range(256))
        words = (output.out.strip() or output.err.strip())[-300:]
        if output.code & 8:
            # E.g. still mounted in some container's mount namespace. Whether it can be mounted is for mount to say.
            _log.warning("%s was not checked: %s", disk.path, words)
        if output.code & 4:
            raise FailedPrecondition(
                f"the file system on {disk.path} is damaged beyond automatic repair (fsck.ext4 said {output.code}): "
                f"{words}; run fsck.ext4 by hand"
            )

    async def lags(self, disk: Disk) -> bool:
        """Whether the file system is smaller than its disk, by more than it would leave unused anyway.

        Only for a disk that is not mounted, or ext4: xfs and btrfs write past the page cache that is read here.
        """
        head = await blocking(
            lambda: _read_head(disk.path), seconds=_HEAD_SECONDS, what=f"read the superblock of {disk.path}"
        )
        found = superblocks.parse(head)
        return found is not None and disk.size - found.size >= 1 << 20

    async def grow_unmounted(self, disk: Disk) -> None:
        """ext4 to the disk's size; the others grow only while mounted. resize2fs wants a full check before."""
        await run("fsck.ext4", "-f", "-p", disk.path, seconds=self._seconds, accept=(0, 1))
        await run("resize2fs", disk.path, seconds=self._seconds)

    async def grow(self, disk: Disk, fs_type: str, mounted_at: str) -> None:
        """Online, to the disk's size. For ext4 the kernel demands CAP_SYS_RESOURCE (ext4_resize_begin)."""
        if fs_type in ("ext4", "ext3"):
            await run("resize2fs", disk.path, seconds=self._seconds)
        elif fs_type == "xfs":
            await run("xfs_growfs", mounted_at, seconds=self._seconds)
        elif fs_type == "btrfs":
            await run("btrfs", "filesystem", "resize", "max", mounted_at, seconds=self._seconds)
        else:
            raise FailedPrecondition(f"{mounted_at}: a {fs_type} file system cannot be grown here")


def refuse_other(disk: Disk, found: str, wanted: str) -> None:
    """Raises FailedPrecondition for content that must not be touched."""
    if found not in FILE_SYSTEMS and found != "ext3":
        raise FailedPrecondition(
            f"disk {disk.name} holds {found}, which is not one of {', '.join(FILE_SYSTEMS)}; it is not formatted, "
            "since it is not blank: use volumeMode Block, or wipe it by hand"
        )
    if wanted and found != wanted:
        raise FailedPrecondition(
            f"disk {disk.name} holds {found}, but the volume asks for {wanted}; it is not formatted anew: "
            "correct fsType"
        )


def _empty_ends(disk: Disk) -> bool:
    """Whether the first and the last bytes are all zero."""
    empty = True
    try:
        descriptor = os.open(disk.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for start in (0, max(0, disk.size - superblocks.HEAD_BYTES)):
                found = os.pread(descriptor, superblocks.HEAD_BYTES, start)
                if not found:
                    raise Internal(f"disk {disk.path} ends before byte {start}")
                empty = empty and not found.strip(b"\0")
        finally:
            os.close(descriptor)
    except OSError as error:
        raise Internal(f"disk {disk.path} cannot be read: {error.strerror}") from error
    return empty


def _read_head(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(descriptor, superblocks.HEAD_BYTES, 0)
    finally:
        os.close(descriptor)
