"""A volume's whole PCI function for a virtual machine: moved from the kernel's NVMe driver to vfio-pci, and back.

`driver_override` with `drivers_probe` names one function and one driver (Documentation/ABI/testing/sysfs-bus-pci); no
id is added to vfio-pci, so that no other function of the card is taken. Blocking writes to sysfs.
"""

import contextlib
import os
import stat
from pathlib import Path
from typing import Final

from csi import identity
from csi.errors import FailedPrecondition, Internal, Unavailable
from csi.node_host import mounts
from foundation.pci.sysfs import Sysfs

VFIO: Final = "vfio-pci"
_KERNEL_DRIVER: Final = "nvme"
# What a pod finds in a volume of mode Filesystem.
ADDRESS_FILE, DEVICE_FILE = "pci-address", "vfio"
# Room for those two, and for nothing that a pod may take this for: KubeVirt makes a disk image where there is none.
_ROOM: Final = ("size=16k", "nr_inodes=8", "mode=0750")


def write(path: Path, value: str) -> None:
    """One attribute of sysfs; the kernel acts before this returns."""
    path.write_text(value)


class Passthrough:
    """`directory` keeps, for each volume of mode Filesystem, what its pods are shown."""

    def __init__(self, *, sysfs: Sysfs, dev_root: Path, directory: Path) -> None:
        self._sysfs = sysfs
        self._dev = dev_root
        self._directory = directory

    def bound(self, address: str) -> bool:
        return bool(address) and self._sysfs.vfio_device(address) != ""

    def bind(self, address: str) -> None:
        """Repeatable. Raises FailedPrecondition without an IOMMU, Unavailable without the driver."""
        if self.bound(address):
            return
        if self._sysfs.function(address, vpd=False).iommu_group < 0:
            raise FailedPrecondition(
                f"PCI function {address} is in no IOMMU group: switch the IOMMU on (firmware, intel_iommu=on)"
            )
        if not (self._sysfs.root / "bus/pci/drivers" / VFIO).is_dir():
            raise Unavailable(f"driver {VFIO} is not loaded on this node: modprobe {VFIO}")
        self._move(address, VFIO)
        if not self.bound(address):
            self.release(address)
            raise Internal(f"PCI function {address} was not taken by {VFIO}; see the kernel's log")

    def release(self, address: str) -> None:
        """Back to the kernel's own driver. Succeeds for a function that is gone or was never bound."""
        path = self._sysfs.path(address)
        if not path.is_dir():
            return
        if self._driver(path) in (VFIO, ""):
            self._move(address, _KERNEL_DRIVER)
        with contextlib.suppress(OSError):
            write(path / "driver_override", "\n")

    def device(self, address: str) -> Path:
        """The character device that a virtual machine monitor opens. Raises FailedPrecondition."""
        name = self._sysfs.vfio_device(address)
        if not name:
            raise FailedPrecondition(f"PCI function {address} is not bound to {VFIO}")
        path = self._dev / "vfio" / Path(name).name
        try:
            found = path.stat()
        except OSError as error:
            raise FailedPrecondition(f"PCI function {address} is bound to {VFIO}, but {path} is missing") from error
        if not stat.S_ISCHR(found.st_mode):
            raise FailedPrecondition(f"{path} is no character device")
        return path

    def show(self, volume: str, address: str) -> Path:
        """A directory with the function's address and its device node, for a pod that wants files."""
        device = self.device(address)
        directory = self._directory / identity.hashed(volume)
        directory.mkdir(parents=True, exist_ok=True, mode=0o750)
        if mounts.at(str(directory)) is None:
            mounts.mount("tmpfs", str(directory), "tmpfs", _ROOM)
        (directory / ADDRESS_FILE).write_text(f"{address}\n")
        node = directory / DEVICE_FILE
        node.unlink(missing_ok=True)
        os.mknod(node, 0o600 | stat.S_IFCHR, device.stat().st_rdev)
        return directory

    def hide(self, volume: str) -> None:
        directory = self._directory / identity.hashed(volume)
        mounts.unmount(str(directory), dead=True)
        with contextlib.suppress(OSError):
            # As an earlier version made them, without a file system of their own. What a pod has put beside them stays.
            for name in (ADDRESS_FILE, DEVICE_FILE):
                (directory / name).unlink(missing_ok=True)
            directory.rmdir()

    def _move(self, address: str, driver: str) -> None:
        path = self._sysfs.path(address)
        try:
            write(path / "driver_override", f"{driver}\n")
            if self._driver(path):
                write(path / "driver/unbind", address)
            write(self._sysfs.root / "bus/pci/drivers_probe", address)
        except OSError as error:
            raise Internal(f"move PCI function {address} to driver {driver}: {error}") from error

    def _driver(self, path: Path) -> str:
        with contextlib.suppress(OSError):
            return (path / "driver").readlink().name
        return ""
