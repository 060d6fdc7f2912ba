"""Where things are in the Debian packages that `tools/setup --vm` unpacks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DIRECTORY = REPOSITORY / "build/vm"
_LIBRARIES = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")


class NotPrepared(RuntimeError):
    """The packages are not there; the message says what to run."""


@dataclass(frozen=True)
class Unpacked:
    """`root` holds the packages' files, `release` is the kernel's (`uname -r`)."""

    root: Path
    release: str

    @classmethod
    def find(cls, directory: Path = DIRECTORY) -> Unpacked:
        """Raises NotPrepared."""
        root = directory / "root"
        releases = sorted(path.name for path in (root / "lib/modules").glob("*") if (path / "kernel").is_dir())
        if not releases:
            raise NotPrepared(f"no kernel below {root}; run tools/setup --vm")
        return cls(root, releases[-1])

    @property
    def kernel(self) -> Path:
        return self.root / f"boot/vmlinuz-{self.release}"

    @property
    def modules(self) -> Path:
        return self.root / "lib/modules" / self.release

    @property
    def headers(self) -> Path:
        return self.root / f"usr/src/linux-headers-{self.release}"

    @property
    def common_headers(self) -> Path:
        return self.root / f"usr/src/linux-headers-{self.release.rpartition('-')[0]}-common"

    @property
    def busybox(self) -> Path:
        return self.root / "bin/busybox"

    @property
    def kmod(self) -> Path:
        return self.root / "bin/kmod"

    @property
    def zstd(self) -> Path:
        return self.root / "usr/bin/zstd"

    @property
    def qemu(self) -> Path:
        return self.root / "usr/bin/qemu-system-x86_64"

    @property
    def firmware(self) -> tuple[Path, ...]:
        """Directories where QEMU looks for its firmware."""
        names = ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu")
        return tuple(self.root / name for name in names if (self.root / name).is_dir())

    @property
    def emulator(self) -> tuple[str, ...]:
        """How QEMU is started: no guest outlives who started it, however that one ends."""
        firmware = (word for directory in self.firmware for word in ("-L", str(directory)))
        return ("setpriv", "--pdeathsig", "KILL", str(self.qemu), *firmware)

    def environment(self) -> dict[str, str]:
        """For programs of the packages: their libraries first, and no module of an installed QEMU."""
        libraries = [str(self.root / name) for name in _LIBRARIES]
        return {**os.environ, "LD_LIBRARY_PATH": ":".join(libraries), "QEMU_MODULE_DIR": "/nonexistent"}
