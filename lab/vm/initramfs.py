"""The guest's first root: busybox, the modules for the second root, and the script that goes there."""

from __future__ import annotations

import gzip
from pathlib import Path

from lab.vm import archive, modules
from lab.vm.unpacked import Unpacked

_INIT = Path(__file__).parent / "init"
_MODULES = ("9p", "9pnet_virtio", "overlay")
_DIRECTORIES = ("bin", "dev", "proc", "sys", "machine", "layer", "root", "modules")


def build(unpacked: Unpacked) -> bytes:
    """A compressed archive; modules inside are not, since unpacking them is slow in an emulated machine."""
    entries = [archive.directory(name) for name in _DIRECTORIES]
    entries.append(archive.program("bin/busybox", unpacked.busybox.read_bytes()))
    entries.append(archive.program("init", _INIT.read_bytes()))
    for number, module in enumerate(modules.needed(unpacked, _MODULES)):
        name = module.name.removesuffix(".xz")
        entries.append(archive.program(f"modules/{number:02}-{name}", modules.content(module)))
    return gzip.compress(archive.pack(entries), 1, mtime=0)
