"""The uncompressed kernel inside Debian's image: QEMU starts it by its PVH entry, without running a decompressor."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

from lab.vm import tools
from lab.vm.unpacked import Unpacked

_ELF = b"\x7fELF"
_ZSTD, _XZ, _GZIP = b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\x00", b"\x1f\x8b\x08"


class NoKernelInside(RuntimeError):
    """The image holds no ELF file in a compression that is known here."""


async def extract(unpacked: Unpacked, target: Path) -> None:
    """Write the ELF kernel to `target`. Raises NoKernelInside, ToolFailed."""
    image = unpacked.kernel.read_bytes()
    for at in _occurrences(image, _ZSTD):
        # The payload is followed by its length and the rest of the image, which zstd calls an error after its work.
        try:
            command: list[str | Path] = [unpacked.zstd, "-dcq", "--single-thread"]
            found = await tools.run(command, environment=unpacked.environment(), stdin=_frame(image, at))
        except tools.ToolFailed:
            continue
        if found.startswith(_ELF):
            target.write_bytes(found)
            return
    for magic, open_ in ((_XZ, lzma.LZMADecompressor), (_GZIP, None)):
        for at in _occurrences(image, magic):
            try:
                found = open_().decompress(image[at:]) if open_ else gzip.decompress(image[at:])
            except (OSError, EOFError, lzma.LZMAError):
                continue
            if found.startswith(_ELF):
                target.write_bytes(found)
                return
    raise NoKernelInside(f"{unpacked.kernel} holds no ELF kernel compressed by zstd, xz or gzip")


def _occurrences(image: bytes, magic: bytes) -> list[int]:
    found, at = [], image.find(magic)
    while at >= 0:
        found.append(at)
        at = image.find(magic, at + 1)
    return found


def _frame(image: bytes, at: int) -> bytes:
    """The zstd frame that begins at `at`, its end found by its block headers (RFC 8878 section 3.1.1)."""
    descriptor = image[at + 4]
    single, checksum = descriptor >> 5 & 1, descriptor >> 2 & 1
    size = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
    end = at + 5 + (0 if single else 1) + (0, 1, 2, 4)[descriptor & 3] + size
    last = False
    while not last and end + 3 <= len(image):
        header = int.from_bytes(image[end : end + 3], "little")
        last, kind, length = bool(header & 1), header >> 1 & 3, header >> 3
        end += 3 + (1 if kind == 1 else length)
    return image[at : end + (4 if checksum else 0)]
