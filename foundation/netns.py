"""Moving the calling thread into another network namespace (setns(2))."""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


def enter(descriptor: int, *, path: str) -> None:
    """Only this thread moves, and nothing brings it back: it should end with its work. `path` is for the message.

    Raises OSError.
    """
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot enter network namespace {path}: {os.strerror(number)}")
