"""A secondary network into its switches: one for all nodes (layer2, localnet), or one a node with a router (layer3)."""

from __future__ import annotations

from collections.abc import Mapping

from cni.controller.model.addressing import IPNetwork, mac_of, prefix
from cni.controller.model.network import Network
from cni.controller.rows import Member, Owner, Row, RowId, State
from cni.controller.translate.gateway import router_side

DHCP_SERVER = ("169.254.1.1", "0a:58:a9:fe:01:01")
LEASE_SECONDS = 3600
ADVERTISED_SECONDS = (300, 900)
"""Bounds of the time between two router advertisements that nobody asked for."""


def owner(key: str) -> Owner:
    """The owner of a network's rows; `key` is namespace/name of its definition."""
    return Owner("network", key)


def switch(network: Network, node: str) -> RowId:
    """The switch that a node's pods are on."""
    return RowId(
        "Logical_Switch", "network", network.key, f"switch.{node}" if network.topology == "layer3" else "switch"
    )


def dhcp(key: str, family: int) -> RowId:
    """DHCP options of a network, for a guest that asks for its address."""
    return RowId("DHCP_Options", "network", key, f"v{family}")


def name(key: str) -> str:
    """A network's name in names of its rows: `namespace.name`."""
    return key.replace("/", ".")


def translate(network: Network, *, subnets: Mapping[str, tuple[IPNetwork, ...]], mtu: int) -> State:
    """Rows of a network. `subnets`: for layer3, each node's part."""
    title = name(network.key)
    if network.topology == "layer3":
        return _routed(network, title, subnets)
    ls = switch(network, "")
    rows: list[Row] = [Row(ls, {"name": title})]
    members: list[Member] = []
    if network.topology == "localnet":
        port = RowId("Logical_Switch_Port", "network", network.key, "localnet")
        columns = {
            "name": f"{title}_localnet",
            "type": "localnet",
            "addresses": "unknown",
            "options": {"network_name": network.physical},
            "tag": network.vlan or None,
        }
        rows.append(Row(port, columns))
        members.append(Member(ls, "ports", port))
    for subnet in network.subnets:
        if subnet.version == 4:
            server, mac = DHCP_SERVER
            options = {"server_id": server, "server_mac": mac, "lease_time": str(LEASE_SECONDS), "mtu": str(mtu)}
        else:
            options = {"server_id": DHCP_SERVER[1]}
        rows.append(Row(dhcp(network.key, subnet.version), {"cidr": str(subnet), "options": options}))
    if network.advertise:
        _advertise(network, title, mtu, rows, members)
    return State(tuple(rows), tuple(members))


def _advertise(network: Network, title: str, mtu: int, rows: list[Row], members: list[Member]) -> None:
    """A router at the first IPv6 address, there only to tell guests to ask DHCP: it leads nowhere."""
    subnet = next(each for each in network.subnets if each.version == 6)
    router = RowId("Logical_Router", "network", network.key, "advertiser")
    inner = RowId("Logical_Router_Port", "network", network.key, "advertiser")
    side = RowId("Logical_Switch_Port", "network", network.key, "advertiser")
    least, most = ADVERTISED_SECONDS
    configs = {
        "address_mode": "dhcpv6_stateful",
        "send_periodic": "true",
        "min_interval": str(least),
        "max_interval": str(most),
        "mtu": str(mtu),
        "router_preference": "LOW",
    }
    name = f"{title}_advertiser"
    columns = {"name": name, "mac": mac_of(subnet[1]), "networks": [prefix(subnet, subnet[1])]}
    rows += [
        Row(router, {"name": name}),
        Row(inner, {**columns, "ipv6_ra_configs": configs}),
        Row(side, router_side(f"{title}_to-advertiser", name)),
    ]
    members += [Member(router, "ports", inner), Member(switch(network, ""), "ports", side)]


def _routed(network: Network, title: str, subnets: Mapping[str, tuple[IPNetwork, ...]]) -> State:
    router = RowId("Logical_Router", "network", network.key, "router")
    rows: list[Row] = [Row(router, {"name": title})]
    members: list[Member] = []
    for node, given in sorted(subnets.items()):
        ls = switch(network, node)
        inner = RowId("Logical_Router_Port", "network", network.key, f"router.{node}")
        side = RowId("Logical_Switch_Port", "network", network.key, f"router.{node}")
        port = {
            "name": f"{title}_router-to-{node}",
            "mac": mac_of(given[0][1]),
            "networks": [prefix(each, each[1]) for each in given],
        }
        rows += [
            Row(ls, {"name": f"{title}_{node}"}),
            Row(inner, port),
            Row(side, router_side(f"{title}_{node}-to-router", f"{title}_router-to-{node}")),
        ]
        members += [Member(router, "ports", inner), Member(ls, "ports", side)]
    return State(tuple(rows), tuple(members))
