"""Pods and nodes into rows, by what is then in a real northbound database.

Subjects: port, addresses, port security, options, annotation; families; pods without a port; hosts with a DPU; static
addresses, bad requests, conflict, exhaustion with their retries; finished pods that free only their own; the same name
again; unknown nodes, nodes without subnets or with impossible ones; restart. What a start finds is in `test_start`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from cni.controller.model.annotations import ADDRESSES, GATEWAY, NODE_SUBNETS
from cni.controller.rows import Owner
from tests.controller.stage import Northbound, Stage, node, pod


@pytest.fixture
def northbound() -> Iterator[Northbound]:
    server = Northbound()
    yield server
    server.remove()


@pytest.fixture
async def stage(northbound: Northbound) -> AsyncIterator[Stage]:
    async with Stage(northbound.remote) as stage:
        yield stage


def asks(**request: Any) -> dict[str, str]:
    return {ADDRESSES: json.dumps(request)}


async def test_a_node_and_its_pod(stage: Stage) -> None:
    stage.put("node", node("n1", "10.1.0.0/24"))
    stage.put("pod", pod("web", uid="u1"))
    await stage.settle()
    switch = stage.named("Logical_Switch")["n1"]
    ports = stage.named("Logical_Switch_Port")
    assert set(ports) == {"n1-to-router", "management__n1", "ns_web", "join_to_router"}
    assert switch["ports"] == {row.uuid for name, row in ports.items() if name != "join_to_router"}
    assert switch["other_config"] == {"subnet": "10.1.0.0/24"}
    (router,) = stage.rows("Logical_Router")
    router_ports = stage.named("Logical_Router_Port")
    assert router["ports"] == {row.uuid for row in router_ports.values()}
    router_port = router_ports["router-to-n1"]
    assert (router_port["networks"], router_port["mac"]) == ({"10.1.0.1/24"}, "0a:58:0a:01:00:01")
    web = ports["ns_web"]
    written = stage.annotations["ns/web"]["default"]
    address = written["ips"][0].removesuffix("/24")
    assert written == {
        "ips": [f"{address}/24"],
        "mac": written["mac"],
        "gateways": ["10.1.0.1"],
        "mtu": 1400,
    }
    assert web["addresses"] == web["port_security"] == {f"{written['mac']} {address}"}
    assert web["options"] == {"iface-id-ver": "u1", "requested-chassis": "n1"}
    assert web["external_ids"]["namespace"] == "ns"
    assert ports["management__n1"]["addresses"] == {"0a:58:0a:01:00:02 10.1.0.2"}


async def test_dual_stack(stage: Stage) -> None:
    stage.put("node", node("n1", "10.1.0.0/24", "fd00:1::/64"))
    stage.put("pod", pod("web"))
    await stage.settle()
    written = stage.annotations["ns/web"]["default"]
    assert [ip.rpartition("/")[2] for ip in written["ips"]] == ["24", "64"]
    assert written["gateways"] == ["10.1.0.1", "fd00:1::1"]
    (addresses,) = stage.named("Logical_Switch_Port")["ns_web"]["addresses"]
    assert addresses.split() == [written["mac"], *(ip.partition("/")[0] for ip in written["ips"])]
    router_port = stage.named("Logical_Router_Port")["router-to-n1"]
    assert router_port["networks"] == {"10.1.0.1/24", "fd00:1::1/64"}


async def test_ipv6_only(stage: Stage) -> None:
    stage.put("node", node("n1", "fd00:1::/64"))
    stage.put("pod", pod("web"))
    await stage.settle()
    assert stage.annotations["ns/web"]["default"]["gateways"] == ["fd00:1::1"]


async def test_pods_without_a_port(stage: Stage) -> None:
    stage.put("node", node("n1", "10.1.0.0/24"))
    stage.put("pod", pod("unscheduled", on=""), pod("host", host_network=True), pod("done", phase="Succeeded"))
    await stage.settle()
    assert set(stage.named("Logical_Switch_Port")) == {"n1-to-router", "management__n1", "join_to_router"}
    assert stage.annotations == {}


async def test_a_host_with_a_dpu_is_bound_by_the_dpu(stage: Stage) -> None:
    stage.put("node", node("h", "10.1.0.0/24", labels={"dpu-offload.io/mode": "host"}))
    stage.put("pod", pod("web", on="h"))
    await stage.settle()
    assert "requested-chassis" not in stage.named("Logical_Switch_Port")["ns_web"]["options"]
    labels = {"dpu-offload.io/mode": "dpu", "dpu-offload.io/host-node": "h"}
    stage.put("node", node("d", "10.2.0.0/24", labels=labels))
    await stage.settle()
    assert stage.named("Logical_Switch_Port")["ns_web"]["options"]["requested-chassis"] == "d"
    assert stage.named("Logical_Switch_Port")["management__h"]["options"]["requested-chassis"] == "d"
    stage.remove("node", "d")
    await stage.settle()
    assert "requested-chassis" not in stage.named("Logical_Switch_Port")["ns_web"]["options"]


async def test_static_address(stage: Stage) -> None:
    stage.put("node", node("n1", "10.1.0.0/24"))
    stage.put("pod", pod("web", annotations=asks(ips=["10.1.0.77"], mac="02:00:00:00:00:77")))
    await stage.settle()
    assert stage.named("Logical_Switch_Port")["ns_web"]["addresses"] == {"02:00:00:00:00:77 10.1.0.77"}


@pytest.mark.parametrize(
    ("request_text", "reason", "message"),
    [
        ("{", "InvalidNetworkAnnotation", "is not of the form"),
        ('{"ips": "10.1.0.9"}', "InvalidNetworkAnnotation", "is not of the form"),
        ('{"ips": ["10.9.0.9"]}', "InvalidAddressRequest", "outside of 10.1.0.0/24"),
        ('{"ips": ["fd00::9"]}', "InvalidAddressRequest", "outside of 10.1.0.0/24"),
        ('{"ips": ["10.1.0.1"]}', "InvalidAddressRequest", "reserved"),
        ('{"ips": ["10.1.0.255"]}', "InvalidAddressRequest", "reserved"),
        ('{"ips": ["10.1.0.8", "10.1.0.9"]}', "InvalidAddressRequest", "two addresses"),
        ('{"ips": ["nonsense"]}', "InvalidAddressRequest", "no IP address"),
        ('{"mac": "nonsense"}', "InvalidAddressRequest", "no MAC address"),
        ('{"mac": "01:00:5e:00:00:01"}', "InvalidAddressRequest", "multicast"),
        ('{"mac": "0A:58:0a:01:00:01"}', "InvalidAddressRequest", "the network's own"),  # the router's
        ('{"mac": "0a:58:0a:01:00:02"}', "InvalidAddressRequest", "the network's own"),  # the node's
    ],
)
async def test_bad_requests_disturb_nobody(stage: Stage, request_text: str, reason: str, message: str) -> None:
    stage.put("node", node("n1", "10.1.0.0/24"))
    stage.put("pod", pod("bad", annotations={ADDRESSES: request_text}), pod("good"))
    await stage.settle()
    (problem,) = stage.problems.values()
    assert problem.reason == reason
    assert message in str(problem)
    assert "ns_good" in stage.named("Logical_Switch_Port")
    assert "ns_bad" not in stage.named("Logical_Switch_Port")


async def test_a_conflict_is_retried_when_the_address_is_free(stage: Stage) -> None:
    stage.put("node", node("n1", "10.1.0.0/24"))
    stage.put("pod", pod("first", annotations=asks(ips=["10.1.0.77"])))
    stage.put("pod", pod("second", annotations=asks(ips=["10.1.0.77"])))
    await stage.settle()
    assert stage.problems[Owner("pod", "ns/second")].reason == "AddressConflict"
    stage.remove("pod", "ns/first")
    await stage.settle()
    assert stage.problems == {}
    assert "10.1.0.77" in next(iter(stage.named("Logical_Switch_Port")["ns_second"]["addresses"]))


async def test_exhaustion_is_told_and_ends_when_room_appears(stage: Stage) -> None:
    stage.put("node", node("n1", "10.1.0.0/29"))
    stage.put("pod", *(pod(f"p{i}", uid=f"u{i}") for i in range(5)))
    await stage.settle()
    (owner,) = stage.problems
    assert stage.problems[owner].reason == "AddressesExhausted"
    # A pod that has run to its end frees its address at once.
    stage.put("pod", pod("p0", uid="u0", phase="Failed"))
    await stage.settle()
    assert stage.problems == {}
    assert {n for n in stage.named("Logical_Switch_Port") if n.startswith("ns_")} == {f"ns_p{i}" for i in range(1, 5)}


async def test_a_finished_pod_frees_its_own_address_only(stage: Stage) -> None:
    stage.put("node", node("n1", "10.1.0.0/24"))
    networks = {"default": {"ips": ["10.1.0.9/24"], "mac": "0a:58:0a:01:00:09"}}
    stage.put("pod", pod("job", uid="old", phase="Succeeded", networks=networks))
    stage.put("pod", pod("web", uid="new", networks=networks))
    await stage.settle()
    port = stage.named("Logical_Switch_Port")["ns_web"]
    assert port["addresses"] == {"0a:58:0a:01:00:09 10.1.0.9"}
    stage.remove("pod", "ns/job")
    stage.put("pod", pod("other", annotations=asks(ips=["10.1.0.9"])))
    await stage.settle()
    assert stage.problems[Owner("pod", "ns/other")].reason == "AddressConflict"


async def test_a_pod_of_the_same_name_replaces_the_old_one(stage: Stage) -> None:
    stage.put("node", node("n1", "10.1.0.0/24"))
    stage.put("pod", pod("web", uid="u1"))
    await stage.settle()
    stage.put("pod", pod("web", uid="u2"))
    await stage.settle()
    port = stage.named("Logical_Switch_Port")["ns_web"]
    assert port["options"]["iface-id-ver"] == "u2"
    assert len(stage.core.world.pools["n1"]) == 1


async def test_a_pod_before_its_node(stage: Stage) -> None:
    stage.put("pod", pod("web"))
    await stage.settle()
    assert stage.problems[Owner("pod", "ns/web")].reason == "NodeHasNoSubnet"
    stage.put("node", node("n1", "10.1.0.0/24"))
    await stage.settle()
    assert stage.problems == {}
    assert "ns_web" in stage.named("Logical_Switch_Port")
    stage.remove("node", "n1")
    await stage.settle()
    assert set(stage.named("Logical_Switch_Port")) == {"join_to_router"}
    assert set(stage.named("Logical_Switch")) == {"dpu-offload-join"}


@pytest.mark.parametrize(
    ("cidrs", "message"),
    [
        (("nonsense",), "is no CIDR"),
        (("10.1.0.1/24",), "is no CIDR"),
        (("10.1.0.0/30",), "too small"),
        (("10.1.0.0/24", "10.2.0.0/24"), "two subnets of one family"),
        (("10.0.0.0/25",), "overlaps with 10.0.0.0/24 of node good"),
    ],
)
async def test_bad_node_subnets(stage: Stage, cidrs: tuple[str, ...], message: str) -> None:
    stage.put("node", node("good", "10.0.0.0/24"), node("bad", *cidrs))
    stage.put("pod", pod("web", on="good"), pod("lost", on="bad"))
    await stage.settle()
    assert message in str(stage.problems[Owner("node", "bad")])
    assert set(stage.named("Logical_Switch")) == {"good", "dpu-offload-join"}
    assert "ns_web" in stage.named("Logical_Switch_Port")


async def test_restart_keeps_addresses_writes_nothing_and_sweeps(northbound: Northbound) -> None:
    async with Stage(northbound.remote) as first:
        first.put("node", node("n1", "10.1.0.0/24"))
        first.put("pod", pod("web", uid="u1"), pod("lost", uid="u2"), pod("gone", uid="u3"))
        await first.settle()
        before = {name: row["addresses"] for name, row in first.named("Logical_Switch_Port").items()}
        written = first.annotations["ns/web"]
    async with Stage(northbound.remote) as second:
        second.put("node", node("n1", "10.1.0.0/24"))
        # One annotation was written, the other was not before the first controller ended.
        second.put("pod", pod("new"), pod("lost", uid="u2"), pod("web", uid="u1", networks=written))
        await second.settle()
        after = {name: row["addresses"] for name, row in second.named("Logical_Switch_Port").items()}
        assert after.pop("ns_new") is not None
        del before["ns_gone"]
        assert after == before
        assert second.core.committer.statistics.rows == {"pod": 2}
    async with Stage(northbound.remote) as third:
        third.put("node", node("n1", "10.1.0.0/24"))
        third.put("pod", pod("web", uid="u1", networks=written), pod("lost", uid="u2"))
        await third.settle()
        assert third.core.committer.statistics.transactions == 1  # only the sweep of "new"
        third.core.committer.compare_all()
        await third.settle()
        assert third.core.committer.statistics.transactions == 1


async def test_annotations_claim_before_new_pods_ask(stage: Stage) -> None:
    """A pod whose address is written comes after one that has none, and yet keeps it."""
    networks = {"default": {"ips": ["10.1.0.9/24"], "mac": "0a:58:0a:01:00:09"}}
    stage.put("pod", pod("new", annotations=asks(ips=["10.1.0.9"])))
    stage.put("pod", pod("old", networks=networks))
    stage.put("node", node("n1", "10.1.0.0/24"))
    await stage.settle()
    assert stage.named("Logical_Switch_Port")["ns_old"]["addresses"] == {"0a:58:0a:01:00:09 10.1.0.9"}
    assert stage.problems[Owner("pod", "ns/new")].reason == "AddressConflict"


async def test_nodes_get_subnets_of_the_clusters_ranges(northbound: Northbound) -> None:
    ranges = {"ranges": ["10.1.0.0/16", "fd00:1::/48"], "host_prefixes": (24, 64)}
    async with Stage(northbound.remote, **ranges) as stage:
        stage.put("node", node("n1"), node("n2"), node("given", "10.1.7.0/24"))
        stage.put("pod", pod("web"))
        await stage.settle()
        texts = {name: each[NODE_SUBNETS] for name, each in stage.node_annotations.items() if NODE_SUBNETS in each}
        subnets = {name: json.loads(text) for name, text in texts.items()}
        assert set(subnets) == {"n1", "n2"}
        assert {len(each) for each in subnets.values()} == {2}
        assert len({each[0] for each in subnets.values()} | {"10.1.7.0/24"}) == 3
        assert stage.named("Logical_Switch")["n1"]["other_config"]["subnet"] == subnets["n1"][0]
        address = stage.annotations["ns/web"]["default"]["ips"][0]
        stage.remove("node", "n2")
        await stage.settle()
    async with Stage(northbound.remote, **ranges) as second:
        # The annotation was lost with the first controller; the database has kept the subnet.
        second.put("node", node("n1"))
        second.put("pod", pod("web", uid=stage.core.world.pods["ns/web"].uid))
        await second.settle()
        assert json.loads(second.node_annotations["n1"][NODE_SUBNETS]) == subnets["n1"]
        assert second.annotations["ns/web"]["default"]["ips"][0] == address


async def test_a_subnet_that_is_told_of_later_keeps_what_was_given_from_it(northbound: Northbound) -> None:
    """A pod's address may not be on the pod yet when the node's subnet comes back as its annotation."""
    async with Stage(northbound.remote, ranges=["10.1.0.0/24"], host_prefixes=(29, 64)) as stage:
        stage.put("node", node("n1"))
        for name in "abcd":
            stage.put("pod", pod(name, uid=name))
            await stage.settle()
        assert stage.problems == {}
        given = {name: stage.annotations[f"ns/{name}"] for name in "bcd"}
        stage.remove("pod", "ns/a")
        made = node("n1")
        made["metadata"]["annotations"] = {NODE_SUBNETS: stage.node_annotations["n1"][NODE_SUBNETS]}
        stage.put("node", made)
        await stage.settle()
        assert {name: stage.annotations[f"ns/{name}"] for name in "bcd"} == given


async def test_ranges_run_out_and_are_retried(northbound: Northbound) -> None:
    async with Stage(northbound.remote, ranges=["10.1.0.0/23"]) as stage:
        stage.put("node", node("n1"), node("n2"), node("n3"))
        await stage.settle()
        (owner,) = stage.problems
        assert stage.problems[owner].reason == "AddressesExhausted"
        stage.remove("node", next(name for name in ("n1", "n2", "n3") if name != owner.key))
        await stage.settle()
        assert stage.problems == {}


async def test_no_pods_name_is_a_nodes_ports(stage: Stage) -> None:
    """A port's name is unique in the database, and whoever makes a pod may choose its name and namespace."""
    for namespace, name in (
        ("management", "n1"),
        ("external", "n1-localnet"),
        ("join-to-gateway", "n1"),
        ("external-to-gateway", "n1"),
        ("join", "to-router"),
    ):
        stage.put("pod", pod(name, namespace=namespace, on="n2"))
    stage.put("node", node("n2", "10.1.2.0/24"))
    await stage.settle()
    made = node("n1", "10.1.1.0/24")
    made["metadata"]["annotations"] = {GATEWAY: '{"ips": ["192.0.2.11/24"]}'}
    stage.put("node", made, node("join", "10.1.3.0/24"))
    await stage.settle()
    assert stage.refused == []
    assert {"n1", "n2", "join"} <= set(stage.named("Logical_Switch"))


