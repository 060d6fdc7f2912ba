"""Replacing a small file as a whole."""

import os
from pathlib import Path

_WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC


def write_atomically(path: Path, content: bytes) -> None:
    """Readers see the old content or the new; an equal file is left alone.

    The directory is made if it is missing. The file need not outlive the machine, so nothing is synced.
    """
    try:
        if path.read_bytes() == content:
            return
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    fresh = f"{path.parent}/.{path.name}.{os.getpid()}"
    descriptor = os.open(fresh, _WRITE, 0o644)
    try:
        os.write(descriptor, content)
    finally:
        os.close(descriptor)
    os.replace(fresh, path)
