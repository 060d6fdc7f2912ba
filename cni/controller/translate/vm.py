"""A virtual machine into its ports, which belong to it and not to the pods that run it one after another.

A port is on the switch of the machine's home, and bound where the guest is. While it migrates, `requested-chassis`
names source and target, and `activation-strategy` keeps the target's port silent until the guest announces itself
there by RARP, as QEMU does when it goes on (ovn-nb(5), table Logical_Switch_Port): from then on, what is sent to the
guest reaches both. Which of the two stays is KubeVirt's word; then one chassis is named again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from cni.controller.model.addressing import Attachment, IPAddress, IPNetwork, Route, mac_of
from cni.controller.rows import Member, Row, RowId, State
from cni.controller.translate.acl import acl
from cni.controller.translate.names import node_switch
from cni.controller.translate.node import NODE_PRIORITY

LEASE_SECONDS = 3600
LINK_LOCAL = "fe80::/10"
DHCP_SERVER = ("169.254.1.1", "0a:58:a9:fe:01:01")
"""Where a network has no router of ours."""

_ENCODER = msgspec.json.Encoder(order="deterministic")


@dataclass(frozen=True, slots=True)
class Names:
    """What a guest is told of names. `servers`: the cluster's DNS."""

    hostname: str
    servers: Sequence[IPAddress]
    search: Sequence[str]


def chassis(source: str, target: str) -> dict[str, str]:
    """A port's options: one chassis, or two while the guest moves. Whoever has the interface binds a port whose own
    chassis is not known ("")."""
    if not source:
        return {}
    if not target or target == source:
        return {"requested-chassis": source}
    return {"requested-chassis": f"{source},{target}", "activation-strategy": "rarp"}


def owned(state: State, pod: str, key: str, *, options: Mapping[str, str], name: str) -> State:
    """What was made for `pod` as the machine's: all rows are `key`'s, its ports are bound as `options` say.

    Without `iface-id-ver`, for the port is the same whichever pod runs the guest.
    """

    def renamed(value: Any) -> Any:
        if isinstance(value, RowId) and value.kind == "pod" and value.key == pod:
            return RowId(value.table, "vm", key, value.part)
        return value

    rows = []
    for row in state.rows:
        columns = {column: renamed(value) for column, value in row.columns.items()}
        if row.id.table == "Logical_Switch_Port":
            columns["options"] = dict(options)
            ids = {each: text for each, text in columns["external_ids"].items() if each != "pod"}
            columns["external_ids"] = {**ids, "vm": name}
        rows.append(Row(renamed(row.id), columns))
    members = (Member(renamed(each.target), each.column, renamed(each.value)) for each in state.members)
    return State(tuple(rows), tuple(members))


def dhcp(
    state: State,
    key: str,
    part: str,
    *,
    subnets: Iterable[IPNetwork],
    mtu: int,
    names: Names,
    told: Mapping[str, str],
    routed: bool,
    routes: Sequence[Route] = (),
) -> State:
    """`state` with DHCP for the guest behind port `part`: one row a family, and the port refers to them.

    `routed`: the network's router, at the first address of each subnet, is the guest's way out. `routes`: ways beside
    it. `told`: options that its author wants beside ours (IPv4). A guest may take any link-local address, since many do
    not derive theirs from the MAC.
    """
    found: dict[str, RowId] = {}
    rows: list[Row] = []
    for subnet in subnets:
        row = RowId("DHCP_Options", "vm", key, f"{part}.v{subnet.version}")
        found[f"dhcpv{subnet.version}_options"] = row
        if subnet.version == 4:
            options = {**told, **_v4(subnet, mtu, names, routed, routes)}
        else:
            options = _v6(subnet, names, routed)
        rows.append(Row(row, {"cidr": str(subnet), "options": options}))
    port = RowId("Logical_Switch_Port", "vm", key, part)
    for row_of in state.rows:
        if row_of.id == port:
            columns = {**row_of.columns, **found}
            if "dhcpv6_options" in found:
                columns["port_security"] = f"{columns['port_security']} {LINK_LOCAL}"
            rows.append(Row(port, columns))
        else:
            rows.append(row_of)
    return State(tuple(rows), state.members)


def _v4(subnet: IPNetwork, mtu: int, names: Names, routed: bool, routes: Sequence[Route]) -> dict[str, str]:
    server, mac = (str(subnet[1]), mac_of(subnet[1])) if routed else DHCP_SERVER
    options = {
        "server_id": server,
        "server_mac": mac,
        "lease_time": str(LEASE_SECONDS),
        "mtu": str(mtu),
        "hostname": f'"{names.hostname}"',
    }
    if routed:
        options["router"] = server
    hops = [(each.dest, each.next_hop) for each in routes if "." in each.next_hop]
    if hops:
        # A client that takes this option leaves `router` aside (RFC 3442).
        ways = [*hops, *((("0.0.0.0/0", server),) if routed else ())]
        options["classless_static_route"] = "{" + ", ".join(f"{dest},{hop}" for dest, hop in ways) + "}"
    servers = [str(each) for each in names.servers if each.version == 4]
    if routed and servers:
        options["dns_server"] = servers[0] if len(servers) == 1 else "{" + ", ".join(servers) + "}"
    if routed and names.search:
        options["domain_name"] = f'"{names.search[0]}"'
        options["domain_search_list"] = '"' + ",".join(names.search) + '"'
    return options


def _v6(subnet: IPNetwork, names: Names, routed: bool) -> dict[str, str]:
    options = {"server_id": mac_of(subnet[1]) if routed else DHCP_SERVER[1]}
    servers = [str(each) for each in names.servers if each.version == 6]
    if routed and servers:
        options["dns_server"] = servers[0] if len(servers) == 1 else "{" + ", ".join(servers) + "}"
    if routed and names.search:
        # OVN takes a single one here; the rest comes with the router's advertisement.
        options["domain_search"] = f'"{names.search[0]}"'
    return options


def router_advertisement(*, mtu: int, servers: Iterable[IPAddress], search: Sequence[str]) -> dict[str, str]:
    """What the router tells guests that ask (ovn-nb(5), ipv6_ra_configs): their address comes by DHCPv6.

    Of low preference, so that a pod which takes it in as well prefers the route that it was given.
    """
    told = {"address_mode": "dhcpv6_stateful", "mtu": str(mtu), "router_preference": "LOW"}
    rdnss = next((str(each) for each in servers if each.version == 6), "")
    if rdnss:
        told["rdnss"] = rdnss
    if search:
        told["dnssl"] = ",".join(search)
    return told


def probes(key: str, port: str, *, home: str, addresses: Iterable[IPAddress]) -> State:
    """Lets the node that runs a guest away from home reach it whatever policies say, as each node does its pods.

    `addresses`: of that node's management port.
    """
    match = " || ".join(f"ip{each.version}.src == {each}" for each in addresses)
    row = acl(
        RowId("ACL", "vm", key, "probes"),
        "ingress",
        priority=NODE_PRIORITY,
        match=f'outport == "{port}" && ({match})',
        action="allow-related",
    )
    return State((row,), (Member(node_switch(home), "acls", row.id),))


def annotation(attachments: Mapping[str, Attachment]) -> str:
    """The text of annotation vm-networks: what the machine keeps."""
    return _ENCODER.encode({key: Attachment(each.ips, each.mac) for key, each in attachments.items()}).decode()
