"""The part of a host's kernel that moves PCI functions between drivers, acting on writes to a laid-out sysfs.

Refuses what the kernel refuses: a probe binds only a function that has no driver, and only the driver that
`driver_override` names.
"""

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from csi.node_host import passthrough
from lab.hardware.sysfs import link, write

VFIO_MAJOR = 511


class Drivers:
    """`again(address)` has the emulated disk appear anew, as the NVMe driver's probe does."""

    def __init__(self, sysfs: Path, devices: Path, again: Callable[[str], None]) -> None:
        self._sysfs = sysfs
        self._devices = devices
        self._again = again
        self.written: list[str] = []
        (sysfs / "bus/pci/drivers" / passthrough.VFIO).mkdir(parents=True, exist_ok=True)
        (sysfs / "bus/pci/drivers/nvme").mkdir(parents=True, exist_ok=True)
        (devices / "vfio").mkdir(exist_ok=True)

    def write(self, path: Path, value: str) -> None:
        self.written.append(f"{path.name}={value.strip()}")
        if path.name == "unbind":
            self._unbind(value, path.parent.resolve().name)
        elif path.name == "drivers_probe":
            self._probe(value)
        else:
            write(path, value.strip())

    def driver(self, address: str) -> str:
        entry = self._function(address) / "driver"
        return entry.readlink().name if entry.is_symlink() else ""

    def _function(self, address: str) -> Path:
        return self._sysfs / "bus/pci/devices" / address

    def _unbind(self, address: str, driver: str) -> None:
        function = self._function(address)
        if driver == "nvme":
            for controller in (function / "nvme").iterdir():
                number = controller.name.removeprefix("nvme")
                disk = self._sysfs / "block" / f"nvme{number}n1"
                device = (disk / "dev").read_text().strip()
                for path in (disk, self._sysfs / "class/block" / disk.name, self._sysfs / "dev/block" / device):
                    path.unlink()
                (self._sysfs / "class/nvme" / controller.name).unlink()
                (self._sysfs / "class/nvme-subsystem" / f"nvme-subsys{number}").unlink()
                (self._devices / disk.name).unlink()
            shutil.rmtree(function / "nvme")
        elif driver == passthrough.VFIO:
            (self._devices / "vfio" / self._group(address)).unlink()
        (self._sysfs / "bus/pci/drivers" / driver / address).unlink()
        (function / "driver").unlink()

    def _probe(self, address: str) -> None:
        function = self._function(address)
        wanted = (function / "driver_override").read_text().strip()
        if (function / "driver").exists() or not wanted:
            return
        link(function / "driver", self._sysfs / "bus/pci/drivers" / wanted)
        link(self._sysfs / "bus/pci/drivers" / wanted / address, function)
        if wanted == passthrough.VFIO:
            group = int(self._group(address))
            os.mknod(self._devices / "vfio" / str(group), 0o600 | stat.S_IFCHR, os.makedev(VFIO_MAJOR, group))
        else:
            self._again(address)

    def _group(self, address: str) -> str:
        return (self._function(address) / "iommu_group").readlink().name
