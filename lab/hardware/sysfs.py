"""A laid-out sysfs tree: the entries that a kernel would make, with the links between them.

Layout after Documentation/ABI/testing/sysfs-bus-pci, sysfs-class-net and the NVMe driver with native multipath on
(Debian's default): the disk hangs below ``nvme-subsystem``, the controller keeps a hidden path to it.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

BRIDGE = "devices/pci0000:00"
NETWORK_CLASS = "0x020000"
NVME_CLASS = "0x010802"


@dataclasses.dataclass(frozen=True)
class PciEntry:
    """One PCI function's directory."""

    address: str
    vendor: str
    device: str
    class_code: str
    driver: str = ""
    numa_node: int = 0
    iommu_group: int | None = None


class SysfsTree:
    """Writes below ``root``. Each method leaves the tree consistent; all of them may be repeated."""

    def __init__(self, root: Path) -> None:
        self.root = root

    # -- PCI ---------------------------------------------------------------------------------------------------

    def device(self, address: str) -> Path:
        return self.root / BRIDGE / address

    def add_function(self, entry: PciEntry) -> None:
        directory = self.device(entry.address)
        directory.mkdir(parents=True, exist_ok=True)
        write(directory / "vendor", entry.vendor)
        write(directory / "device", entry.device)
        write(directory / "class", entry.class_code)
        write(directory / "numa_node", str(entry.numa_node))
        link(self.root / "bus/pci/devices" / entry.address, directory)
        if entry.driver:
            driver = self.root / "bus/pci/drivers" / entry.driver
            driver.mkdir(parents=True, exist_ok=True)
            link(driver / entry.address, directory)
            link(directory / "driver", driver)
        if entry.iommu_group is not None:
            group = self.root / "kernel/iommu_groups" / str(entry.iommu_group)
            (group / "devices").mkdir(parents=True, exist_ok=True)
            link(group / "devices" / entry.address, directory)
            link(directory / "iommu_group", group)

    def add_virtual_functions(self, physical: str, addresses: list[str]) -> None:
        """Tie VFs to their PF: ``sriov_*`` numbers, ``virtfnN`` and ``physfn``. The addresses are evenly spaced."""
        directory = self.device(physical)
        write(directory / "sriov_totalvfs", str(len(addresses)))
        write(directory / "sriov_numvfs", str(len(addresses)))
        first = routing_id(addresses[0]) - routing_id(physical)
        stride = routing_id(addresses[1]) - routing_id(addresses[0]) if len(addresses) > 1 else 1
        write(directory / "sriov_offset", str(first))
        write(directory / "sriov_stride", str(stride))
        for index, address in enumerate(addresses):
            link(directory / f"virtfn{index}", self.device(address))
            link(self.device(address) / "physfn", directory)

    # -- network devices ---------------------------------------------------------------------------------------

    def add_netdev(self, name: str, *, pci: str, address: str = "", port_name: str = "", switch_id: str = "") -> None:
        directory = self.device(pci) / "net" / name
        directory.mkdir(parents=True, exist_ok=True)
        write(directory / "address", address)
        write(directory / "phys_port_name", port_name)
        write(directory / "phys_switch_id", switch_id)
        link(directory / "device", self.device(pci))
        link(self.root / "class/net" / name, directory)

    def remove_netdev(self, name: str, *, pci: str) -> None:
        (self.root / "class/net" / name).unlink(missing_ok=True)
        shutil.rmtree(self.device(pci) / "net" / name, ignore_errors=True)

    # -- NVMe --------------------------------------------------------------------------------------------------

    def add_nvme_controller(
        self, index: int, *, pci: str, nqn: str, serial: str, model: str, firmware: str, cntlid: int
    ) -> None:
        """``nvme<index>`` on a PCI function, with the subsystem it belongs to; state ``live``."""
        controller = self.device(pci) / "nvme" / f"nvme{index}"
        controller.mkdir(parents=True, exist_ok=True)
        for name, value in (
            ("address", pci),
            ("transport", "pcie"),
            ("cntlid", str(cntlid)),
            ("subsysnqn", nqn),
            ("serial", f"{serial:<20}"),
            ("model", f"{model:<40}"),
            ("firmware_rev", f"{firmware:<8}"),
            ("cntrltype", "io"),
            ("queue_count", "3"),
            ("state", "live"),
            ("rescan_controller", ""),
        ):
            write(controller / name, value)
        link(controller / "device", self.device(pci))
        link(self.root / "class/nvme" / f"nvme{index}", controller)
        driver = self.root / "bus/pci/drivers/nvme"
        driver.mkdir(parents=True, exist_ok=True)
        link(driver / pci, self.device(pci))
        link(self.device(pci) / "driver", driver)
        subsystem = self._subsystem(index)
        subsystem.mkdir(parents=True, exist_ok=True)
        write(subsystem / "subsysnqn", nqn)
        write(subsystem / "iopolicy", "numa")
        link(subsystem / f"nvme{index}", controller)
        link(self.root / "class/nvme-subsystem" / f"nvme-subsys{index}", subsystem)

    def set_nvme_state(self, index: int, *, pci: str, state: str) -> None:
        write(self.device(pci) / "nvme" / f"nvme{index}" / "state", state)

    def add_nvme_namespace(
        self,
        index: int,
        instance: int,
        *,
        pci: str,
        nsid: int,
        uuid: str,
        nguid: str,
        size: int,
        device: tuple[int, int],
    ) -> None:
        """The disk ``nvme<index>n<instance>`` of ``size`` bytes, backed by block device ``device``."""
        name = f"nvme{index}n{instance}"
        disk = self._subsystem(index) / name
        (disk / "queue").mkdir(parents=True, exist_ok=True)
        for file, value in (
            ("nsid", str(nsid)),
            ("uuid", uuid),
            ("nguid", nguid),
            ("wwid", f"uuid.{uuid}"),
            ("hidden", "0"),
            ("ro", "0"),
            ("removable", "0"),
            ("dev", f"{device[0]}:{device[1]}"),
            ("queue/logical_block_size", "512"),
        ):
            write(disk / file, value)
        hidden = self.device(pci) / "nvme" / f"nvme{index}" / f"nvme{index}c{index}n{instance}"
        hidden.mkdir(parents=True, exist_ok=True)
        for file, value in (("hidden", "1"), ("nsid", str(nsid)), ("uuid", uuid), ("wwid", f"uuid.{uuid}")):
            write(hidden / file, value)
        link(self.root / "block" / name, disk)
        link(self.root / "class/block" / name, disk)
        link(self.root / "dev/block" / f"{device[0]}:{device[1]}", disk)
        self.set_nvme_size(index, instance, size=size)

    def set_nvme_size(self, index: int, instance: int, *, size: int) -> None:
        write(self._subsystem(index) / f"nvme{index}n{instance}" / "size", str(size // 512))

    def remove_nvme_namespace(self, index: int, instance: int, *, pci: str, device: tuple[int, int]) -> None:
        name = f"nvme{index}n{instance}"
        for path in (
            self.root / "block" / name,
            self.root / "class/block" / name,
            self.root / "dev/block" / f"{device[0]}:{device[1]}",
        ):
            path.unlink(missing_ok=True)
        shutil.rmtree(self._subsystem(index) / name, ignore_errors=True)
        shutil.rmtree(
            self.device(pci) / "nvme" / f"nvme{index}" / f"nvme{index}c{index}n{instance}", ignore_errors=True
        )

    def remove_nvme_controller(self, index: int, *, pci: str) -> None:
        for path in (
            self.root / "class/nvme" / f"nvme{index}",
            self.root / "class/nvme-subsystem" / f"nvme-subsys{index}",
            self.root / "bus/pci/drivers/nvme" / pci,
            self.device(pci) / "driver",
        ):
            path.unlink(missing_ok=True)
        shutil.rmtree(self._subsystem(index), ignore_errors=True)
        shutil.rmtree(self.device(pci) / "nvme", ignore_errors=True)

    def _subsystem(self, index: int) -> Path:
        return self.root / "devices/virtual/nvme-subsystem" / f"nvme-subsys{index}"


def routing_id(address: str) -> int:
    """Bus, device and function of ``0000:BB:DD.F`` as one number (PCI Express base specification, 2.2.4.2)."""
    _, bus, rest = address.split(":")
    device, _, function = rest.partition(".")
    return int(bus, 16) << 8 | int(device, 16) << 3 | int(function)


def write(path: Path, value: str) -> None:
    """Replace an attribute whole: a reader sees the old value or the new one."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(f"{value}\n")
    temporary.replace(path)


def link(path: Path, target: Path) -> None:
    """A relative symbolic link, as the kernel makes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    relative = os.path.relpath(target, path.parent)
    if path.is_symlink():
        if path.readlink() == Path(relative):
            return
        path.unlink()
    path.symlink_to(relative)
