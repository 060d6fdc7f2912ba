"""The device nodes through which a container uses a function, read at the moment they are asked for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cni.device_plugin.candidates import is_vfio
from cni.device_plugin.config import Pool
from cni.device_plugin.errors import UnhealthyDevice
from foundation.pci import PciFunction, Sysfs

# Where each kind of RDMA character device stands in a PCI function's directory, for the nodes of a verbs user.
_RDMA_CLASSES = ("infiniband_verbs", "infiniband_mad")


@dataclass(frozen=True)
class Node:
    """A device node: its path on the node, and in the container."""

    host: str
    container: str


class DeviceNodes:
    """Never cached: a VFIO group's number changes with each boot, a controller's with each attach."""

    def __init__(self, sysfs: Sysfs, devfs: Path) -> None:
        self._sysfs = sysfs
        self._devfs = devfs

    def of(self, function: PciFunction, pool: Pool) -> tuple[Node, ...]:
        """Nodes of one function in this pool; none for a plain network device. Raises UnhealthyDevice."""
        names: list[str] = []
        if pool.use == "vfio" or (pool.use == "any" and is_vfio(function.driver)):
            names += self._vfio(function)
        if pool.use == "nvme":
            names += self._nvme(function)
        if pool.rdma:
            names += self._rdma(function)
        names += [name.removeprefix("/dev/") for name in pool.nodes]
        return tuple(Node(str(self._devfs / name), f"/dev/{name}") for name in dict.fromkeys(names))

    def _vfio(self, function: PciFunction) -> list[str]:
        if not is_vfio(function.driver) or function.iommu_group < 0:
            raise UnhealthyDevice(
                f"{function.address} has no VFIO group: driver {function.driver or 'none'}, "
                f"IOMMU group {function.iommu_group}"
            )
        return ["vfio/vfio", f"vfio/{function.iommu_group}"]

    def _nvme(self, function: PciFunction) -> list[str]:
        controllers = [controller.name for controller in self._sysfs.nvme_controllers(function.address)]
        if not controllers:
            raise UnhealthyDevice(f"{function.address} has no NVMe controller: its driver has not taken it yet")
        return controllers + [namespace.name for namespace in self._sysfs.nvme_namespaces(function.address)]

    def _rdma(self, function: PciFunction) -> list[str]:
        directory = self._sysfs.path(function.address)
        found = [f"infiniband/{name}" for kind in _RDMA_CLASSES for name in _names(directory / kind)]
        if not found:
            raise UnhealthyDevice(f"{function.address} has no RDMA device: is its driver's RDMA module loaded?")
        return [*found, "infiniband/rdma_cm"]


def _names(path: Path) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []
