"""Keeps the process small: few heaps for short-lived threads, nothing held that only starting needed."""

import ctypes
import gc

# Of mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_LARGE = 128 * 1024


def limit_heaps(number: int = 1) -> bool:
    """To be called before threads start; False where the C library knows no such limits (musl).

    A large block, such as the 256 KiB into which asyncio reads, goes back to the system as soon as it is free: left to
    itself the C library would after the first of them put the others on the heap, between what stays.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    limits = ((_ARENA_MAX, number), (_MMAP_THRESHOLD, _LARGE), (_TRIM_THRESHOLD, _LARGE))
    return mallopt is not None and all(mallopt(option, value) == 1 for option, value in limits)


def give_back() -> None:
    """Returns to the system what only starting needed, and takes what lives on out of the collector's rounds."""
    gc.collect()
    gc.freeze()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
