"""Loop devices over a storage target's own files, found again by the file they back."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import sys
from pathlib import Path

COMMAND_SECONDS = 10.0

# struct loop_info64 (linux/loop.h): device, inode, rdevice, offset and sizelimit are its first five u64.
_BLKROSET = 0x125D
_LOOP_SET_STATUS64 = 0x4C04
_LOOP_GET_STATUS64 = 0x4C05
_STATUS_SIZE = 232
_SIZE_LIMIT = slice(32, 40)


class LoopError(RuntimeError):
    """losetup refused."""


async def attach(file: Path, *, offset: int = 0, size: int, read_only: bool = False) -> Path:
    """Return the device's path (``/dev/loopN``). Direct I/O is not asked for: the file may lie on tmpfs."""
    arguments = ["--find", "--show", "--offset", str(offset), "--sizelimit", str(size), str(file)]
    output = await _losetup(*(["--read-only"] if read_only else []), *arguments)
    device = Path(output.strip())
    if not read_only:
        await asyncio.to_thread(_unprotect, device)
    return device


def _unprotect(device: Path) -> None:
    """Unlike a disk's, a loop device's write protection outlives what it backs."""
    with device.open("rb") as opened:
        fcntl.ioctl(opened, _BLKROSET, (0).to_bytes(4, sys.byteorder))


async def detach(device: Path) -> None:
    await _losetup("--detach", str(device))


async def resize(device: Path, *, size: int) -> None:
    """Let the device show ``size`` bytes of its file (LOOP_SET_STATUS64; the kernel sends a change uevent of its own).

    losetup cannot change a size limit in place, and a device that is mounted must not be made anew.
    """
    await asyncio.to_thread(_set_size_limit, device, size)


def _set_size_limit(device: Path, size: int) -> None:
    with device.open("rb") as opened:
        status = bytearray(_STATUS_SIZE)
        fcntl.ioctl(opened, _LOOP_GET_STATUS64, status)
        status[_SIZE_LIMIT] = size.to_bytes(8, sys.byteorder)
        fcntl.ioctl(opened, _LOOP_SET_STATUS64, bytes(status))


async def below(directory: Path) -> list[Path]:
    """Loop devices that back a file below ``directory``: what an earlier run of the lab left."""
    listing = json.loads(await _losetup("--list", "--json", "--output", "NAME,BACK-FILE") or "{}")
    return [
        Path(entry["name"])
        for entry in listing.get("loopdevices", [])
        if Path(entry["back-file"].removesuffix(" (deleted)")).is_relative_to(directory)
    ]


def device_number(device: Path) -> tuple[int, int]:
    number = os.stat(device).st_rdev
    return os.major(number), os.minor(number)


async def _losetup(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "losetup", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), COMMAND_SECONDS)
    except TimeoutError:
        process.kill()
        raise LoopError(f"losetup {' '.join(arguments)}: no answer in {COMMAND_SECONDS:g} s") from None
    if process.returncode != 0:
        raise LoopError(f"losetup {' '.join(arguments)}: {errors.decode().strip()}")
    return output.decode()
