"""A guest away from home: on the switch of the node whose address it has, wherever it runs."""

from __future__ import annotations

import json

import pytest

from cni.controller.model.annotations import VM_NETWORKS
from cni.controller.translate.names import node_owner
from tests.controller.stage import Northbound, Stage, node, pod
from tests.kubevirt.conftest import FAMILIES, nodes
from tests.kubevirt.objects import interface, launcher, migration, spec, vm, vmi
from tests.kubevirt.scene import ROUTED, addresses, port, run, stop


async def test_a_routed_network_keeps_the_address_of_another_node(stage: Stage) -> None:
    template = spec(interface("default"), interface("blue"), networks={"blue": "routed"})
    stage.put("network", ROUTED)
    stage.put("vm", vm("m", template))
    run(stage, "a", on="n1", template=template, networks="routed")
    await stage.settle()
    before, row = addresses(stage, "ns.routed_ns_vm_m"), port(stage, "ns.routed_ns_vm_m").uuid
    stop(stage, "a")
    run(stage, "b", on="n2", template=template, networks="routed")
    await stage.settle()
    assert addresses(stage, "ns.routed_ns_vm_m") == before
    row = port(stage, "ns.routed_ns_vm_m").uuid
    assert row in stage.named("Logical_Switch")["ns.routed_n1"]["ports"]
    assert port(stage, "ns.routed_ns_vm_m")["options"] == {"requested-chassis": "n2"}


async def test_a_home_outlives_its_node_while_guests_run_elsewhere(stage: Stage) -> None:
    stage.put("vm", vm("m"))
    run(stage, "a", on="n1")
    stage.put("vm", vm("stays"))
    stage.put("vmi", vmi("stays", on="n2"))
    stage.put("pod", launcher("stays", "s", on="n2"))
    await stage.settle()
    before = addresses(stage)
    stop(stage, "a")
    run(stage, "b", on="n2")
    await stage.settle()
    stage.remove("node", "n1")
    await stage.settle()
    assert addresses(stage) == before
    assert port(stage).uuid in stage.named("Logical_Switch")["n1"]["ports"]
    assert "router-to-n1" in stage.named("Logical_Router_Port")
    # Stopped, the machine still has it.
    stop(stage, "b")
    await stage.settle()
    assert "n1" in stage.named("Logical_Switch")
    # Its subnet is another node's now: there the machine is at home.
    stage.put("node", node("n4", "10.1.1.0/24", "fd01:1::/64"))
    await stage.settle()
    assert "n1" not in stage.named("Logical_Switch")
    run(stage, "c", on="n2")
    await stage.settle()
    assert not stage.problems
    assert addresses(stage) == before
    assert port(stage).uuid in stage.named("Logical_Switch")["n4"]["ports"]
    # With the machine goes what is left of the node.
    stage.remove("node", "n4")
    await stage.settle()
    assert "n4" in stage.named("Logical_Switch")
    stop(stage, "c")
    stage.remove("vm", "ns/m")
    await stage.settle()
    assert "n4" not in stage.named("Logical_Switch")


FRESH = {"same": ("10.1.1.0/24", "fd01:1::/64"), "other": ("10.1.9.0/24", "fd01:9::/64")}


@pytest.mark.parametrize("subnets", FRESH)
@pytest.mark.parametrize("late", [False, True], ids=["at once", "after it registered"])
async def test_a_node_that_is_installed_anew_does_not_cost_its_guests_their_addresses(
    stage: Stage, subnets: str, late: bool
) -> None:
    """Drained, deleted, back under its name: with the same subnets or with others, which Kubernetes may set later."""
    stage.put("vm", vm("m"))
    run(stage, "a", on="n1")
    await stage.settle()
    before = addresses(stage)
    stop(stage, "a")
    run(stage, "b", on="n2")
    stage.remove("node", "n1")
    await stage.settle()
    if late:
        stage.put("node", node("n1"))
        await stage.settle()
        assert addresses(stage) == before
    stage.put("node", node("n1", *FRESH[subnets]))
    stage.put("pod", pod("new", on="n1"))
    await stage.settle()
    assert not stage.problems
    assert addresses(stage) == before
    assert addresses(stage, "ns_new").split()[1].startswith(FRESH[subnets][0][:7])
    stop(stage, "b")
    await stage.settle()
    run(stage, "c", on="n1")
    await stage.settle()
    assert addresses(stage) == before
    stop(stage, "c")
    stage.remove("vm", "ns/m")
    await stage.settle()
    assert set(stage.named("Logical_Switch")) == {"n1", "n2", "n3", "d3", "dpu-offload-join"}


