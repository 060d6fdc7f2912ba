"""Sizes which file systems believe in, read from their superblocks. Pure: it is given the first bytes of a disk.

ext4: Documentation/filesystems/ext4 (super block at 1024). XFS: xfs_format.h `xfs_dsb` (at 0, big-endian).
btrfs: btrfs_tree.h `btrfs_super_block` (at 65536).
"""

import struct
from typing import Final

import msgspec

HEAD_BYTES: Final = 65536 + 4096


class Superblock(msgspec.Struct, frozen=True):
    """`size` in bytes of the disk that the file system uses."""

    fs_type: str
    size: int


def parse(head: bytes) -> Superblock | None:
    """None when it is none of the three."""
    return _ext4(head) or _xfs(head) or _btrfs(head)


def _ext4(head: bytes) -> Superblock | None:
    block = head[1024:2048]
    if len(block) < 1024 or block[0x38:0x3A] != b"\x53\xef":
        return None
    low, exponent, incompatible, high = (
        *struct.unpack_from("<I", block, 0x04),
        *struct.unpack_from("<I", block, 0x18),
        *struct.unpack_from("<I", block, 0x60),
        *struct.unpack_from("<I", block, 0x150),
    )
    # INCOMPAT_64BIT: only then is the upper half valid.
    blocks = low | (high << 32 if incompatible & 0x80 else 0)
    # INCOMPAT_EXTENTS tells ext4 from what ext2 and ext3 tools made.
    return Superblock("ext4" if incompatible & 0x40 else "ext3", blocks << (10 + exponent))


def _xfs(head: bytes) -> Superblock | None:
    if len(head) < 512 or head[:4] != b"XFSB":
        return None
    block_size, blocks = struct.unpack_from(">IQ", head, 4)
    return Superblock("xfs", block_size * blocks)


def _btrfs(head: bytes) -> Superblock | None:
    block = head[65536:]
    if len(block) < 4096 or block[0x40:0x48] != b"_BHRfS_M":
        return None
    (total,) = struct.unpack_from("<Q", block, 0x70)
    return Superblock("btrfs", total)
