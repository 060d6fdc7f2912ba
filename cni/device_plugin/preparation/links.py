"""MTU of a physical function and the MACs which it assigns to its VFs, through rtnetlink."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from cni.device_plugin.errors import NetdevGone, PreparationError

_WITH_VFS = 1  # RTEXT_FILTER_VF


class Links(Protocol):
    """What preparation needs of network devices. Blocking."""

    def vf_macs(self, netdev: str) -> Mapping[int, str]:
        """MACs by VF index; a driver that does not tell them gives none."""

    def set_vf_mac(self, netdev: str, vf: int, mac: str) -> None:
        """Raises PreparationError."""

    def set_mtu(self, netdev: str, mtu: int) -> None:
        """Raises PreparationError."""


class NetlinkLinks:
    """The kernel's network devices in this process's network namespace."""

    def vf_macs(self, netdev: str) -> Mapping[int, str]:
        with IPRoute() as route:
            try:
                (link, *_) = route.link("get", ifname=netdev, ext_mask=_WITH_VFS)
            except (NetlinkError, ValueError):
                return {}
            return macs_in(link)

    def set_vf_mac(self, netdev: str, vf: int, mac: str) -> None:
        with IPRoute() as route:
            try:
                route.link("set", index=_index(route, netdev), vf={"vf": vf, "mac": mac})
            except NetlinkError as error:
                raise PreparationError(f"{netdev} does not take MAC {mac} for VF {vf}: {error.args[-1]}") from error

    def set_mtu(self, netdev: str, mtu: int) -> None:
        with IPRoute() as route:
            try:
                route.link("set", index=_index(route, netdev), mtu=mtu)
            except NetlinkError as error:
                raise PreparationError(f"{netdev} does not take MTU {mtu}: {error.args[-1]}") from error


def macs_in(link: Any) -> dict[int, str]:
    """MACs by VF index from a link message with its VFs."""
    vfs = link.get_attr("IFLA_VFINFO_LIST")
    found = {}
    for vf in vfs.get_attrs("IFLA_VF_INFO") if vfs is not None else ():
        mac = vf.get_attr("IFLA_VF_MAC")
        if mac is not None:
            found[int(mac["vf"])] = str(mac["mac"])
    return found


def _index(route: IPRoute, netdev: str) -> int:
    """Raises NetdevGone."""
    found = route.link_lookup(ifname=netdev)
    if not found:
        raise NetdevGone(f"network device {netdev} has gone")
    return int(found[0])
