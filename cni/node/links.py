"""Changes to links, addresses and routes over netlink: small blocking steps for a thread inside a namespace.

A link of ours carries an alias, `dpu-offload:<attachment>:...`, which stays with it through every namespace: it
identifies the link whatever its name, and for a card's function it also says what to restore.
"""

import array
import errno
import fcntl
import ipaddress
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from cni.node.assignment import AssignedRoute, Assignment
from cni.node.attachments import Original
from cni.node.errors import InterfaceTaken, LinkFailed

ALIAS = "dpu-offload"
_SIOCETHTOOL, _ETHTOOL_STXCSUM = 0x8946, 0x17
_SIOCGIFFLAGS, _SIOCGIFMTU, _SIOCGIFHWADDR, _SIOCGIFINDEX = 0x8913, 0x8921, 0x8927, 0x8933
_IFREQ_BYTES, _IFREQ_VALUE = 40, 16
_NODAD, _ONLINK = 0x02, 4
_IFF_UP = 1
_LOOPBACK = "lo"


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """A link as the kernel shows it. `kind` is "veth", ... or "" for a physical one."""

    index: int
    name: str
    mac: str
    mtu: int
    up: bool
    alias: str = ""
    kind: str = ""
    altnames: tuple[str, ...] = ()


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turns the kernel's refusal into LinkFailed with its reason."""
    try:
        yield
    except NetlinkError as error:
        raise LinkFailed(
            f"the kernel refused to {what}", details=str(error.args[1] if error.args[1:] else error)
        ) from error
    except OSError as error:
        raise LinkFailed(f"the kernel refused to {what}", details=error.strerror or str(error)) from error


def mark(identity: str, original: Original | None = None) -> str:
    """The alias of an attachment's link."""
    if original is None:
        return f"{ALIAS}:{identity}:"
    return f"{ALIAS}:{identity}:{original.name}|{original.mac}|{original.mtu}"


def marked(alias: str) -> tuple[str, Original | None] | None:
    """The (attachment id, original) of an alias of ours, else None."""
    head, _, rest = alias.partition(":")
    identity, _, text = rest.partition(":")
    if head != ALIAS or not identity:
        return None
    name, _, more = text.partition("|")
    mac, _, mtu = more.partition("|")
    return identity, Original(name, mac, int(mtu)) if name and mtu.isdigit() else None


def find(netlink: IPRoute, *, name: str = "", index: int = 0) -> Link | None:
    try:
        found = netlink.link("get", index=index) if index else netlink.link("get", ifname=name)
    except NetlinkError as error:
        if error.code == errno.ENODEV:
            return None
        raise LinkFailed(f"the kernel does not show link {name or index}", details=str(error)) from error
    return next((_link(message) for message in found), None)


def glance(name: str) -> Link | None:
    """As `find` in the calling thread's namespace, with what ioctl(2) tells (netdevice(7)): no alias, kind and other
    names, but nor a wait for the lock that OVS and everybody else who changes links holds for milliseconds."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:

        def ask(request: int) -> bytes:
            asked = struct.pack(f"{_IFREQ_BYTES}s", name.encode())
            return fcntl.ioctl(control, request, asked)[_IFREQ_VALUE:]

        try:
            index, mtu = (struct.unpack_from("i", ask(request))[0] for request in (_SIOCGIFINDEX, _SIOCGIFMTU))
            (flags,) = struct.unpack_from("H", ask(_SIOCGIFFLAGS))
            mac = ask(_SIOCGIFHWADDR)[2:8].hex(":")
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise LinkFailed(f"the kernel does not show link {name}", details=str(error)) from error
    return Link(index=index, name=name, mac=mac, mtu=mtu, up=bool(flags & _IFF_UP))


def all_links(netlink: IPRoute) -> list[Link]:
    return [_link(message) for message in netlink.link("dump")]


def find_marked(netlink: IPRoute, identity: str) -> Link | None:
    """The link that carries an attachment's alias, under whatever name."""
    begin = f"{ALIAS}:{identity}:"
    return next((link for link in all_links(netlink) if link.alias.startswith(begin)), None)


def create_veth(netlink: IPRoute, *, name: str, peer: str, peer_namespace: int, peer_mac: str, mtu: int) -> None:
    """Makes a pair with this end up and the peer in its namespace at once: moving it later costs 15 to 20 ms."""
    options: dict[str, Any] = {"mtu": mtu} if mtu else {}
    far: dict[str, Any] = {"ifname": peer, "net_ns_fd": peer_namespace, **options}
    if peer_mac:
        far["address"] = peer_mac
    try:
        netlink.link("add", ifname=name, kind="veth", state="up", **options, peer=far)
    except NetlinkError as error:
        if error.code == errno.EEXIST and find(netlink, name=name) is None:
            raise _taken(peer) from error
        raise LinkFailed(f"the kernel refused to make the veth pair {name} - {peer}", details=str(error)) from error


