"""The northbound tables the controller writes (OVN_Northbound(5)), with the columns it looks at.

`members` are set columns filled member by member; a row in a table without external_ids is told by its name.
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
    "Copp": Table(("name", "meters")),
}


def group_name(row: RowId) -> str:
    """The name that identifies a row of an untagged table."""
    return f"{NAME_PREFIX}{row.kind}:{row.key}:{row.part}"


def identify(table: str, row: ActualRow) -> RowId | None:
    """Which row of ours this is; None for other people's."""
    if TABLES[table].tagged:
        ids = row["external_ids"]
        kind = ids.get(OWNER)
        if kind is None:
            return None
        return RowId(table, kind, ids.get(KEY, ""), ids.get(PART, ""))
    name: str = row["name"]
    if not name.startswith(NAME_PREFIX):
        return None
    kind, _, rest = name.removeprefix(NAME_PREFIX).partition(":")
    key, _, part = rest.rpartition(":")
    return RowId(table, kind, key, part)
