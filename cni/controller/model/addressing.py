"""Addresses of a network attachment, in the form that annotations carry."""

from __future__ import annotations

import ipaddress
import re
import zlib
from collections.abc import Sequence
from typing import TypeAlias

import msgspec

IPNetwork: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


class AddressRequest(msgspec.Struct, frozen=True):
    """What a pod's author asks for: addresses (with or without prefix length), a MAC; empty for any."""

    ips: tuple[str, ...] = ()
    mac: str = ""


class Route(msgspec.Struct, frozen=True):
    """A route of the pod: `dest` is a prefix."""

    dest: str
    next_hop: str = msgspec.field(name="nextHop")


class Attachment(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entry of annotation `pod-networks`: ips with prefix lengths."""

    ips: tuple[str, ...]
    mac: str
    gateways: tuple[str, ...] = ()
    routes: tuple[Route, ...] = ()
    mtu: int = 0
    port: str = ""
    """Name of the switch port, where it is not `<namespace>_<pod>`."""
    dhcp: bool = False
    """The addresses are for a guest behind the pod's interface, which gets them by DHCP; the interface has none."""


def parse_mac(text: str) -> str:
    """A unicast MAC address in lower case; raises ValueError."""
    mac = text.lower().replace("-", ":")
    if not _MAC.fullmatch(mac):
        raise ValueError(f"{text!r} is no MAC address such as 02:00:00:00:00:01")
    if int(mac[:2], 16) & 1:
        raise ValueError(f"{text!r} is a multicast MAC address")
    if mac == "00:00:00:00:00:00":
        raise ValueError("a MAC address of zeros is none")
    return mac


def mac_of(address: IPAddress) -> str:
    """A locally administered MAC that is a function of the address, so that no two addresses of a network share one."""
    if address.version == 4:
        tail = address.packed
    else:
        # The low 32 bits alone would clash for addresses that differ further up.
        number = int(address)
        folded = number ^ number >> 32 ^ number >> 64 ^ number >> 96
        tail = (folded & 0xFFFFFFFF).to_bytes(4, "big")
    return ":".join(f"{byte:02x}" for byte in bytes((0x0A, 0x58 if address.version == 4 else 0x59)) + tail)


def mac_without_address(holder: str) -> str:
    """A locally administered MAC that is a function of who has it, for a network that gives no addresses."""
    tail = zlib.crc32(holder.encode()).to_bytes(4, "big")
    return ":".join(f"{byte:02x}" for byte in b"\x0a\x5a" + tail)


def networks(texts: Sequence[str]) -> tuple[IPNetwork, ...]:
    """Prefixes from their texts; raises ValueError naming the one with host bits set or of no known form."""
    result = []
    for text in texts:
        try:
            result.append(ipaddress.ip_network(text))
        except ValueError as error:
            raise ValueError(f"{text!r} is no CIDR: {error}") from None
    return tuple(result)


def interfaces(texts: Sequence[str]) -> tuple[ipaddress.IPv4Interface | ipaddress.IPv6Interface, ...]:
    """Addresses with their networks, from `address/length`; raises ValueError."""
    return tuple(map(ipaddress.ip_interface, texts))


def prefix(network: IPNetwork, address: IPAddress) -> str:
    """`address/length` of an address in a subnet."""
    return f"{address}/{network.prefixlen}"