@pytest.mark.parametrize("families", FAMILIES)
async def test_the_node_that_owns_the_address_is_replaced_after_the_guest_has_moved(
    northbound: Northbound, families: str
) -> None:
    async with Stage(northbound.remote) as stage:
        stage.put("node", *nodes(families))
        run(stage, "a", on="n1", created=1)
        await stage.settle()
        before, row = addresses(stage), port(stage)
        stage.put("vmmigration", migration("j1", "m"))
        stage.put("pod", launcher("m", "b", on="n2", job="j1", created=2))
        await stage.settle()
        stage.put("vmmigration", migration("j1", "m", "Succeeded"))
        stage.remove("pod", "ns/a")
        stage.remove("node", "n1")
        await stage.settle()
        assert port(stage).uuid == row.uuid
        stage.put("node", node("n4", *(each.format(1) for each in FAMILIES[families])))
        await stage.settle()
        assert not stage.problems
        assert addresses(stage) == before
        assert port(stage)["options"] == {"requested-chassis": "n2"}
        assert port(stage).uuid in stage.named("Logical_Switch")["n4"]["ports"]
        assert "n1" not in stage.named("Logical_Switch")
        for family in (4, 6):
            assert port(stage)[f"dhcpv{family}_options"] == row[f"dhcpv{family}_options"]
        told = stage.named("Logical_Router_Port")["router-to-n4"]["ipv6_ra_configs"]
        assert bool(told) is (families != "v4")


async def test_a_node_lost_with_its_guest_costs_it_no_address(stage: Stage) -> None:
    """The Node object goes before the pods on it do; the machine starts elsewhere while the old pod is still there."""
    stage.put("vm", vm("m"))
    run(stage, "a", on="n1", created=1)
    await stage.settle()
    before = addresses(stage)
    run(stage, "a", on="n1", created=1, leaving=True)
    stage.remove("node", "n1")
    await stage.settle()
    assert addresses(stage) == before
    run(stage, "b", on="n2", created=2)
    await stage.settle()
    assert addresses(stage) == before
    assert port(stage)["options"] == {"requested-chassis": "n2"}
    stage.remove("pod", "ns/a")
    await stage.settle()
    assert addresses(stage) == before
    assert port(stage)["options"] == {"requested-chassis": "n2"}
    assert not stage.problems


async def test_another_subnet_waits_for_guests_that_run_and_not_for_those_that_do_not(stage: Stage) -> None:
    stage.put("vm", vm("m"))
    run(stage, "a", on="n1")
    await stage.settle()
    before = addresses(stage)
    stage.remove("node", "n1")
    stage.put("node", node("n4", "10.1.0.0/23", ip="192.0.2.4"))
    await stage.settle()
    assert stage.problems[node_owner("n4")].reason == "InvalidNodeSubnet"
    assert addresses(stage) == before
    stop(stage, "a")
    await stage.settle()
    assert not stage.problems
    assert "n1" not in stage.named("Logical_Switch")
    run(stage, "b", on="n2")
    await stage.settle()
    # What fits there it keeps.
    assert addresses(stage).split()[:2] == before.split()[:2]
    assert port(stage).uuid in stage.named("Logical_Switch")["n4"]["ports"]