def rename_possible(ifname: str) -> None:
    """Raises InterfaceTaken when the calling thread's namespace already has a link of this name."""
    if glance(ifname) is not None:
        raise _taken(ifname)


def _taken(ifname: str) -> InterfaceTaken:
    return InterfaceTaken(
        f"the pod already has an interface named {ifname}; choose another CNI_IFNAME, or remove what made that one"
    )


def delete(netlink: IPRoute, name: str) -> bool:
    """False when it is gone already."""
    try:
        netlink.link("del", ifname=name)
    except NetlinkError as error:
        if error.code == errno.ENODEV:
            return False
        raise LinkFailed(f"the kernel refused to delete link {name}", details=str(error)) from error
    return True


def take_up(netlink: IPRoute, name: str, *, mtu: int) -> bool:
    """False when there is no such link; an `mtu` of 0 is left as it is."""
    try:
        netlink.link("set", ifname=name, state="up", **({"mtu": mtu} if mtu else {}))
    except NetlinkError as error:
        if error.code == errno.ENODEV:
            return False
        raise LinkFailed(f"the kernel refused to take {name} up with MTU {mtu}", details=str(error)) from error
    return True


def change(netlink: IPRoute, index: int, what: str, **attributes: Any) -> None:
    with refusing(what):
        netlink.link("set", index=index, **attributes)


def admin_mac(netlink: IPRoute, pf_index: int, vf: int) -> str:
    """The MAC that a physical function holds for one of its VFs; "" when its driver shows none."""
    with refusing(f"show the VFs of link {pf_index}"):
        for message in netlink.link("get", index=pf_index, ext_mask=1):
            for info in (message.get_attr("IFLA_VFINFO_LIST") or {}).get("attrs", ()):
                entry = info[1].get_attr("IFLA_VF_MAC")
                if entry is not None and entry["vf"] == vf:
                    return str(entry["mac"])
    return ""


def set_admin_mac(netlink: IPRoute, pf_index: int, vf: int, mac: str) -> None:
    with refusing(f"set the MAC address of VF {vf}"):
        netlink.link("set", index=pf_index, vf={"vf": vf, "mac": mac})


def has_classifier(netlink: IPRoute, index: int) -> bool:
    """Whether a link has the queueing discipline to which tc's rules for arriving packets are attached."""
    with refusing(f"show the queueing disciplines of link {index}"):
        return any(one.get_attr("TCA_KIND") in ("ingress", "clsact") for one in netlink.get_qdiscs(index=index))


def remove_altnames(netlink: IPRoute, index: int, altnames: tuple[str, ...]) -> None:
    """A link cannot enter a namespace where one of its alternative names is in use, so they stay behind."""
    for name in altnames:
        try:
            netlink.link("property_del", index=index, altname=[name])
        except NetlinkError as error:
            if error.code != errno.ENOENT:
                raise LinkFailed(f"the kernel does not remove alternative name {name}", details=str(error)) from error


def restore_altnames(netlink: IPRoute, index: int, altnames: tuple[str, ...]) -> None:
    for name in altnames:
        try:
            netlink.link("property_add", index=index, altname=[name])
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise LinkFailed(f"the kernel refused alternative name {name}", details=str(error)) from error


def move(netlink: IPRoute, link: Link, *, namespace: int, name: str, **attributes: str | int) -> None:
    """Moves a link, gives it `attributes` and renames it, in this order and one step; only an alias comes after.

    The kernel takes it down and drops its addresses.
    """
    try:
        netlink.link("set", index=link.index, net_ns_fd=namespace, ifname=name, **attributes)
    except NetlinkError as error:
        if error.code == errno.EEXIST:
            raise _taken(name) from error
        raise LinkFailed(f"the kernel refused to move {link.name} as {name}", details=str(error)) from error


