"""A node's gateway into rows, by table; without a database.

Subjects: families, next hops (none, one, several), VLAN, MAC, physical network, chassis of a host with a DPU, ranges
inside as configured or found, prefix lengths that differ from node to node.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator
from typing import Any

import pytest

from cni.controller.model import gateway as gateways
from cni.controller.model.addressing import networks
from cni.controller.model.annotations import GATEWAY, MANAGEMENT
from cni.controller.rows import State
from cni.controller.translate import gateway as gateway_rows
from tests.controller.stage import Northbound, Stage, node

JOIN = networks(("100.64.0.0/16", "fd98::/64"))
JOIN_ADDRESSES = (ipaddress.ip_address("100.64.0.9"), ipaddress.ip_address("fd98::9"))


def rows(inside: tuple[str, ...] = ("10.0.0.0/8",), subnets: tuple[str, ...] = ("10.1.0.0/24",), **wire: Any) -> State:
    return gateway_rows.translate(
        "n1",
        gateways.parse(json.dumps(wire)),
        chassis="c1",
        subnets=networks(subnets),
        join=JOIN,
        join_addresses=JOIN_ADDRESSES,
        inside=networks(inside),
    )


def of(state: State, table: str) -> list[dict[str, Any]]:
    return [dict(row.columns) for row in state.rows if row.id.table == table]


def routes(state: State) -> set[tuple[str, str, str]]:
    """(prefix, next hop, policy)."""
    return {(r["ip_prefix"], r["nexthop"], r.get("policy", "")) for r in of(state, "Logical_Router_Static_Route")}


@pytest.mark.parametrize(
    ("wire", "options", "wanted"),
    [
        (
            {"ips": ["192.0.2.9/24"], "nextHops": ["192.0.2.1"]},
            {},
            {
                ("10.1.0.0/24", "100.64.0.9", "src-ip"),
                ("10.0.0.0/8", "100.64.0.1", ""),
                ("0.0.0.0/0", "192.0.2.1", ""),
            },
        ),
        (
            {"ips": ["192.0.2.9/24"]},
            {},
            {("10.1.0.0/24", "100.64.0.9", "src-ip"), ("10.0.0.0/8", "100.64.0.1", "")},
        ),
        (
            {"ips": ["192.0.2.9/24"], "nextHops": ["192.0.2.1", "192.0.2.2"]},
            {},
            {
                ("10.1.0.0/24", "100.64.0.9", "src-ip"),
                ("10.0.0.0/8", "100.64.0.1", ""),
                ("0.0.0.0/0", "192.0.2.1", ""),
                ("0.0.0.0/0", "192.0.2.2", ""),
            },
        ),
        (
            {"ips": ["fd02::9/64"], "nextHops": ["fd02::1"]},
            {"subnets": ("fd00:1::/64",), "inside": ("fd00::/16",)},
            {("fd00:1::/64", "fd98::9", "src-ip"), ("fd00::/16", "fd98::1", ""), ("::/0", "fd02::1", "")},
        ),
        (
            {"ips": ["192.0.2.9/24", "fd02::9/64"], "nextHops": ["192.0.2.1"]},
            {"subnets": ("10.1.0.0/24", "fd00:1::/64"), "inside": ("10.0.0.0/8", "fd00::/16")},
            {
                ("10.1.0.0/24", "100.64.0.9", "src-ip"),
                ("fd00:1::/64", "fd98::9", "src-ip"),
                ("10.0.0.0/8", "100.64.0.1", ""),
                ("fd00::/16", "fd98::1", ""),
                ("0.0.0.0/0", "192.0.2.1", ""),
            },
        ),
        (
            # Pods of two families behind a gateway of one: the other family stays inside.
            {"ips": ["192.0.2.9/24"]},
            {"subnets": ("10.1.0.0/24", "fd00:1::/64"), "inside": ("10.0.0.0/8",)},
            {("10.1.0.0/24", "100.64.0.9", "src-ip"), ("10.0.0.0/8", "100.64.0.1", "")},
        ),
    ],
    ids=["ipv4", "no next hop", "two next hops", "ipv6", "dual stack", "pods of two families, gateway of one"],
)
def test_routes(wire: dict[str, Any], options: dict[str, Any], wanted: set[tuple[str, str, str]]) -> None:
    assert routes(rows(**options, **wire)) == wanted


@pytest.mark.parametrize(
    ("wire", "tag", "network", "mac"),
    [
        ({"ips": ["192.0.2.9/24"]}, None, "physnet1", "0a:58:c0:00:02:09"),
        ({"ips": ["192.0.2.9/24"], "vlan": 7}, 7, "physnet1", "0a:58:c0:00:02:09"),
        ({"ips": ["192.0.2.9/24"], "physicalNetwork": "outer"}, None, "outer", "0a:58:c0:00:02:09"),
        ({"ips": ["192.0.2.9/24"], "mac": "02-00-00-00-00-0A"}, None, "physnet1", "02:00:00:00:00:0a"),
    ],
)
def test_outer_side(wire: dict[str, Any], tag: int | None, network: str, mac: str) -> None:
    state = rows(**wire)
    (localnet,) = (each for each in of(state, "Logical_Switch_Port") if each.get("type") == "localnet")
    assert (localnet["tag"], localnet["options"]) == (tag, {"network_name": network})
    (port,) = (each for each in of(state, "Logical_Router_Port") if each["name"].endswith("external"))
    assert (port["mac"], port["networks"]) == (mac, ["192.0.2.9/24"])
    (router,) = of(state, "Logical_Router")
    assert router["options"] == {"chassis": "c1", "lb_force_snat_ip": "router_ip", "dynamic_neigh_routers": "true"}


def test_snat_of_each_family() -> None:
    state = rows(subnets=("10.1.0.0/24", "fd00:1::/64"), ips=["192.0.2.9/24", "fd02::9/64"])
    assert {(each["type"], each["external_ip"], each["logical_ip"]) for each in of(state, "NAT")} == {
        ("snat", "192.0.2.9", "10.1.0.0/24"),
        ("snat", "fd02::9", "fd00:1::/64"),
    }


@pytest.fixture
def northbound() -> Iterator[Northbound]:
    server = Northbound()
    yield server
    server.remove()


def behind(name: str, *cidrs: str, ip: str) -> dict[str, Any]:
    made = node(name, *cidrs)
    made["metadata"]["annotations"] = {GATEWAY: json.dumps({"ips": [f"{ip}/24"]})}
    return made


async def test_what_is_inside_is_found_from_the_nodes_own_subnets(northbound: Northbound) -> None:
    """No ranges are configured, and the nodes' prefixes are of different lengths: they join to as few as can be."""
    async with Stage(northbound.remote) as stage:

        def inside(gateway: str) -> set[str]:
            router = stage.named("Logical_Router")[f"gateway_{gateway}"]
            found = [row for row in stage.rows("Logical_Router_Static_Route") if row.uuid in router["static_routes"]]
            return {row["ip_prefix"] for row in found}

        stage.put("node", behind("n1", "10.1.0.0/25", "fd00:1::/64", ip="192.0.2.1"), node("n2", "10.1.0.128/25"))
        await stage.settle()
        assert stage.problems == {}
        assert inside("n1") == {"10.1.0.0/24", "fd00:1::/64"}
        stage.put("node", behind("n3", "10.1.1.0/24", "fd00:9::/48", ip="192.0.2.3"), node("n4", "10.4.0.0/16"))
        await stage.settle()
        both = {"10.1.0.0/23", "10.4.0.0/16", "fd00:1::/64", "fd00:9::/48"}
        assert (inside("n1"), inside("n3")) == (both, both)
        stage.remove("node", "n2", "n4")
        await stage.settle()
        assert inside("n1") == {"10.1.0.0/25", "10.1.1.0/24", "fd00:1::/64", "fd00:9::/48"}


