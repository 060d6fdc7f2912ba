"""Which PCI functions the lab's machines have, laid out as sysfs trees before anything starts."""

from __future__ import annotations

import dataclasses

from lab.hardware.sysfs import NETWORK_CLASS, NVME_CLASS, PciEntry, SysfsTree
from lab.layout import DEFAULT_NODE, DPU_NODE, HOST_NODE, Layout

MELLANOX = "0x15b3"
SWITCH_ID = "e2a1c4000300bf03"
NIC_PF = "0000:03:00.0"
NIC_PF_NETDEV = "enp3s0f0"
STORAGE_PF = "0000:21:00.0"
STORAGE_FUNCTIONS = 8
NETWORK_VFS = 4


@dataclasses.dataclass(frozen=True)
class VirtualFunction:
    """A VF of the host's network PF, and the representor it has on the DPU. ``index`` counts from 0."""

    index: int

    @property
    def pci(self) -> str:
        return f"0000:03:00.{self.index + 2}"

    @property
    def netdev(self) -> str:
        return f"{NIC_PF_NETDEV}v{self.index}"

    @property
    def representor(self) -> str:
        return f"pf0vf{self.index}"

    @property
    def port_name(self) -> str:
        """``phys_port_name`` on the DPU: the host is its external controller 1."""
        return f"c1pf0vf{self.index}"

    @property
    def mac(self) -> str:
        return f"02:bf:03:00:00:{self.index:02x}"


def network_functions() -> list[VirtualFunction]:
    return [VirtualFunction(index) for index in range(NETWORK_VFS)]


def storage_function(virtual_function: int) -> str:
    """PCI address of a function of the storage PF; 0 is the PF itself, VFs count from 1."""
    return STORAGE_PF if virtual_function == 0 else f"0000:21:{virtual_function >> 3:02x}.{virtual_function & 7}"


def lay_out(layout: Layout) -> None:
    """Write the trees of the host, of its DPU, and an empty one for the node without a card."""
    host = SysfsTree(layout.sysfs(HOST_NODE))
    host.add_function(PciEntry(NIC_PF, vendor=MELLANOX, device="0xa2dc", class_code=NETWORK_CLASS, driver="mlx5_core"))
    functions = network_functions()
    for function in functions:
        host.add_function(
            PciEntry(
                function.pci,
                vendor=MELLANOX,
                device="0x101e",
                class_code=NETWORK_CLASS,
                driver="mlx5_core",
                iommu_group=40 + function.index,
            )
        )
    host.add_virtual_functions(NIC_PF, [function.pci for function in functions])
    host.add_netdev(NIC_PF_NETDEV, pci=NIC_PF, address="02:bf:03:00:ff:00")
    storage = [storage_function(number) for number in range(1, STORAGE_FUNCTIONS + 1)]
    host.add_function(PciEntry(STORAGE_PF, vendor=MELLANOX, device="0x6001", class_code=NVME_CLASS))
    for number, address in enumerate(storage):
        host.add_function(
            PciEntry(address, vendor=MELLANOX, device="0x6001", class_code=NVME_CLASS, iommu_group=60 + number)
        )
    host.add_virtual_functions(STORAGE_PF, storage)

    dpu = SysfsTree(layout.sysfs(DPU_NODE))
    dpu.add_function(PciEntry(NIC_PF, vendor=MELLANOX, device="0xa2dc", class_code=NETWORK_CLASS, driver="mlx5_core"))
    dpu.add_netdev("p0", pci=NIC_PF, port_name="p0", switch_id=SWITCH_ID)
    dpu.add_netdev("pf0hpf", pci=NIC_PF, port_name="c1pf0", switch_id=SWITCH_ID)
    for function in functions:
        dpu.add_netdev(function.representor, pci=NIC_PF, port_name=function.port_name, switch_id=SWITCH_ID)

    plain = SysfsTree(layout.sysfs(DEFAULT_NODE))
    for directory in ("bus/pci/devices", "class/net"):
        (plain.root / directory).mkdir(parents=True, exist_ok=True)
