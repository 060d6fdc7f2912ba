"""What a starting controller finds in the database, made right in one pass: every combination of pod and port.

Subjects: pods with and without port or annotation; ports in the wrong switch, with other addresses, twice, of earlier
pods of the same name, of pods that are gone, finished, on the host's network or on an unknown node; other people's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cni.controller.rows import Owner
from cni.selection import NETWORKS
from foundation.ovsdb import OvsdbSession, fresh_name
from foundation.ovsdb import operations as op
from tests.controller.stage import Northbound, Stage, node, pod

MAC, IP = "0a:58:0a:01:00:09", "10.1.0.9"
WRITTEN = {"default": {"ips": [f"{IP}/24"], "mac": MAC}}
LAYER2 = '{"type": "dpu-offload", "topology": "layer2", "subnets": "172.16.0.0/29"}'
SERVICE = {
    "metadata": {"name": "web", "namespace": "ns"},
    "spec": {
        "type": "NodePort",
        "clusterIP": "10.96.0.10",
        "clusterIPs": ["10.96.0.10"],
        "ports": [{"name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080}],
    },
    "status": {},
}
NODES = (node("n1", "10.1.0.0/24"), node("n2", "10.2.0.0/24"))


@pytest.fixture
def northbound() -> Iterator[Northbound]:
    server = Northbound()
    yield server
    server.remove()


def port(
    name: str = "ns_web", key: str = "ns/web", uid: str = "u1", address: str = f"{MAC} {IP}", **columns: Any
) -> Any:
    tags = {"dpu-offload.io/owner": "pod", "dpu-offload.io/key": key, "dpu-offload.io/part": "default"}
    row = {"name": name, "addresses": address, "options": {"iface-id-ver": uid}, "external_ids": tags}
    return {**row, **columns}


async def lay(northbound: Northbound, *ports: tuple[str, Any]) -> None:
    """Both nodes by a controller; then ports by hand, each in a switch."""
    async with Stage(northbound.remote) as stage:
        stage.put("node", *NODES)
        await stage.settle()
    async with OvsdbSession(northbound.remote, "OVN_Northbound") as session:
        for switch, columns in ports:
            name = fresh_name()
            await session.transact(
                op.insert("Logical_Switch_Port", columns, uuid_name=name),
                op.mutate("Logical_Switch", [("name", "==", switch)], [("ports", "insert", name)]),
            )


def pod_ports(stage: Stage) -> dict[str, tuple[str, str]]:
    """Name -> (switch, first address word but the MAC)."""
    where = {uuid: name for name, row in stage.named("Logical_Switch").items() for uuid in row["ports"]}
    return {
        row["name"]: (where[row.uuid], next(iter(row["addresses"])).split()[1])
        for row in stage.rows("Logical_Switch_Port")
        if row["external_ids"].get("dpu-offload.io/owner", "pod") == "pod" and row["addresses"]
    }


@pytest.mark.parametrize(
    ("found", "pods", "wanted", "written"),
    [
        ([], [pod("web", uid="u1", networks=WRITTEN)], {"ns_web": ("n1", IP)}, {"pod": 1}),
        ([("n1", port())], [pod("web", uid="u1", networks=WRITTEN)], {"ns_web": ("n1", IP)}, {"pod": 1}),
        ([("n1", port())], [pod("web", uid="u1")], {"ns_web": ("n1", IP)}, {"pod": 1}),
        ([("n2", port())], [pod("web", uid="u1", networks=WRITTEN)], {"ns_web": ("n1", IP)}, {"pod": 1}),
        (
            [("n1", port(address="0a:58:0a:01:00:07 10.1.0.7"))],
            [pod("web", uid="u1", networks=WRITTEN)],
            {"ns_web": ("n1", IP)},
            {"pod": 1},
        ),
        (
            [("n1", port()), ("n1", port(name="ns_web_twin"))],
            [pod("web", uid="u1", networks=WRITTEN)],
            {"ns_web": ("n1", IP)},
            None,
        ),
        (
            [("n1", port(uid="earlier"))],
            [pod("web", uid="u1", networks={"default": {"ips": ["10.1.0.8/24"], "mac": "0a:58:0a:01:00:08"}})],
            {"ns_web": ("n1", "10.1.0.8")},
            {"pod": 1},
        ),
        ([("n1", port())], [], {}, {"pod": 1}),
        ([("n1", port())], [pod("web", uid="u1", phase="Succeeded", networks=WRITTEN)], {}, {"pod": 1}),
        ([("n1", port())], [pod("web", uid="u1", phase="Failed", networks=WRITTEN)], {}, {"pod": 1}),
        ([("n1", port())], [pod("web", uid="u1", host_network=True)], {}, {"pod": 1}),
        ([("n1", port())], [pod("web", uid="u1", on="")], {}, {"pod": 1}),
        (
            [("n1", port(name="theirs", external_ids={"owner": "somebody"}))],
            [],
            {"theirs": ("n1", IP)},
            {},
        ),
        (
            [("n1", port(name="ns_job", key="ns/job", uid="u0"))],
            [pod("job", uid="u0", phase="Succeeded", networks=WRITTEN), pod("web", uid="u1", networks=WRITTEN)],
            {"ns_web": ("n1", IP)},
            {"pod": 2},
        ),
    ],
    ids=[
        "no port",
        "port lacks columns",
        "annotation lost",
        "wrong switch",
        "other address",
        "twins",
        "earlier pod of the name",
        "pod gone",
        "pod succeeded",
        "pod failed",
        "host network",
        "not scheduled any more",
        "somebody else's",
        "address passed on",
    ],
)
async def test_ports_as_found(
    northbound: Northbound,
    found: list[tuple[str, Any]],
    pods: list[Any],
    wanted: dict[str, tuple[str, str]],
    written: dict[str, int] | None,
) -> None:
    await lay(northbound, *found)
    async with Stage(northbound.remote) as stage:
        stage.put("node", *NODES)
        stage.put("pod", *pods)
        await stage.settle()
        assert pod_ports(stage) == wanted
        assert stage.problems == {}
        if written is not None:
            assert stage.core.committer.statistics.rows == written, "no more than what differs is written or removed"
        before = stage.core.committer.statistics.transactions
        stage.core.committer.compare_all()
        await stage.settle()
        assert stage.core.committer.statistics.transactions == before


async def test_a_pod_of_an_unknown_node_waits_and_its_old_port_goes(northbound: Northbound) -> None:
    await lay(northbound, ("n1", port()))
    async with Stage(northbound.remote) as stage:
        stage.put("node", *NODES)
        stage.put("pod", pod("web", uid="u1", on="n3", networks=WRITTEN))
        await stage.settle()
        assert pod_ports(stage) == {}
        assert stage.problems[Owner("pod", "ns/web")].reason == "NodeHasNoSubnet"
        stage.put("node", node("n3", "10.1.3.0/24"))
        await stage.settle()
        # What was written is of no subnet of its node: it gets an address of its own.
        assert pod_ports(stage)["ns_web"][0] == "n3"
        assert pod_ports(stage)["ns_web"][1].startswith("10.1.3.")
        assert stage.annotations["ns/web"]["default"]["ips"][0].startswith("10.1.3.")


async def test_an_annotation_copied_with_its_pod_takes_nothing_from_who_had_it_first(northbound: Northbound) -> None:
    """Made while no controller ran, say from an exported manifest; by its name it is listed first."""
    asks = {NETWORKS: "blue"}
    blue = {"metadata": {"name": "blue", "namespace": "ns"}, "spec": {"config": LAYER2}}
    async with Stage(northbound.remote) as first:
        first.put("node", *NODES)
        first.put("network", blue)
        first.put("pod", pod("web", uid="u1", annotations=asks))
        await first.settle()
        before, written = pod_ports(first), first.annotations["ns/web"]
    async with Stage(northbound.remote) as stage:
        stage.put("node", *NODES)
        stage.put("network", blue)
        stage.put("pod", pod("a-copy", uid="u2", annotations=asks, networks=written))
        stage.put("pod", pod("web", uid="u1", annotations=asks, networks=written))
        await stage.settle()
        after = pod_ports(stage)
        assert {name: after[name] for name in before} == before
        assert after["ns_a-copy"][1] not in {ip for _, ip in before.values()}
        assert stage.annotations["ns/a-copy"]["ns/blue"]["ips"] != written["ns/blue"]["ips"]


async def test_of_two_nodes_that_overlap_the_first_one_stays_the_first(northbound: Northbound) -> None:
    """Its pods run; that the other one is listed first changes nothing."""
    first, second = node("n9", "10.9.1.0/24", ip="192.0.2.9"), node("n8", "10.9.0.0/16", ip="192.0.2.8")
    found = []
    for nodes in ((first, second), (second, first)):
        async with Stage(northbound.remote) as stage:
            stage.put("node", *nodes)
            stage.put("pod", pod("web", uid="u1", on="n9"), pod("late", uid="u2", on="n8"))
            await stage.settle()
            assert set(stage.problems) == {Owner("node", "n8"), Owner("pod", "ns/late")}
            found.append((pod_ports(stage), {str(each) for each in stage.problems.values()}))
            stage.put("service", SERVICE)
            await stage.settle()
            vips = {vip for row in stage.rows("Load_Balancer") for vip in row["vips"]}
            assert vips == {"10.96.0.10:80", "192.0.2.9:30080"}
            stage.remove("service", "ns/web")
            await stage.settle()
    assert found[0] == found[1]
    assert found[0][0]["ns_web"][0] == "n9"


@pytest.mark.parametrize("kept", ["ports", "annotations"])
async def test_addresses_on_other_networks_come_back(kept: str) -> None:
    """In whichever order pods are listed: all addresses of the network are given, so each one's matters to all."""
    blue = {"metadata": {"name": "blue", "namespace": "ns"}, "spec": {"config": LAYER2}}
    asks = {NETWORKS: "blue"}
    northbound = Northbound()
    try:
        async with Stage(northbound.remote) as stage:
            stage.put("node", *NODES)
            stage.put("network", blue)
            stage.put("pod", *(pod(f"p{index}", uid=f"u{index}", annotations=asks) for index in range(6)))
            await stage.settle()
            assert stage.problems == {}
            before = stage.annotations
        if kept == "annotations":
            northbound.remove()
            northbound = Northbound()
        async with Stage(northbound.remote) as stage:
            stage.put("node", *NODES)
            stage.put("network", blue)
            for index in reversed(range(6)):
                written = before[f"ns/p{index}"] if kept == "annotations" else None
                stage.put("pod", pod(f"p{index}", uid=f"u{index}", annotations=asks, networks=written))
            await stage.settle()
            assert stage.annotations == before
    finally:
        northbound.remove()
