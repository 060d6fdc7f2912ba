"""What sysfs shows of PCI functions: VFs, representors, IOMMU groups, vital product data, NVMe disks."""

from foundation.pci.address import PciAddress
from foundation.pci.functions import Netdev, PciFunction, ScalableFunction
from foundation.pci.nvme import NvmeController, NvmeNamespace
from foundation.pci.ports import FunctionPort, PortName, parse_port_name
from foundation.pci.sysfs import Sysfs

__all__ = [
    "FunctionPort",
    "Netdev",
    "NvmeController",
    "NvmeNamespace",
    "PciAddress",
    "PciFunction",
    "PortName",
    "ScalableFunction",
    "Sysfs",
    "parse_port_name",
]
