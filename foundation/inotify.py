"""Changes of a directory's entries as events (inotify(7))."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

# include/uapi/linux/inotify.h
_CREATE, _DELETE, _DELETE_SELF, _MOVED_FROM, _MOVED_TO = 0x100, 0x200, 0x400, 0x40, 0x80
_IGNORED, _OVERFLOW = 0x8000, 0x4000
_MASK = _CREATE | _DELETE | _DELETE_SELF | _MOVED_FROM | _MOVED_TO
_HEADER = struct.Struct("iIII")
_READ = 65536

_libc = ctypes.CDLL(None, use_errno=True)


class DirectoryWatch:
    """Calls `on_change(name)` for each entry that was made, removed or moved, in the event loop.

    The name is "" when anything may have happened: events were lost, or the directory itself went or came; enter anew
    then. To be entered before the directory is read, so that nothing falls between.

    The parent is watched too: a directory in which somebody still listens on a removed socket tells nobody of its end.
    """

    def __init__(self, directory: Path, on_change: Callable[[str], None]) -> None:
        self._directory = directory
        self._on_change = on_change
        self._descriptor = self._parent = -1

    def __enter__(self) -> Self:
        """Raises OSError when the directory or its parent does not exist."""
        self._descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise _error("cannot watch files")
        try:
            self._parent = self._watch(self._directory.parent)
            self._watch(self._directory)
        except OSError:
            os.close(self._descriptor)
            raise
        asyncio.get_running_loop().add_reader(self._descriptor, self._drain)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _watch(self, directory: Path) -> int:
        number = int(_libc.inotify_add_watch(self._descriptor, os.fsencode(directory), _MASK))
        if number < 0:
            raise _error(f"cannot watch {directory}")
        return number

    def _drain(self) -> None:
        try:
            events = os.read(self._descriptor, _READ)
        except BlockingIOError:
            return
        at = 0
        while at < len(events):
            watch, mask, _, length = _HEADER.unpack_from(events, at)
            start = at + _HEADER.size
            name = os.fsdecode(events[start : start + length].rstrip(b"\0"))
            at = start + length
            if mask & (_IGNORED | _DELETE_SELF | _OVERFLOW) or (watch == self._parent and name == self._directory.name):
                self._on_change("")
            elif watch != self._parent:
                self._on_change(name)


def _error(what: str) -> OSError:
    number = ctypes.get_errno() or errno.EIO
    return OSError(number, f"{what}: {os.strerror(number)}")
