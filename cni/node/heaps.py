"""Keeps the process small: few heaps for short-lived threads, nothing held that only starting needed."""

import ctypes
import gc

_ARENA_MAX = -8  # M_ARENA_MAX of mallopt(3)


def limit_heaps(number: int = 1) -> bool:
    """To be called before threads start; False where the C library knows no such limit (musl)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_ARENA_MAX, number) == 1


def give_back() -> None:
    """Returns to the system what only starting needed, and takes what lives on out of the collector's rounds."""
    gc.collect()
    gc.freeze()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
