"""What sysfs tells of PCI functions, their netdevs included, as plain data."""

import msgspec

from foundation.pci.ports import PortName


class PciFunction(msgspec.Struct, frozen=True, kw_only=True):
    """One PCI function. Ids are numbers; `driver`, `pf` and `vuid` are "" and `iommu_group`, `vf_index` -1 when absent.

    `pf` is the address of the physical function of a VF; `pf_number` the number by which the card knows that
    physical function (of itself for a PF): `phys_port_name` p<N> of its netdev, else the PCI function number.
    """

    address: str
    vendor: int = 0
    device: int = 0
    subsystem_vendor: int = 0
    subsystem_device: int = 0
    class_code: int = 0
    revision: int = 0
    driver: str = ""
    numa_node: int = -1
    iommu_group: int = -1
    is_vf: bool = False
    pf: str = ""
    pf_number: int = 0
    vf_index: int = -1
    vf_count: int = 0
    vf_total: int = 0
    netdevs: tuple[str, ...] = ()
    vuid: str = ""


class ScalableFunction(msgspec.Struct, frozen=True, kw_only=True):
    """An auxiliary device of a card's physical function (`mlx5_core.sf.4`)."""

    name: str
    number: int
    pf: str
    pf_number: int
    netdevs: tuple[str, ...] = ()


class Netdev(msgspec.Struct, frozen=True, kw_only=True):
    """A network device of the namespace that sysfs was mounted in. `pci` is "" for one without a PCI parent."""

    name: str
    index: int = 0
    mac: str = ""
    mtu: int = 0
    switch_id: str = ""
    port_name: str = ""
    port: PortName | None = None
    pci: str = ""
