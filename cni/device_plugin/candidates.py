"""What the plugin knows of a PCI function before it belongs to any pool, as plain data."""

from __future__ import annotations

import re
from dataclasses import dataclass

from foundation.pci import PciFunction

BRIDGE_CLASS = "0604"
_VFIO = re.compile(r"vfio[-_]pci|.*[-_]vfio[-_]pci")


def is_vfio(driver: str) -> bool:
    """True for vfio-pci and for the drivers of single cards built on it (`mlx5_vfio_pci`)."""
    return _VFIO.fullmatch(driver) is not None


@dataclass(frozen=True)
class Physical:
    """A physical function, as its virtual functions see it.

    `netdev` is "" when it has no network device here, `operstate` the kernel's word ("up", "down", ..; "" unknown),
    `switch_id` "" outside switchdev mode.
    """

    address: str
    netdev: str = ""
    operstate: str = ""
    switch_id: str = ""
    number: int = 0
    link_type: str = ""


@dataclass(frozen=True)
class GroupMember:
    """A function that shares an IOMMU group with another."""

    address: str
    driver: str
    class_code: int

    @property
    def is_bridge(self) -> bool:
        return f"{self.class_code:06x}".startswith(BRIDGE_CLASS)


@dataclass(frozen=True)
class Candidate:
    """A PCI function together with what surrounds it.

    `physical` is its own PF for a VF, itself for a PF. `representor` is its netdev in the switch of this machine, ""
    when there is none. `group` are the other members of its IOMMU group. `nvme_state` is the state of its NVMe
    controller, "" without one. `carries` are the bonds, bridges and VLANs that stand on its network device.
    """

    function: PciFunction
    physical: Physical
    representor: str = ""
    group: tuple[GroupMember, ...] = ()
    nvme_state: str = ""
    rdma: tuple[str, ...] = ()
    carries_default_route: bool = False
    carries: tuple[str, ...] = ()

    @property
    def address(self) -> str:
        return self.function.address


@dataclass(frozen=True)
class Device:
    """A function as a member of a pool. `reason` says why it is unhealthy; "" when it is healthy."""

    candidate: Candidate
    resource: str
    reason: str = ""

    @property
    def id(self) -> str:
        return self.candidate.address

    @property
    def healthy(self) -> bool:
        return not self.reason

    @property
    def numa_node(self) -> int:
        return self.candidate.function.numa_node
