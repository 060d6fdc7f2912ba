"""The kernel's write protection of a raw disk, for a host that was let in to read only.

NVMe-oF knows no read-only host, and a device node that is mounted read-only can be written all the same. A disk with
a file system is not protected: a read-only mount may have to replay its journal. Blocking.
"""

import contextlib
import fcntl
import os
import struct

from csi.errors import Internal

# linux/fs.h, _IO(0x12, 93)
_BLKROSET = 0x125D


def protect(path: str) -> None:
    """Until `lift`, or until the disk leaves the host. Raises Internal."""
    try:
        _set(path, 1)
    except OSError as error:
        raise Internal(f"disk {path} cannot be protected from writing: {error.strerror}") from error


def lift(path: str) -> None:
    """Succeeds for a disk that is gone."""
    with contextlib.suppress(OSError):
        _set(path, 0)


def _set(path: str, value: int) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _BLKROSET, struct.pack("i", value))
    finally:
        os.close(descriptor)
