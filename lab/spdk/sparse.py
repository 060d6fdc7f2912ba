"""Sparse files: how much data they hold, copying them without filling the holes."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

# linux/fs.h: FICLONE, a copy that shares its blocks, where the file system can.
_FICLONE = 0x40049409


def extents(descriptor: int) -> Iterator[tuple[int, int]]:
    """(start, end) of the data between the holes."""
    at = 0
    while True:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        at = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, at


def data_bytes(path: Path) -> int:
    """Bytes of data, holes not counted; 0 for a file that is not there."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_blocks == 0:
                return 0
            return sum(end - start for start, end in extents(file.fileno()))
    except FileNotFoundError:
        return 0


def make(path: Path, size: int) -> None:
    with open(path, "xb") as file:
        file.truncate(size)


def resize(path: Path, size: int) -> None:
    """Loses what lies behind ``size``."""
    with open(path, "r+b") as file:
        file.truncate(size)


def copy(source: Path, target: Path, size: int) -> None:
    """A new file of ``size`` bytes with the first bytes of ``source``."""
    with open(source, "rb") as old, open(target, "xb") as new:
        try:
            fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
        except OSError:
            _copy_data(old.fileno(), new.fileno(), size)
        new.truncate(size)


def overwrite(source: str, target: str) -> None:
    """Brings the data of ``source`` into a file that is there already."""
    with open(source, "rb") as old, open(target, "r+b") as new:
        _copy_data(old.fileno(), new.fileno(), os.fstat(old.fileno()).st_size)


def _copy_data(source: int, target: int, size: int) -> None:
    for start, end in extents(source):
        at = start
        while at < min(end, size):
            copied = os.copy_file_range(source, target, min(end, size) - at, at, at)
            if copied == 0:
                return
            at += copied