async def test_a_new_node_gets_the_subnet_of_machines_that_are_stopped_when_no_other_is_left(
    northbound: Northbound,
) -> None:
    async with Stage(northbound.remote, ranges=["10.1.0.0/23"]) as stage:
        stage.put("node", node("n1"), node("n2"))
        stage.put("vm", vm("m"))
        run(stage, "a", on="n1")
        await stage.settle()
        stage.remove("node", "n1")
        stage.put("node", node("n3"))
        await stage.settle()
        assert stage.problems[node_owner("n3")].reason == "AddressesExhausted"
        stop(stage, "a")
        await stage.settle()
        assert not stage.problems
        run(stage, "b", on="n3")
        await stage.settle()
        assert not stage.problems
        assert addresses(stage)


async def test_a_guest_keeps_its_address_when_its_node_gets_a_family_and_gets_one_of_it(stage: Stage) -> None:
    run(stage, "a", on="n1")
    stage.put("node", node("n1", "10.1.1.0/24"))
    await stage.settle()
    before = addresses(stage)
    assert len(before.split()) == 2
    stage.put("node", node("n1", "10.1.1.0/24", "fd01:1::/64"))
    await stage.settle()
    assert addresses(stage).startswith(before)
    assert len(addresses(stage).split()) == 3
    assert port(stage)["dhcpv6_options"]
    stage.put("node", node("n1", "fd01:1::/64"))
    await stage.settle()
    assert addresses(stage).split()[0] == before.split()[0]
    assert not stage.problems


async def test_a_new_controller_finds_the_home_of_a_guest_whose_node_is_gone(northbound: Northbound) -> None:
    async with Stage(northbound.remote) as stage:
        stage.put("node", *nodes("dual"))
        stage.put("vm", vm("m"))
        run(stage, "a", on="n1")
        await stage.settle()
        stop(stage, "a")
        run(stage, "b", on="n2")
        await stage.settle()
        before, kept = addresses(stage), json.dumps(stage.machines["ns/m"])
    others = [each for each in nodes("dual") if each["metadata"]["name"] != "n1"]
    anew = node("n1", "10.1.9.0/24", "fd01:9::/64")
    for known, found, home in (
        ({VM_NETWORKS: kept}, others, "n1"),
        ({}, others, "n1"),
        ({}, [*others, anew], "n1__10.1.1.0"),
        ({VM_NETWORKS: kept}, [*others, anew], "n1__10.1.1.0"),
        ({}, [*others, node("n4", "10.1.1.0/24", "fd01:1::/64")], "n4"),
        ({}, others, "n4"),
    ):
        async with Stage(northbound.remote) as stage:
            stage.put("node", *found)
            stage.put("vm", vm("m", **known))
            run(stage, "b", on="n2")
            await stage.settle()
            assert addresses(stage) == before
            assert port(stage).uuid in stage.named("Logical_Switch")[home]["ports"]
    async with Stage(northbound.remote) as stage:
        stage.put("node", *others)
        stage.put("vm", vm("m", **{VM_NETWORKS: kept}))
        await stage.settle()
        assert "n4" in stage.named("Logical_Switch")
    async with Stage(northbound.remote) as stage:
        stage.put("node", *others)
        await stage.settle()
        assert "n4" not in stage.named("Logical_Switch")


async def test_policies_and_selectors_see_the_pod_with_the_guest(stage: Stage) -> None:
    stage.put("namespace", {"metadata": {"name": "ns"}})
    policy = {
        "metadata": {"name": "p", "namespace": "ns"},
        "spec": {"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Ingress"]},
    }
    stage.put("networkpolicy", policy)
    stage.put("vm", vm("m"))
    run(stage, "a", on="n1", labels={"app": "db"})
    await stage.settle()
    groups = [row for row in stage.rows("Port_Group") if port(stage).uuid in row["ports"]]
    assert groups
    stop(stage, "a")
    run(stage, "b", on="n2", labels={"app": "db"})
    await stage.settle()
    uuid = port(stage).uuid
    assert [row["name"] for row in stage.rows("Port_Group") if uuid in row["ports"]] == [row["name"] for row in groups]
    # Away from home, the node that runs it may probe it all the same.
    (probes,) = [row for row in stage.rows("ACL") if 'outport == "ns_vm_m"' in row["match"]]
    assert "ip4.src == 10.1.2.2" in probes["match"]
    assert "ip6.src == fd01:2::2" in probes["match"]
    assert probes.uuid in stage.named("Logical_Switch")["n1"]["acls"]