def configure(netlink: IPRoute, link: Link, assignment: Assignment, *, alias: str, finish_checksums: bool) -> Link:
    """Gives a pod's link its MAC, MTU, addresses and routes, and takes it up; repeatable.

    `finish_checksums`: OVS' userspace datapath does not complete partial checksums, so the pod's kernel must.
    """
    mtu = assignment.mtu
    if finish_checksums:
        transmit_checksums_off(link.name)
    if any(":" in address for address in assignment.ips):
        _enable_ipv6(link.name)
    mac = assignment.mac
    # The kernel takes no alias when a link is made.
    needed: dict[str, Any] = {"ifalias": alias}
    if mac and link.mac != mac:
        needed["address"] = mac
    if mtu and link.mtu != mtu:
        needed["mtu"] = mtu
    if ("address" in needed or "mtu" in needed) and link.up:
        change(netlink, link.index, f"take {link.name} down", state="down")
    change(netlink, link.index, f"set up {link.name} with {needed}", state="up", **needed)
    loopback = glance(_LOOPBACK)
    if loopback is not None and not loopback.up:
        change(netlink, loopback.index, "take the loopback up", state="up")
    for address in assignment.ips:
        interface = ipaddress.ip_interface(address)
        flags = {"flags": _NODAD} if interface.version == 6 else {}
        with refusing(f"give {link.name} the address {address}"):
            netlink.addr(
                "replace", index=link.index, address=str(interface.ip), prefixlen=interface.network.prefixlen, **flags
            )
    networks = [ipaddress.ip_interface(address).network for address in assignment.ips]
    for route in assignment.all_routes():
        _add_route(netlink, link, route, networks)
    return msgspec.structs.replace(link, mac=mac or link.mac, mtu=mtu or link.mtu, up=True)


def _add_route(netlink: IPRoute, link: Link, route: AssignedRoute, networks: list[Any]) -> None:
    options: dict[str, Any] = {}
    if route.next_hop:
        hop = ipaddress.ip_address(route.next_hop)
        options["gateway"] = route.next_hop
        if not any(hop in network for network in networks if network.version == hop.version):
            options["flags"] = _ONLINK
    family = socket.AF_INET6 if ":" in route.dest else socket.AF_INET
    with refusing(f"route {route.dest} over {link.name}"):
        netlink.route("replace", family=family, dst=route.dest, oif=link.index, **options)


def remove_others(netlink: IPRoute, link: Link, assignment: Assignment) -> None:
    """Takes addresses and routes over gateways off a link that `assignment` does not name."""
    wanted = {(route.dest, route.next_hop) for route in assignment.all_routes()}
    for dest, gateway in routes(netlink, link.index):
        if gateway and (dest, gateway) not in wanted:
            family = socket.AF_INET6 if ":" in dest else socket.AF_INET
            with refusing(f"remove route {dest} over {link.name}"):
                netlink.route("del", family=family, dst=dest, gateway=gateway, oif=link.index)
    for address in addresses(netlink, link.index) - set(assignment.ips):
        interface = ipaddress.ip_interface(address)
        with refusing(f"take the address {address} off {link.name}"):
            netlink.addr("del", index=link.index, address=str(interface.ip), prefixlen=interface.network.prefixlen)


def addresses(netlink: IPRoute, index: int) -> set[str]:
    """Addresses in prefix form, without link-local ones."""
    found = set()
    for message in netlink.get_addr(index=index):
        interface = ipaddress.ip_interface(f"{message.get_attr('IFA_ADDRESS')}/{message['prefixlen']}")
        if not interface.ip.is_link_local:
            found.add(str(interface))
    return found


def routes(netlink: IPRoute, index: int) -> set[tuple[str, str]]:
    """(destination, gateway or "") over a link; a default route's destination is 0.0.0.0/0 or ::/0."""
    found = set()
    for family, everything in ((socket.AF_INET, "0.0.0.0/0"), (socket.AF_INET6, "::/0")):
        for message in netlink.get_routes(family=family, oif=index):
            destination = message.get_attr("RTA_DST")
            text = f"{destination}/{message['dst_len']}" if destination else everything
            found.add((text, message.get_attr("RTA_GATEWAY") or ""))
    return found


def transmit_checksums_off(name: str) -> None:
    """`ethtool -K NAME tx off`, in the calling thread's namespace."""
    value = array.array("I", [_ETHTOOL_STXCSUM, 0])
    request = struct.pack("16sP", name.encode(), value.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control, refusing(f"switch off checksums on {name}"):
        fcntl.ioctl(control, _SIOCETHTOOL, request)


def _enable_ipv6(name: str) -> None:
    """IPv6 on, router advertisements off: the addresses and routes are the controller's."""
    for key, value in (("disable_ipv6", "0"), ("accept_ra", "0")):
        try:
            with open(f"/proc/sys/net/ipv6/conf/{name}/{key}", "w") as file:
                file.write(value)
        except OSError as error:
            if key == "disable_ipv6":
                raise LinkFailed(f"IPv6 cannot be enabled on {name}", details=str(error)) from error


def _link(message: Any) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    properties = message.get_attr("IFLA_PROP_LIST")
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME") or "",
        mac=message.get_attr("IFLA_ADDRESS") or "",
        mtu=message.get_attr("IFLA_MTU") or 0,
        up=bool(message["flags"] & _IFF_UP),
        alias=message.get_attr("IFLA_IFALIAS") or "",
        kind=(info.get_attr("IFLA_INFO_KIND") or "") if info else "",
        altnames=tuple(value for _, value in properties["attrs"]) if properties else (),
    )
