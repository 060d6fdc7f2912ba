"""How a node reaches the world outside: its annotation for a gateway router."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

import msgspec

from cni.controller.errors import InvalidGateway
from cni.controller.model.addressing import parse_mac
from cni.controller.model.annotations import GATEWAY


class _Wire(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    ips: tuple[str, ...]
    next_hops: tuple[str, ...] = ()
    mac: str = ""
    physical_network: str = "physnet1"
    vlan: int = 0


@dataclass(frozen=True, slots=True)
class Gateway:
    """The gateway router's side towards the outside: addresses with prefix lengths, at most one a family."""

    ips: tuple[ipaddress.IPv4Interface | ipaddress.IPv6Interface, ...]
    next_hops: tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...]
    mac: str
    physical_network: str
    vlan: int


_DECODER = msgspec.json.Decoder(_Wire)


def parse(text: str) -> Gateway:
    """From the annotation's text. Raises InvalidGateway."""
    try:
        wire = _DECODER.decode(text)
        ips = tuple(ipaddress.ip_interface(each) for each in wire.ips)
        next_hops = tuple(ipaddress.ip_address(each) for each in wire.next_hops)
        mac = parse_mac(wire.mac) if wire.mac else ""
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InvalidGateway(
            f'annotation {GATEWAY} is not of the form {{"ips": ["192.0.2.10/24"], "nextHops": ["192.0.2.1"]}}: {error}'
        ) from None
    families = [each.version for each in ips]
    if not ips or len(set(families)) != len(families):
        raise InvalidGateway(f"annotation {GATEWAY} needs one address a family, not {', '.join(wire.ips) or 'none'}")
    for hop in next_hops:
        if not any(hop.version == each.version and hop in each.network for each in ips):
            raise InvalidGateway(f"annotation {GATEWAY}: next hop {hop} is in none of {', '.join(wire.ips)}")
    if not 0 <= wire.vlan <= 4094:
        raise InvalidGateway(f"annotation {GATEWAY}: VLAN {wire.vlan} is impossible: use 1 to 4094, or 0 for none")
    return Gateway(ips, next_hops, mac, wire.physical_network, wire.vlan)
