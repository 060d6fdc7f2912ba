"""Plain disks: memory, nothing, and a file."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from lab.spdk.bdevs import Backing, Bdev

_COMMON = frozenset(("read", "write", "flush", "reset", "write_zeroes"))


@dataclass(eq=False)
class MallocBdev(Bdev):
    """The bytes live in a memfd, which other processes reach through /proc and which dies with this one."""

    descriptor: int = field(default=-1)

    product = "Malloc disk"
    takes = _COMMON | {"unmap", "zcopy", "compare", "abort", "copy"}
    numa_id = -1

    def backing(self) -> Backing:
        if self.descriptor < 0:
            self.descriptor = os.memfd_create(self.name)
            os.ftruncate(self.descriptor, self.size)
        return Backing(f"/proc/{os.getpid()}/fd/{self.descriptor}")

    def release_bytes(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


@dataclass(eq=False)
class NullBdev(Bdev):
    """Takes everything and gives back nothing: it has no bytes."""

    product = "Null disk"
    takes = frozenset(("read", "write", "reset", "write_zeroes", "abort"))


@dataclass(eq=False)
class AioBdev(Bdev):
    """``block_size_override``: the block size was given, which a plain file needs."""

    filename: str = ""
    block_size_override: bool = False
    readonly: bool = False

    product = "AIO disk"
    takes = _COMMON

    def backing(self) -> Backing:
        return Backing(os.path.abspath(self.filename))

    def driver_specific(self) -> dict[str, Any]:
        return {
            "aio": {
                "filename": self.filename,
                "block_size_override": self.block_size_override,
                "readonly": self.readonly,
                "fallocate": False,
                "nowait": False,
            }
        }
