"""Changes of a directory's entries as events (inotify(7))."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

_IN_MOVED_TO = 0x80
_IN_CREATE = 0x100
_IN_DELETE = 0x200
_IN_DELETE_SELF = 0x400
_IN_IGNORED = 0x8000
_IN_NONBLOCK = os.O_NONBLOCK
_IN_CLOEXEC = os.O_CLOEXEC
_READ = 65536
_EVENT = struct.Struct("=iIII")  # wd, mask, cookie, length of the name that follows

_libc = ctypes.CDLL(None, use_errno=True)


class DirectoryWatch:
    """Entries made, moved in or removed since the last ``changed()``; several changes count as one.

    To be entered before the directory is read, so that nothing falls between.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._descriptor = -1
        self._changed = asyncio.Event()
        self.deleted = False
        """The directory itself is gone; one of the same name, even of the same inode, is another one."""

    def __enter__(self) -> Self:
        self._descriptor = _libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC)
        mask = _IN_CREATE | _IN_MOVED_TO | _IN_DELETE | _IN_DELETE_SELF
        if self._descriptor < 0 or _libc.inotify_add_watch(self._descriptor, os.fsencode(self._directory), mask) < 0:
            number = ctypes.get_errno()
            if self._descriptor >= 0:
                os.close(self._descriptor)
            raise OSError(number, f"cannot watch {self._directory}: {os.strerror(number)}")
        asyncio.get_running_loop().add_reader(self._descriptor, self._drain)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)

    async def changed(self, *, within: float | None = None) -> None:
        """Wait for the next change, ``within`` seconds at the most; None: a directory may well never change."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), within)
        self._changed.clear()

    def wake(self) -> None:
        """Let ``changed()`` return though nothing changed here."""
        self._changed.set()

    def _drain(self) -> None:
        try:
            events = os.read(self._descriptor, _READ)
        except BlockingIOError:
            return
        while events:
            _, mask, _, length = _EVENT.unpack_from(events)
            self.deleted = self.deleted or bool(mask & (_IN_DELETE_SELF | _IN_IGNORED))
            events = events[_EVENT.size + length :]
        self._changed.set()
