"""A node's way out: a gateway router on its chassis, between the join switch and a bridge to the physical network.

Pods leave through their own node's gateway, with its address as their source. What comes in for a service is
balanced there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cni.controller.model.addressing import IPAddress, IPNetwork, mac_of
from cni.controller.model.gateway import Gateway
from cni.controller.rows import Member, Row, RowId, State
from cni.controller.rows.tables import neighbour
from cni.controller.translate.names import (
    CLUSTER_ROUTER,
    JOIN_SWITCH,
    OUTSIDE,
    OUTSIDE_NAME,
    ROUTER_BALANCERS,
    gateway_router,
)

JOIN_PORT = "gateway.to-join"
JOIN_ROUTER_PORT, JOIN_SWITCH_PORT = "router_to_join", "join_to_router"
"""No node's name has an underscore, or a node called "join" could not be."""


def cluster(join: Sequence[IPNetwork]) -> State:
    """The join switch with the distributed router's port on it, at the first address of each subnet of `join`."""
    router_port = RowId("Logical_Router_Port", "cluster", "default", "router-to-join")
    switch_port = RowId("Logical_Switch_Port", "cluster", "default", "join-to-router")
    rows = (
        Row(JOIN_SWITCH, {"name": "dpu-offload-join"}),
        Row(ROUTER_BALANCERS, {}),
        Row(OUTSIDE, {"name": OUTSIDE_NAME}),
        Row(
            router_port,
            {
                "name": JOIN_ROUTER_PORT,
                "mac": mac_of(join[0][1]),
                "networks": [f"{network[1]}/{network.prefixlen}" for network in join],
            },
        ),
        Row(switch_port, router_side(JOIN_SWITCH_PORT, JOIN_ROUTER_PORT)),
    )
    return State(rows, (Member(CLUSTER_ROUTER, "ports", router_port), Member(JOIN_SWITCH, "ports", switch_port)))


def router_side(name: str, peer: str) -> dict[str, object]:
    """Columns of a switch port that leads to router port `peer`."""
    return {"name": name, "type": "router", "addresses": "router", "options": {"router-port": peer}}


def translate(
    node: str,
    gateway: Gateway,
    *,
    chassis: str,
    subnets: Sequence[IPNetwork],
    join: Sequence[IPNetwork],
    join_addresses: Sequence[IPAddress],
    inside: Sequence[IPNetwork],
) -> State:
    """Rows of a node's gateway; all of them belong to the node.

    `join_addresses`: the gateway's own on the join switch; `inside`: what is reached back through it.
    """
    return _Gateway(node, gateway, chassis).build(subnets, join, join_addresses, inside)


class _Gateway:
    def __init__(self, node: str, gateway: Gateway, chassis: str) -> None:
        self.node, self.gateway, self.chassis = node, gateway, chassis
        self.router = gateway_router(node)
        self.rows: list[Row] = []
        self.members: list[Member] = []

    def _id(self, table: str, part: str) -> RowId:
        return RowId(table, "node", self.node, f"gateway.{part}")

    def _add(self, holder: RowId, column: str, row: RowId, columns: Mapping[str, object]) -> None:
        self.rows.append(Row(row, columns))
        self.members.append(Member(holder, column, row))

    def build(
        self,
        subnets: Sequence[IPNetwork],
        join: Sequence[IPNetwork],
        join_addresses: Sequence[IPAddress],
        inside: Sequence[IPNetwork],
    ) -> State:
        name = f"gateway_{self.node}"
        options = {"chassis": self.chassis, "lb_force_snat_ip": "router_ip", "dynamic_neigh_routers": "true"}
        self.rows.append(Row(self.router, {"name": name, "options": options}))
        self.members.append(Member(self.router, "load_balancer_group", ROUTER_BALANCERS))
        self._inner(name, join, join_addresses)
        self._outer(name)
        for subnet in subnets:
            self._routes_of(subnet, join_addresses)
        for index, wide in enumerate(inside):
            hop = next((network[1] for network in join if network.version == wide.version), None)
            if hop is not None:
                row = self._id("Logical_Router_Static_Route", f"cluster.{index}")
                self._add(self.router, "static_routes", row, {"ip_prefix": str(wide), "nexthop": str(hop)})
        return State(tuple(self.rows), tuple(self.members))

    def _inner(self, name: str, join: Sequence[IPNetwork], addresses: Sequence[IPAddress]) -> None:
        lengths = {network.version: network.prefixlen for network in join}
        port = {
            "name": f"{name}-to-join",
            "mac": mac_of(addresses[0]),
            "networks": [f"{address}/{lengths[address.version]}" for address in addresses],
        }
        self._add(self.router, "ports", RowId("Logical_Router_Port", "node", self.node, JOIN_PORT), port)
        for network in join:
            # Learning it by ARP would cost each connection's first packet; flows for all neighbours, nodes squared.
            columns = {"logical_port": f"{name}-to-join", "ip": str(network[1]), "mac": mac_of(join[0][1])}
            self.rows.append(Row(neighbour(self.node, str(network[1])), columns))
        side = router_side(f"join-to-gateway__{self.node}", f"{name}-to-join")
        self._add(JOIN_SWITCH, "ports", self._id("Logical_Switch_Port", "join"), side)

    def _outer(self, name: str) -> None:
        gateway = self.gateway
        switch = self._id("Logical_Switch", "external")
        self.rows.append(Row(switch, {"name": f"external_{self.node}"}))
        localnet = {
            "name": f"external__{self.node}-localnet",
            "type": "localnet",
            "addresses": "unknown",
            "options": {"network_name": gateway.physical_network},
            "tag": gateway.vlan or None,
        }
        wire = self._id("Logical_Switch_Port", "localnet")
        self._add(switch, "ports", wire, localnet)
        self.members.append(Member(OUTSIDE, "ports", wire))
        side = router_side(f"external-to-gateway__{self.node}", f"{name}-to-external")
        self._add(switch, "ports", self._id("Logical_Switch_Port", "external"), side)
        port = {
            "name": f"{name}-to-external",
            "mac": gateway.mac or mac_of(gateway.ips[0].ip),
            "networks": [str(each) for each in gateway.ips],
        }
        self._add(self.router, "ports", self._id("Logical_Router_Port", "to-external"), port)
        for index, hop in enumerate(gateway.next_hops):
            row = self._id("Logical_Router_Static_Route", f"default.{index}")
            columns = {
                "ip_prefix": "0.0.0.0/0" if hop.version == 4 else "::/0",
                "nexthop": str(hop),
                "output_port": f"{name}-to-external",
            }
            self._add(self.router, "static_routes", row, columns)

    def _routes_of(self, subnet: IPNetwork, join_addresses: Sequence[IPAddress]) -> None:
        family = subnet.version
        inner = next((address for address in join_addresses if address.version == family), None)
        outer = next((each.ip for each in self.gateway.ips if each.version == family), None)
        if inner is None or outer is None:
            return
        row = self._id("Logical_Router_Static_Route", f"out.v{family}")
        columns: dict[str, object] = {"ip_prefix": str(subnet), "nexthop": str(inner), "policy": "src-ip"}
        self._add(CLUSTER_ROUTER, "static_routes", row, columns)
        snat: dict[str, object] = {"type": "snat", "external_ip": str(outer), "logical_ip": str(subnet)}
        self._add(self.router, "nat", self._id("NAT", f"snat.v{family}"), snat)