async def test_nodes_without_a_gateways_address_have_their_switch(northbound: Northbound) -> None:
    async with Stage(northbound.remote, ranges=["10.1.0.0/16"], join_ranges=("100.64.0.0/29",)) as stage:
        for index in range(1, 7):
            made = node(f"n{index}", f"10.1.{index}.0/24")
            made["metadata"]["annotations"] = {GATEWAY: f'{{"ips": ["192.0.2.1{index}/24"]}}'}
            stage.put("node", made)
        await stage.settle()
        (owner,) = stage.problems
        assert "widen cluster.join_ranges" in str(stage.problems[owner])
        assert {f"n{index}" for index in range(1, 7)} <= set(stage.named("Logical_Switch"))
        stage.remove("node", "n1" if owner.key != "n1" else "n2")
        await stage.settle()
        assert stage.problems == {}


async def test_an_overlap_ends_with_the_other_node(stage: Stage) -> None:
    stage.put("node", node("first", "10.0.0.0/24"), node("second", "10.0.0.0/25"))
    stage.put("pod", pod("web", on="second"))
    await stage.settle()
    assert "overlaps" in str(stage.problems[Owner("node", "second")])
    stage.remove("node", "first")
    await stage.settle()
    assert stage.problems == {}
    assert "ns_web" in stage.named("Logical_Switch_Port")


