"""The northbound tables the controller writes (OVN_Northbound(5)), with the columns it looks at.

`members` are set columns filled member by member; a row in a table without external_ids is told by its name,
or by the port it is about.
"""

from __future__ import annotations

from dataclasses import dataclass

from cni.controller.rows.ids import KEY, OWNER, PART, RowId
from foundation.ovsdb import Row as ActualRow

NAME_PREFIX = "dpu-offload:"


@dataclass(frozen=True, slots=True)
class Table:
    """`columns` are compared as a whole, `members` element by element; `tagged`: has external_ids."""

    columns: tuple[str, ...]
    members: tuple[str, ...] = ()
    tagged: bool = True

    def monitored(self) -> tuple[str, ...]:
        """Every column to hold a copy of."""
        return (*self.columns, *self.members, *(("external_ids",) if self.tagged else ()))


TABLES: dict[str, Table] = {
    "Logical_Switch": Table(
        ("name", "other_config"), ("ports", "acls", "qos_rules", "load_balancer", "load_balancer_group", "dns_records")
    ),
    "Logical_Switch_Port": Table(
        ("name", "type", "options", "addresses", "port_security", "tag", "enabled", "dhcpv4_options", "dhcpv6_options")
    ),
    "Logical_Router": Table(
        ("name", "options"),
        ("ports", "static_routes", "policies", "nat", "load_balancer", "load_balancer_group"),
    ),
    "Logical_Router_Port": Table(("name", "mac", "networks", "options", "ipv6_ra_configs"), ("gateway_chassis",)),
    "Logical_Router_Static_Route": Table(("ip_prefix", "nexthop", "output_port", "policy", "route_table", "options")),
    "Logical_Router_Policy": Table(("priority", "match", "action", "nexthops", "options")),
    "NAT": Table(
        ("type", "external_ip", "logical_ip", "external_mac", "logical_port", "external_port_range", "options")
    ),
    "Gateway_Chassis": Table(("name", "chassis_name", "priority", "options")),
    "Address_Set": Table(("name",), ("addresses",)),
    "Port_Group": Table(("name",), ("ports", "acls")),
    "ACL": Table(("name", "priority", "direction", "match", "action", "log", "severity", "meter", "label", "options")),
    "Load_Balancer": Table(("name", "vips", "protocol", "options", "selection_fields")),
    "Load_Balancer_Group": Table(("name",), ("load_balancer",), tagged=False),
    "QoS": Table(("priority", "direction", "match", "action", "bandwidth")),
    "Meter": Table(("name", "unit", "fair"), ("bands",)),
    "Meter_Band": Table(("action", "rate", "burst_size")),
    "DHCP_Options": Table(("cidr", "options")),
    "Static_MAC_Binding": Table(("logical_port", "ip", "mac", "override_dynamic_mac"), tagged=False),
    "Copp": Table(("name", "meters")),
}


NEIGHBOUR_PORT = ("gateway_", "-to-join")
"""How the port of a Static_MAC_Binding of ours begins and ends: a gateway router's, between them the node."""


def identity(row: RowId) -> dict[str, str]:
    """The columns that identify a row of an untagged table, besides those its translator gives."""
    if row.table == "Static_MAC_Binding":
        return {}  # its port and address say it all
    return {"name": f"{NAME_PREFIX}{row.kind}:{row.key}:{row.part}"}


def neighbour(node: str, ip: str) -> RowId:
    """A gateway router's static neighbour."""
    return RowId("Static_MAC_Binding", "node", node, f"gateway.neighbour.{ip}")


def identify(table: str, row: ActualRow) -> RowId | None:
    """Which row of ours this is; None for other people's."""
    if TABLES[table].tagged:
        ids = row["external_ids"]
        kind = ids.get(OWNER)
        if kind is None:
            return None
        return RowId(table, kind, ids.get(KEY, ""), ids.get(PART, ""))
    if table == "Static_MAC_Binding":
        begin, end = NEIGHBOUR_PORT
        port: str = row["logical_port"]
        if not (port.startswith(begin) and port.endswith(end)):
            return None
        return neighbour(port.removeprefix(begin).removesuffix(end), row["ip"])
    name: str = row["name"]
    if not name.startswith(NAME_PREFIX):
        return None
    kind, _, rest = name.removeprefix(NAME_PREFIX).partition(":")
    key, _, part = rest.rpartition(":")
    return RowId(table, kind, key, part)