async def test_nodes_are_told_of_their_management_port(northbound: Northbound) -> None:
    cluster = {"ranges": ["10.1.0.0/16", "fd00::/48"], "service_ranges": ["10.96.0.0/16"]}
    async with Stage(northbound.remote, **cluster) as stage:
        stage.put("node", node("n1", "10.1.1.0/24", "fd00:0:0:1::/64"))
        await stage.settle()
        told = json.loads(stage.node_annotations["n1"][MANAGEMENT])
        (addresses,) = stage.named("Logical_Switch_Port")[told["port"]]["addresses"]
        assert addresses.split() == [told["mac"], *(each.partition("/")[0] for each in told["ips"])]
        assert told["ips"] == ["10.1.1.2/24", "fd00:0:0:1::2/64"]
        assert told["gateways"] == ["10.1.1.1", "fd00:0:0:1::1"]
        assert told["mtu"] == 1400
        assert {(each["dest"], each["nextHop"]) for each in told["routes"]} == {
            ("10.1.0.0/16", "10.1.1.1"),
            ("fd00::/48", "fd00:0:0:1::1"),
            ("10.96.0.0/16", "10.1.1.1"),
            ("100.64.0.0/16", "10.1.1.1"),
            ("fd98::/64", "fd00:0:0:1::1"),
        }