V4, V6, DUAL_MAC = "10.1.0.9/24", "fd00:1::9/64", "0a:58:0a:01:00:09"


@pytest.mark.parametrize(
    ("cidrs", "text", "kept"),
    [
        (("10.1.0.0/24", "fd00:1::/64"), {"default": {"ips": [V4, V6], "mac": DUAL_MAC}}, [V4, V6]),
        # The node has got or lost a family since: what runs goes on with what it has.
        (("10.1.0.0/24", "fd00:1::/64"), {"default": {"ips": [V4], "mac": DUAL_MAC}}, [V4]),
        (("10.1.0.0/24",), {"default": {"ips": [V4, V6], "mac": DUAL_MAC}}, [V4]),
        (("fd00:1::/64",), {"default": {"ips": [V4, V6], "mac": DUAL_MAC}}, [V6]),
        (("10.1.0.0/24",), {"default": {"ips": ["10.1.0.9/16"], "mac": DUAL_MAC, "mtu": 9}}, [V4]),
        # Nobody gets these by writing them down: they are made anew.
        (("10.1.0.0/24",), {"default": {"ips": ["10.9.0.9/24"], "mac": DUAL_MAC}}, None),
        (("10.1.0.0/24",), {"default": {"ips": ["10.1.0.1/24"], "mac": DUAL_MAC}}, None),
        (("10.1.0.0/24",), {"default": {"ips": ["10.1.0.2/24"], "mac": DUAL_MAC}}, None),
        (("10.1.0.0/24",), {"default": {"ips": ["10.1.0.255/24"], "mac": DUAL_MAC}}, None),
        (("10.1.0.0/24",), {"default": {"ips": ["10.1.0.8/24", V4], "mac": DUAL_MAC}}, None),
        (("10.1.0.0/24",), {"default": {"ips": ["nonsense"], "mac": DUAL_MAC}}, None),
        (("10.1.0.0/24",), {"default": {"ips": [V4], "mac": "nonsense"}}, None),
        (("10.1.0.0/24",), {"default": {"ips": [], "mac": DUAL_MAC}}, None),
        (("10.1.0.0/24",), {"default": 7}, None),
        (("10.1.0.0/24",), {"other": {"ips": [V4], "mac": DUAL_MAC}}, None),
        (("10.1.0.0/24",), {}, None),
    ],
)
async def test_what_an_annotation_says_already(
    stage: Stage, cidrs: tuple[str, ...], text: dict[str, Any], kept: list[str] | None
) -> None:
    stage.put("node", node("n1", *cidrs))
    stage.put("pod", pod("web", networks=text))
    await stage.settle()
    assert stage.problems == {}
    entry = stage.annotations["ns/web"]["default"]
    (addresses,) = stage.named("Logical_Switch_Port")["ns_web"]["addresses"]
    assert addresses.split() == [entry["mac"], *(ip.partition("/")[0] for ip in entry["ips"])]
    assert len(entry["gateways"]) == len(entry["ips"])
    assert entry["mtu"] == 1400
    if kept is not None:
        assert (entry["ips"], entry["mac"]) == (kept, DUAL_MAC)
    else:
        assert {ip.rpartition("/")[2] for ip in entry["ips"]} == {each.rpartition("/")[2] for each in cidrs}
        assert V4 not in entry["ips"]


async def test_a_node_that_gets_a_second_family_disturbs_no_pod_that_runs(stage: Stage) -> None:
    stage.put("node", node("n1", "10.1.0.0/24"))
    stage.put("pod", pod("old", uid="old"))
    await stage.settle()
    before = stage.annotations["ns/old"]
    stage.put("pod", pod("old", uid="old", networks=before))
    stage.put("node", node("n1", "10.1.0.0/24", "fd00:1::/64"))
    stage.put("pod", pod("new"))
    await stage.settle()
    assert stage.annotations["ns/old"] == before
    assert len(stage.annotations["ns/new"]["default"]["ips"]) == 2
