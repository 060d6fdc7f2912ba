"""The machine's PCI functions as the pools see them, kept current function by function."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from cni.device_plugin.candidates import Candidate, GroupMember, Physical
from cni.device_plugin.routes import default_route_netdevs
from foundation.pci import FunctionPort, PciFunction, Sysfs
from foundation.pci.errors import NoSuchDevice, NotVirtualFunction

_LINK_TYPES = {"1": "ether", "32": "infiniband"}
# The switch's own machine; a DPU's host is 1 or more and never an inventory's concern.
_LOCAL_CONTROLLER = 0
_NETWORK, _BRIDGE = 0x02, 0x06


class Inventory:
    """Blocking reads of sysfs (a fraction of a millisecond a function); nothing is written.

    `scan` looks at everything, `refresh` at the functions named. Not for use by two threads at once.
    """

    def __init__(self, sysfs: Sysfs, *, procfs: Path = Path("/proc")) -> None:
        self._sysfs = sysfs
        self._procfs = procfs
        self._functions: dict[str, PciFunction] = {}
        self._physical: dict[str, Physical] = {}
        self._representors: dict[FunctionPort, str] = {}
        self._candidates: dict[str, Candidate] = {}

    @property
    def candidates(self) -> Mapping[str, Candidate]:
        """By PCI address; bridges are left out."""
        return self._candidates

    def scan(self) -> None:
        """Look at the whole machine."""
        self._functions = {function.address: function for function in self._sysfs.functions()}
        self._surroundings(None)

    def refresh(self, addresses: Collection[str]) -> None:
        """Look again at these functions, at the VFs of the physical ones, at those who share an IOMMU group."""
        touched = set(addresses)
        groups = {self._group_of(address) for address in addresses}
        for address in addresses:
            try:
                self._functions[address] = self._sysfs.function(address, vpd=False)
            except (NoSuchDevice, NotVirtualFunction):
                self._functions.pop(address, None)
        groups |= {self._group_of(address) for address in addresses}
        for function in self._functions.values():
            if function.pf in touched or (function.iommu_group >= 0 and function.iommu_group in groups):
                touched.add(function.address)
        self._surroundings(touched)

    def _group_of(self, address: str) -> int:
        return self._functions[address].iommu_group if address in self._functions else -1

    def _surroundings(self, touched: Collection[str] | None) -> None:
        """Rebuild candidates, all of them (None) or those named."""
        functions = self._functions
        pfs = {function.pf or function.address for function in functions.values()}
        stale = pfs if touched is None else pfs.intersection(touched)
        physical = {pf: known for pf, known in self._physical.items() if pf in pfs}
        for pf in sorted(pfs):
            if pf in stale or pf not in physical:
                physical[pf] = self._read_physical(pf)
        self._physical = physical
        if stale:
            switched = any(pf.switch_id for pf in physical.values())
            self._representors = self._sysfs.representors() if switched else {}
        routed = default_route_netdevs(self._procfs)
        groups = self._groups()
        self._candidates = {
            address: self._candidate(function, groups, routed)
            if touched is None or address in touched or address not in self._candidates
            else self._candidates[address]
            for address, function in functions.items()
            if not _is_bridge(function)
        }

    def _groups(self) -> dict[int, tuple[str, ...]]:
        """Members of the IOMMU groups that have more than one."""
        groups: dict[int, list[str]] = {}
        for function in self._functions.values():
            if function.iommu_group >= 0:
                groups.setdefault(function.iommu_group, []).append(function.address)
        return {number: tuple(members) for number, members in groups.items() if len(members) > 1}

    def _candidate(
        self, function: PciFunction, groups: Mapping[int, tuple[str, ...]], routed: frozenset[str]
    ) -> Candidate:
        physical = self._physical[function.pf or function.address]
        port = FunctionPort(physical.switch_id, _LOCAL_CONTROLLER, physical.number, function.vf_index)
        controllers = self._sysfs.nvme_controllers(function.address) if function.driver == "nvme" else ()
        members = (self._functions[address] for address in groups.get(function.iommu_group, ()))
        return Candidate(
            function=function,
            physical=physical,
            representor=self._representors.get(port, "") if function.is_vf and physical.switch_id else "",
            group=tuple(
                GroupMember(member.address, member.driver, member.class_code)
                for member in members
                if member.address != function.address
            ),
            nvme_state=controllers[0].state if controllers else "",
            rdma=self._sysfs.rdma_devices(function.address) if function.class_code >> 16 == _NETWORK else (),
            carries_default_route=not routed.isdisjoint(function.netdevs),
            carries=self._standing_on(function.netdevs),
        )

    def _standing_on(self, netdevs: Iterable[str]) -> tuple[str, ...]:
        """Network devices above these: the kernel links a bond, bridge or switch as master too."""
        found = (name for netdev in netdevs for name in _names(self._sysfs.root / "class/net" / netdev))
        return tuple(sorted(name.removeprefix("upper_") for name in found if name.startswith("upper_")))

    def _read_physical(self, address: str) -> Physical:
        function = self._functions.get(address)
        if function is None:
            return Physical(address)
        for name in self._uplinks(function):
            attributes = self._sysfs.root / "class/net" / name
            return Physical(
                address=address,
                netdev=name,
                operstate=_text(attributes / "operstate"),
                switch_id=_text(attributes / "phys_switch_id") or self._switch_id(function),
                number=function.pf_number,
                link_type=_LINK_TYPES.get(_text(attributes / "type"), ""),
            )
        return Physical(address, number=function.pf_number)

    def _switch_id(self, function: PciFunction) -> str:
        """Of any port below the PF: its own netdev need not be one, where the uplink is a netdev beside it."""
        paths = (self._sysfs.root / "class/net" / name / "phys_switch_id" for name in function.netdevs)
        return next((found for path in paths if (found := _text(path))), "")

    def _uplinks(self, function: PciFunction) -> Iterator[str]:
        """The PF's own netdev; in switchdev mode representors hang below the same PCI function."""
        for name in function.netdevs:
            try:
                port = self._sysfs.netdev(name).port
            except NoSuchDevice:
                continue
            if port is None or port.kind == "uplink":
                yield name


def _is_bridge(function: PciFunction) -> bool:
    return function.class_code >> 16 == _BRIDGE


def _names(path: Path) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