async def test_a_guest_away_from_home_leaves_through_the_gateway_where_it_is(stage: Stage) -> None:
    gateways = [
        {
            **node(f"n{index}", f"10.1.{index}.0/24", ip=f"192.0.2.{index}"),
            "metadata": {
                "name": f"n{index}",
                "uid": f"node-n{index}",
                "annotations": {
                    "dpu-offload.io/gateway": json.dumps(
                        {"ips": [f"192.0.2.1{index}/24"], "nextHops": ["192.0.2.254"], "physicalNetwork": "physnet1"}
                    )
                },
            },
        }
        for index in (1, 2)
    ]
    stage.put("node", *gateways)
    stage.put("vm", vm("m"))
    run(stage, "a", on="n1")
    await stage.settle()
    nats = [row for row in stage.rows("NAT") if row["logical_ip"] == addresses(stage).split()[1]]
    assert nats == []
    stop(stage, "a")
    run(stage, "b", on="n2")
    await stage.settle()
    (nat,) = [row for row in stage.rows("NAT") if row["logical_ip"] == addresses(stage).split()[1]]
    assert nat["external_ip"] == "192.0.2.12"
    assert nat.uuid in stage.named("Logical_Router")["gateway_n2"]["nat"]


async def test_bandwidth_follows_the_machine(stage: Stage) -> None:
    run(stage, "a", on="n1", annotations={"kubernetes.io/ingress-bandwidth": "10M"})
    await stage.settle()
    (rule,) = stage.rows("QoS")
    assert rule["match"] == 'outport == "ns_vm_m"'


@pytest.mark.parametrize("claimed", [False, True], ids=["the machine's own", "a claim's"])
async def test_what_a_gone_node_has_of_a_routed_network_stays_as_long_as_it_is_kept_there(
    northbound: Northbound, claimed: bool
) -> None:
    template = spec(interface("default"), interface("blue"), networks={"blue": "routed"})
    asked = json.dumps([{"name": "routed", **({"ipam-claim-reference": "c"} if claimed else {})}])
    claim = {"metadata": {"name": "c", "namespace": "ns"}, "spec": {"network": "routed", "interface": "blue"}}
    others = [each for each in nodes("dual") if each["metadata"]["name"] != "n1"]
    async with Stage(northbound.remote) as stage:
        stage.put("node", *nodes("dual"))
        stage.put("network", ROUTED)
        stage.put("ipamclaim", claim)
        stage.put("vm", vm("m", template))
        run(stage, "a", on="n1", template=template, networks=asked)
        await stage.settle()
        before = addresses(stage, "ns.routed_ns_vm_m")
        stop(stage, "a")
        stage.remove("node", "n1")
        await stage.settle()
        run(stage, "b", on="n2", template=template, networks=asked)
        await stage.settle()
        assert addresses(stage, "ns.routed_ns_vm_m") == before
        kept = json.dumps(stage.machines["ns/m"])
        ips = {"status": {"ips": list(stage.claims.get("ns/c", ()))}}
    async with Stage(northbound.remote) as stage:
        stage.put("node", *others)
        stage.put("network", ROUTED)
        stage.put("ipamclaim", {**claim, **ips})
        stage.put("vm", vm("m", template, **{VM_NETWORKS: kept}))
        run(stage, "b", on="n2", template=template, networks=asked)
        await stage.settle()
        assert addresses(stage, "ns.routed_ns_vm_m") == before
        stop(stage, "b")
        stage.remove("vm", "ns/m")
        stage.remove("ipamclaim", "ns/c")
        await stage.settle()
        assert not stage.problems
        assert "ns.routed_n1" not in stage.named("Logical_Switch")
