"""A node into its switch, the router's port on it, the port for the node itself.

The distributed router has the first address of each subnet, the management port, through which the node reaches its
pods, the second.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping, Sequence

import msgspec

from cni.controller.model.addressing import Attachment, IPNetwork, Route, mac_of, prefix
from cni.controller.rows import Member, Row, RowId, State
from cni.controller.translate.acl import METER, acl
from cni.controller.translate.names import (
    CLUSTER,
    CLUSTER_ROUTER,
    CLUSTER_ROUTER_NAME,
    SWITCH_BALANCERS,
    node_switch,
)
from cni.controller.translate.service import HAIRPIN

_ENCODER = msgspec.json.Encoder(order="deterministic")

GATEWAY, MANAGEMENT = 1, 2
NODE_PRIORITY = 32000
"""Above every policy: Kubernetes lets a node always reach its own pods."""
NODES_PRIORITY = 310
"""Above the policies that send pods to other gateways: a node is reached directly."""
LOGGED_PER_SECOND = 20
RESERVED = 2
"""Addresses at the start of each subnet that no pod gets."""
ROUTER_PORT = "router-port"


def _nodes(family: int) -> RowId:
    """The address set of all nodes' own addresses."""
    return RowId("Address_Set", "cluster", "default", f"nodes.v{family}")


def cluster() -> State:
    """What exists once: the router that joins all nodes' switches, the meter that bounds the logging of policies, the
    direct way to nodes."""
    meter, band = RowId("Meter", "cluster", "default", "acl-log"), RowId("Meter_Band", "cluster", "default", "acl-log")
    rows = [
        Row(CLUSTER_ROUTER, {"name": CLUSTER_ROUTER_NAME}),
        Row(SWITCH_BALANCERS, {}),
        Row(meter, {"name": METER, "unit": "pktps", "fair": True}),
        Row(band, {"action": "drop", "rate": LOGGED_PER_SECOND}),
    ]
    members = [Member(meter, "bands", band)]
    for family in (4, 6):
        direct = RowId("Logical_Router_Policy", "cluster", "default", f"nodes.v{family}")
        name = f"dpu_offload_nodes_v{family}"
        columns = {"priority": NODES_PRIORITY, "match": f"ip{family}.dst == ${name}", "action": "allow"}
        rows += [Row(_nodes(family), {"name": name}), Row(direct, columns)]
        members.append(Member(CLUSTER_ROUTER, "policies", direct))
    return State(tuple(rows), tuple(members))


def gateways(subnets: tuple[IPNetwork, ...]) -> tuple[str, ...]:
    """The router's address in each subnet."""
    return tuple(str(network[GATEWAY]) for network in subnets)


def annotation(subnets: tuple[IPNetwork, ...]) -> str:
    """The text of annotation node-subnets."""
    return json.dumps([str(network) for network in subnets])


def management(node: str, *, subnets: tuple[IPNetwork, ...], inside: Sequence[IPNetwork], mtu: int) -> str:
    """The text of annotation management. `inside`: what the node reaches through it besides its own subnets."""
    hops = {network.version: str(network[GATEWAY]) for network in subnets}
    routes = tuple(Route(str(each), hops[each.version]) for each in inside if each.version in hops)
    port = Attachment(
        ips=tuple(prefix(network, network[MANAGEMENT]) for network in subnets),
        mac=mac_of(subnets[0][MANAGEMENT]),
        gateways=tuple(hops.values()),
        routes=routes,
        mtu=mtu,
        port=management_name(node),
    )
    return _ENCODER.encode(port).decode()


def health(checks: Sequence[tuple[int, str, int]]) -> str:
    """The text of annotation health-checks. `checks`: (port, namespace/name of the service, endpoints on the node)."""
    found = []
    for port, key, count in checks:
        namespace, _, name = key.partition("/")
        found.append({"port": port, "service": {"namespace": namespace, "name": name}, "localEndpoints": count})
    return json.dumps(found)


def management_name(node: str) -> str:
    """The `iface-id` of a node's management port."""
    return f"management__{node}"


def translate(
    node: str,
    *,
    subnets: tuple[IPNetwork, ...],
    chassis: str,
    addresses: tuple[str, ...] = (),
    policed: bool = False,
    advertised: Mapping[str, str] | None = None,
) -> State:
    """Rows of one node. `chassis`: where the management port shall be bound. `addresses`: the node's own,
    which pods reach through the management port. `advertised`: what the router tells of itself by IPv6.

    `policed`: there are policies, so the node's own traffic to its pods (kubelet's probes), and a pod's to itself
    through a service, is let through explicitly. Without policies that rule would only cost connection tracking.
    """
    switch = node_switch(node)
    router_port = RowId("Logical_Router_Port", "node", node, ROUTER_PORT)
    switch_port = RowId("Logical_Switch_Port", "node", node, "to-router")
    management = RowId("Logical_Switch_Port", "node", node, "management")
    mac = mac_of(subnets[0][GATEWAY])
    management_mac = mac_of(subnets[0][MANAGEMENT])
    management_ips = " ".join(str(network[MANAGEMENT]) for network in subnets)
    other_config = {}
    for network in subnets:
        if network.version == 4:
            other_config["subnet"] = str(network)
        else:
            other_config["ipv6_prefix"] = str(network.network_address)
    rows: tuple[Row, ...] = (
        Row(switch, {"name": node, "other_config": other_config}),
        Row(
            router_port,
            {
                "name": f"router-to-{node}",
                "mac": mac,
                "networks": [prefix(network, network[GATEWAY]) for network in subnets],
                "ipv6_ra_configs": dict(advertised or {}),
            },
        ),
        Row(
            switch_port,
            {
                "name": f"{node}-to-router",
                "type": "router",
                "addresses": "router",
                "options": {"router-port": f"router-to-{node}"},
            },
        ),
        Row(
            management,
            {
                "name": management_name(node),
                "addresses": f"{management_mac} {management_ips}",
                "options": {"requested-chassis": chassis},
            },
        ),
    )
    members: tuple[Member, ...] = (
        Member(CLUSTER_ROUTER, "ports", router_port),
        Member(switch, "ports", switch_port),
        Member(switch, "ports", management),
        Member(switch, "load_balancer_group", SWITCH_BALANCERS),
    )
    for index, text in enumerate(addresses):
        address = ipaddress.ip_address(text)
        via = next((network[MANAGEMENT] for network in subnets if network.version == address.version), None)
        if via is not None:
            route = RowId("Logical_Router_Static_Route", "node", node, f"node.{index}")
            length = 32 if address.version == 4 else 128
            rows = (*rows, Row(route, {"ip_prefix": f"{address}/{length}", "nexthop": str(via)}))
            members = (
                *members,
                Member(CLUSTER_ROUTER, "static_routes", route),
                Member(_nodes(address.version), "addresses", str(address)),
            )
    if policed:
        own = acl(
            RowId("ACL", "node", node, "own-pods"),
            "ingress",
            priority=NODE_PRIORITY,
            match=" || ".join(
                (
                    *(f"ip{network.version}.src == {network[MANAGEMENT]}" for network in subnets),
                    *(f"ip{6 if ':' in each else 4}.src == {each}" for each in HAIRPIN),
                )
            ),
            action="allow-related",
        )
        rows = (*rows, own)
        members = (*members, Member(switch, "acls", own.id))
    return State(rows, members)


__all__ = ["CLUSTER", "RESERVED", "cluster", "gateways", "management_name", "translate"]
