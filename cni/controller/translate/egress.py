"""A pod whose namespace has addresses of its own outside: sent to the gateway that has one, hidden behind it."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

from cni.controller.model.addressing import IPAddress, IPNetwork
from cni.controller.model.gateway import Gateway
from cni.controller.rows import Member, Row, RowId, State
from cni.controller.translate.names import CLUSTER_ROUTER, gateway_router

PRIORITY = 300


def gateway_for(address: IPAddress, gateways: Mapping[str, Gateway]) -> str | None:
    """The node whose gateway shall have an address: always the same of those that can; None if none can."""
    able = sorted(node for node, each in gateways.items() if any(address in ip.network for ip in each.ips))
    return able[zlib.crc32(str(address).encode()) % len(able)] if able else None


def choose(pod: str, addresses: Sequence[IPAddress]) -> list[IPAddress]:
    """One address a family for a pod; different pods get different ones."""
    found = []
    for family in (4, 6):
        mine = [each for each in addresses if each.version == family]
        if mine:
            found.append(mine[zlib.crc32(pod.encode()) % len(mine)])
    return found


def translate(
    pod: str, ip: str, outside: IPAddress, *, node: str, hop: IPAddress, inside: Sequence[IPNetwork]
) -> State:
    """Rows for one address of a pod. `hop`: the chosen node's gateway on the join switch; `inside`: pods' ranges."""
    family = outside.version
    pods = ", ".join(str(each) for each in inside if each.version == family)
    policy = RowId("Logical_Router_Policy", "pod", pod, f"egress.v{family}")
    snat = RowId("NAT", "pod", pod, f"egress.v{family}")
    match = f"ip{family}.src == {ip} && ip{family}.dst != {{{pods}}}"
    rows = (
        Row(policy, {"priority": PRIORITY, "match": match, "action": "reroute", "nexthops": [str(hop)]}),
        Row(snat, {"type": "snat", "external_ip": str(outside), "logical_ip": ip}),
    )
    members = (Member(CLUSTER_ROUTER, "policies", policy), Member(gateway_router(node), "nat", snat))
    return State(rows, members)
