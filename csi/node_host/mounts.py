"""Mounting and unmounting by the system calls themselves, with the mount table as the only memory of it."""

import ctypes
import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from csi.errors import FailedPrecondition, Internal, InvalidArgument

_MS_BIND: Final = 0x1000
_MS_REMOUNT: Final = 0x20
_MS_RDONLY: Final = 0x1
_MNT_FORCE: Final = 1
_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8

# mount(8)'s words for flags of mount(2); all else goes to the file system as it is.
_FLAGS: Final[dict[str, tuple[int, bool]]] = {
    "ro": (_MS_RDONLY, True),
    "rw": (_MS_RDONLY, False),
    "nosuid": (0x2, True),
    "suid": (0x2, False),
    "nodev": (0x4, True),
    "dev": (0x4, False),
    "noexec": (0x8, True),
    "exec": (0x8, False),
    "sync": (0x10, True),
    "async": (0x10, False),
    "dirsync": (0x80, True),
    "noatime": (0x400, True),
    "atime": (0x400, False),
    "nodiratime": (0x800, True),
    "diratime": (0x800, False),
    "relatime": (0x200000, True),
    "norelatime": (0x200000, False),
    "strictatime": (0x1000000, True),
    "lazytime": (0x2000000, True),
    "nolazytime": (0x2000000, False),
    "defaults": (0, True),
}

# What mount(8) and systemd keep for themselves; the kernel would refuse it.
_OTHERS: Final = frozenset({"_netdev", "auto", "noauto", "nofail", "user", "nouser", "users", "owner", "group"})

_libc = ctypes.CDLL(None, use_errno=True)


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """One line of mountinfo (proc(5)); `device` is `major:minor`, `root` the part of the file system that is shown."""

    device: str
    root: str
    point: str
    options: str
    fs_type: str
    source: str

    @property
    def read_only(self) -> bool:
        return "ro" in self.options.split(",")


def parse_mountinfo(text: str) -> list[Mount]:
    """In the kernel's order: of several mounts at one point the last is the visible one."""
    mounts: list[Mount] = []
    for line in text.split("\n"):  # the kernel escapes no other end of a line
        left, separator, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        if not separator or len(fields) < 6 or len(tail) < 2:
            continue
        mounts.append(
            Mount(
                device=fields[2],
                root=_unescaped(fields[3]),
                point=_unescaped(fields[4]),
                options=fields[5],
                fs_type=tail[0],
                source=_unescaped(tail[1]),
            )
        )
    return mounts


def table() -> list[Mount]:
    # Not as text, whose reader would make line ends of carriage returns in names.
    return parse_mountinfo(os.fsdecode(Path("/proc/self/mountinfo").read_bytes()))


def at(point: str) -> Mount | None:
    """What is mounted at a path, or None. Reads the table only, so it cannot hang on a dead disk."""
    wanted = _as_shown(point)
    return next((mount for mount in reversed(table()) if mount.point == wanted), None)


def options(words: Iterable[str]) -> tuple[int, str]:
    """mount(2)'s flags and data of mount(8)'s options."""
    flags = 0
    data: list[str] = []
    for word in (part for given in words for part in given.split(",") if part):
        if word in _FLAGS:
            bit, on = _FLAGS[word]
            flags = flags | bit if on else flags & ~bit
        elif word not in _OTHERS and not word.startswith(("x-", "X-", "comment=")):
            data.append(word)
    return flags, ",".join(dict.fromkeys(data))


def mount(source: str, point: str, fs_type: str, words: Iterable[str]) -> None:
    """Raises InvalidArgument for options that the file system refuses, Internal for all else."""
    flags, data = options(words)
    _mount(source, point, fs_type, flags, data)


def bind(source: str, point: str, *, read_only: bool) -> None:
    """A second place for a directory or a device node; read-only takes a second step (mount(2), MS_BIND)."""
    _mount(source, point, "", _MS_BIND, "")
    if read_only:
        try:
            _mount(source, point, "", _MS_BIND | _MS_REMOUNT | _MS_RDONLY, "")
        except Internal:
            unmount(point)
            raise


def unmount(point: str, *, dead: bool = False) -> None:
    """Every mount at that path; nothing there is a success. `dead`: let go at once, since syncing would hang.

    Raises FailedPrecondition while processes use it.
    """
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH | _MNT_FORCE if dead else 0)
    wanted = _as_shown(point)
    for _ in range(sum(1 for each in table() if each.point == wanted)):
        if _libc.umount2(os.fsencode(wanted), flags) == 0:
            continue
        code = ctypes.get_errno()
        if code == errno.EBUSY:
            raise FailedPrecondition(f"{wanted} is still in use by a process; end it and retry")
        if code not in (errno.EINVAL, errno.ENOENT):
            raise Internal(f"unmount {wanted}: {os.strerror(code)}")


def _mount(source: str, point: str, fs_type: str, flags: int, data: str) -> None:
    result = _libc.mount(
        os.fsencode(source), os.fsencode(point), fs_type.encode(), ctypes.c_ulong(flags), data.encode() or None
    )
    if result == 0:
        return
    code = ctypes.get_errno()
    what = f"mount {source} at {point}" + (f" as {fs_type} with options {data!r}" if fs_type else "")
    if code == errno.EINVAL and data:
        raise InvalidArgument(f"{what}: the kernel refuses an option or the file system is damaged; see its log")
    raise Internal(f"{what}: {os.strerror(code)}")


def _as_shown(point: str) -> str:
    """The table knows no symbolic links, and kubelet's directory may be one. The point itself is not looked at."""
    parent, name = os.path.split(os.path.normpath(point))
    return os.path.join(os.path.realpath(parent), name)


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\043", "#"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text
