"""Secondary networks: definitions and pods' selections into switches, ports, addresses.

Subjects: selections long and short, the same network twice; layer2, layer3, localnet with VLAN; excluded addresses;
DHCP and router advertisement; other plugins' networks; claims over restarts; bandwidth; policies for one network.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_interface, ip_network
from typing import Any

import pytest

from cni.controller.errors import InvalidAnnotation
from cni.controller.model.network import wishes
from cni.controller.rows import Owner
from cni.selection import NETWORKS
from tests.controller.stage import Northbound, Stage, node, pod
from tests.controller.tracer import Endpoint, Tracer, microflow


@pytest.fixture
def northbound() -> Iterator[Northbound]:
    server = Northbound()
    yield server
    server.remove()


@pytest.fixture
async def stage(northbound: Northbound) -> AsyncIterator[Stage]:
    async with Stage(northbound.remote) as stage:
        stage.put("node", node("n1", "10.1.0.0/24"), node("n2", "10.2.0.0/24"))
        yield stage


def nad(name: str = "blue", **config: Any) -> dict[str, Any]:
    text = json.dumps({"cniVersion": "1.1.0", "name": name, "type": "dpu-offload", **config})
    return {"metadata": {"name": name, "namespace": "ns"}, "spec": {"config": text}}


def asking(selection: Any) -> dict[str, str]:
    return {NETWORKS: selection if isinstance(selection, str) else json.dumps(selection)}


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        (None, []),
        (" ", []),
        ("blue", ["ns/blue"]),
        ("other/blue@net7", ["other/blue"]),
        ("blue, blue,other/red", ["ns/blue", "ns/blue/1", "other/red"]),
        ('[{"name": "blue"}, {"name": "blue", "namespace": "ns"}]', ["ns/blue", "ns/blue/1"]),
    ],
)
def test_selections(text: str | None, keys: list[str]) -> None:
    assert [wish.key for wish in wishes(text, "ns")] == keys


@pytest.mark.parametrize("text", ["[", '[{"nam": "x"}]', "a b", "a/b/c", "[3]"])
def test_bad_selections(text: str) -> None:
    with pytest.raises(InvalidAnnotation, match="cannot be read"):
        wishes(text, "ns")


async def test_layer2(stage: Stage) -> None:
    stage.put("network", nad(topology="layer2", subnets="10.100.0.0/24,fd00:100::/64", excludeSubnets="10.100.0.0/25"))
    stage.put("pod", pod("a", uid="a", annotations=asking([{"name": "blue", "ips": ["10.100.0.200"]}])))
    stage.put("pod", pod("b", on="n2", annotations=asking("blue,blue")))
    await stage.settle()
    assert stage.problems == {}
    ports = stage.named("Logical_Switch_Port")
    assert {name for name in ports if name.startswith("ns.blue")} == {"ns.blue_ns_a", "ns.blue_ns_b", "ns.blue_ns_b_1"}
    entry = stage.annotations["ns/a"]["ns/blue"]
    assert entry["ips"][0] == "10.100.0.200/24"
    assert entry["port"] == "ns.blue_ns_a"
    assert "default" in stage.annotations["ns/a"]
    assert set(stage.annotations["ns/b"]) == {"default", "ns/blue", "ns/blue/1"}
    for key in ("ns/blue", "ns/blue/1"):
        assert int(stage.annotations["ns/b"][key]["ips"][0].split(".")[3].split("/")[0]) >= 128
    switch = stage.named("Logical_Switch")["ns.blue"]
    assert switch["ports"] == {row.uuid for name, row in ports.items() if name.startswith("ns.blue")}
    port = ports["ns.blue_ns_a"]
    assert port["options"] == {"iface-id-ver": "a", "requested-chassis": "n1"}
    options = {row.uuid: row for row in stage.rows("DHCP_Options")}
    assert options[port["dhcpv4_options"]]["cidr"] == "10.100.0.0/24"
    assert options[port["dhcpv6_options"]]["cidr"] == "fd00:100::/64"
    stage.remove("network", "ns/blue")
    await stage.settle()
    assert stage.problems[Owner("pod", "ns/a")].reason == "NetworkMissing"
    assert not {name for name in stage.named("Logical_Switch_Port") if name.startswith("ns.blue")}
    assert "ns_a" in stage.named("Logical_Switch_Port"), "the default network does not depend on it"


@pytest.mark.parametrize(
    ("subnet", "excluded", "first"),
    [("11.0.0.0/8", "11.0.0.0/9, 11.192.0.0/10", "11.128.0.0/10"), ("fd01::/64", "fd01::/65", "fd01:0:0:0:8000::/65")],
)
async def test_large_parts_that_nobody_gets_cost_nothing(stage: Stage, subnet: str, excluded: str, first: str) -> None:
    stage.put("network", nad(subnets=subnet, excludeSubnets=excluded))
    stage.put("pod", *(pod(f"p{index}", annotations=asking("blue")) for index in range(9)))
    async with asyncio.timeout(10):
        await stage.settle()
    found = {stage.annotations[f"ns/p{index}"]["ns/blue"]["ips"][0] for index in range(9)}
    assert len(found) == 9
    assert all(ip_interface(each).ip in ip_network(first) for each in found)


@pytest.mark.parametrize("topology", ["layer2", "layer3"])
async def test_a_change_that_is_not_of_addresses_changes_none(stage: Stage, topology: str) -> None:
    """Also of pods that have not been told of theirs yet."""
    stage.put("network", nad(topology=topology, subnets="172.16.0.0/28/29"))
    names = ("pa", "pb") if topology == "layer3" else ("pa", "pb", "pc", "pd")
    for name in names:
        stage.put("pod", pod(name, uid=name, on="n1" if name == "pa" else "n2", annotations=asking("blue")))
        await stage.settle()
    assert stage.problems == {}
    stage.remove("pod", "ns/pa")
    given = {name: stage.annotations[f"ns/{name}"]["ns/blue"]["ips"] for name in names[1:]}
    stage.remove("node", "n1")
    await stage.settle()
    stage.put("network", nad(topology=topology, subnets="172.16.0.0/28/29", mtu=1300))
    await stage.settle()
    assert {name: stage.annotations[f"ns/{name}"]["ns/blue"]["ips"] for name in names[1:]} == given
    assert stage.annotations["ns/pb"]["ns/blue"]["mtu"] == 1300


async def test_guests_are_told_to_ask_for_their_ipv6_address(stage: Stage) -> None:
    stage.put("network", nad(subnets="10.100.0.0/24,fd00:100::/64", enableIPv6RA=True))
    stage.put("pod", pod("a", annotations=asking([{"name": "blue", "ips": ["fd00:100::1"]}])), pod("b"))
    await stage.settle()
    assert stage.problems[Owner("pod", "ns/a")].reason == "InvalidAddressRequest", "it is the router's"
    port = stage.named("Logical_Router_Port")["ns.blue_advertiser"]
    assert port["networks"] == {"fd00:100::1/64"}
    configs = port["ipv6_ra_configs"]
    assert (configs["address_mode"], configs["send_periodic"]) == ("dhcpv6_stateful", "true")
    assert port.uuid in stage.named("Logical_Router")["ns.blue_advertiser"]["ports"]
    side = stage.named("Logical_Switch_Port")["ns.blue_to-advertiser"]
    assert side["options"] == {"router-port": "ns.blue_advertiser"}
    assert side.uuid in stage.named("Logical_Switch")["ns.blue"]["ports"]
    stage.put("network", nad(subnets="10.100.0.0/24,fd00:100::/64"))
    await stage.settle()
    assert "ns.blue_advertiser" not in stage.named("Logical_Router")
    assert stage.problems == {}


async def test_localnet_with_vlan_and_without_addresses(stage: Stage) -> None:
    stage.put("network", nad(topology="localnet", vlanID=7, physicalNetworkName="physnet2"))
    stage.put("pod", pod("a", annotations=asking([{"name": "blue", "mac": "02:00:00:00:00:0a"}])))
    await stage.settle()
    ports = stage.named("Logical_Switch_Port")
    assert ports["ns.blue_localnet"]["options"] == {"network_name": "physnet2"}
    assert ports["ns.blue_localnet"]["tag"] == 7
    assert ports["ns.blue_ns_a"]["addresses"] == {"02:00:00:00:00:0a", "unknown"}
    assert stage.annotations["ns/a"]["ns/blue"] == {
        "ips": [],
        "mac": "02:00:00:00:00:0a",
        "mtu": 1500,
        "port": "ns.blue_ns_a",
    }


async def test_layer3_gives_each_node_a_part_and_keeps_it(northbound: Northbound) -> None:
    definition = nad(topology="layer3", subnets="10.128.0.0/16/24")
    pods = [pod("a", uid="a", annotations=asking("blue")), pod("b", on="n2", uid="b", annotations=asking("blue"))]
    nodes = [node("n1", "10.1.0.0/24"), node("n2", "10.2.0.0/24")]
    entries = []
    for _ in range(2):  # the second time after a restart, with the annotations lost
        async with Stage(northbound.remote) as stage:
            stage.put("node", *nodes)
            stage.put("network", definition)
            stage.put("pod", *pods)
            await stage.settle()
            assert {"ns.blue_n1", "ns.blue_n2"} <= set(stage.named("Logical_Switch"))
            routers = stage.named("Logical_Router_Port")
            entry = stage.annotations["ns/a"]["ns/blue"]
            (network,) = routers["ns.blue_router-to-n1"]["networks"]
            assert entry["routes"] == [{"dest": "10.128.0.0/16", "nextHop": network.removesuffix("/24")}]
            assert entry["ips"][0].rpartition(".")[0] == network.rpartition(".")[0]
            entries.append([stage.annotations[f"ns/{name}"]["ns/blue"] for name in "ab"])
    assert entries[0] == entries[1]
    assert entries[0][0]["ips"][0].rpartition(".")[0] != entries[0][1]["ips"][0].rpartition(".")[0]


async def test_a_network_without_a_part_for_another_node_says_so_until_there_is_one(stage: Stage) -> None:
    stage.put("network", nad(topology="layer3", subnets="172.16.0.0/25/26"))
    stage.put("node", node("n3", "10.3.0.0/24"))
    stage.put("pod", *(pod(f"p{index}", on=f"n{index}", annotations=asking("blue")) for index in (1, 2, 3)))
    await stage.settle()
    (owner,) = stage.problems
    assert stage.problems[owner].reason == "AddressesExhausted"
    assert "172.16.0.0/25 has no free /26 for ns/blue" in str(stage.problems[owner])
    assert f"ns_{owner.key.partition('/')[2]}" in stage.named("Logical_Switch_Port")
    other = next(index for index in (1, 2, 3) if owner.key != f"ns/p{index}")
    stage.remove("pod", f"ns/p{other}")
    stage.remove("node", f"n{other}")
    await stage.settle()
    assert stage.problems == {}
    assert "ns/blue" in stage.annotations[owner.key]


async def test_packets_stay_in_their_network() -> None:
    """By real OVN: between nodes of a layer3 network, never between two networks."""
    async with Tracer() as tracer, Stage(tracer.central.nb) as stage:
        stage.put("node", node("n1", "10.1.0.0/24"), node("n2", "10.2.0.0/24"))
        stage.put("network", nad("blue", topology="layer3", subnets="10.128.0.0/16/24"))
        stage.put("network", nad("red", topology="layer2", subnets="10.128.0.0/16"))
        stage.put("pod", pod("a", annotations=asking("blue,red")), pod("b", on="n2", annotations=asking("blue,red")))
        await stage.settle()
        await tracer.synchronise()

        def side(name: str, on: str, network: str) -> Endpoint:
            entry = stage.annotations[f"ns/{name}"][f"ns/{network}"]
            router = stage.named("Logical_Router_Port").get(f"ns.{network}_router-to-{on}")
            where = f"{network} {on}" if router is not None else network
            mac = router["mac"] if router is not None else ""
            return Endpoint(f"ns.{network}_ns_{name}", where, entry["mac"], entry["ips"][0].partition("/")[0], mac)

        pairs = [(side("a", "n1", each), side("b", "n2", each)) for each in ("blue", "red")]
        traces = await tracer.traces([microflow(*pair, "TCP", 80) for pair in pairs])
        assert [f'output("{there.port}")' in trace for (_, there), trace in zip(pairs, traces, strict=True)] == [
            True
        ] * 2
        blue, red = pairs
        (trace,) = await tracer.traces([microflow(blue[0], red[1], "TCP", 80)])
        assert "output(" not in trace


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"topology": "layer9"}, "is none of layer2"),
        ({"topology": "layer3"}, "needs subnets"),
        ({"subnets": "nonsense"}, "is not of the form"),
        ({"subnets": "10.0.0.1/24"}, "is no CIDR"),
        ({"subnets": "10.0.0.0/24,10.1.0.0/24"}, "two subnets of one family"),
        ({"topology": "localnet", "vlanID": 5000}, "VLAN"),
        ({"topology": "layer2", "mtu": 5}, "MTU"),
        ({"subnets": "10.0.0.0/24", "excludeSubnets": "10.9.0.0/24"}, "outside"),
        ({"subnets": 7}, "cannot be read"),
        ({"subnets": "10.0.0.0/24", "enableIPv6RA": True}, "needs topology layer2 or localnet with an IPv6 subnet"),
        ({"topology": "layer3", "subnets": "fd00::/48/64", "enableIPv6RA": True}, "needs topology layer2"),
    ],
)
async def test_bad_definitions(stage: Stage, config: dict[str, Any], message: str) -> None:
    stage.put("network", nad(**config))
    stage.put("pod", pod("a", annotations=asking("blue")), pod("b"))
    await stage.settle()
    assert message in str(stage.problems[Owner("network", "ns/blue")])
    assert stage.problems[Owner("pod", "ns/a")].reason == "NetworkMissing"
    assert {"ns_a", "ns_b"} <= set(stage.named("Logical_Switch_Port"))
    stage.put("network", nad(subnets="10.100.0.0/24"))
    await stage.settle()
    assert stage.problems == {}


@pytest.mark.parametrize(
    "config",
    [
        "",
        "{",
        '{"type": "macvlan"}',
        '{"type": "dpu-offload"}',
        '{"plugins": [{"type": "dpu-offload"}, {"type": "tuning"}]}',
    ],
)
async def test_other_plugins_networks_and_the_default_one_are_left_alone(stage: Stage, config: str) -> None:
    stage.put("network", {"metadata": {"name": "other", "namespace": "ns"}, "spec": {"config": config}})
    await stage.settle()
    assert stage.problems == {}
    assert "ns.other" not in stage.named("Logical_Switch")


@pytest.mark.parametrize(
    ("annotations", "reason"),
    [
        (asking("["), "InvalidNetworkAnnotation"),
        (asking("nothere"), "NetworkMissing"),
        (asking([{"name": "blue", "ips": ["10.9.9.9"]}]), "InvalidAddressRequest"),
        ({"kubernetes.io/ingress-bandwidth": "fast"}, "InvalidBandwidth"),
    ],
)
async def test_bad_pods_keep_their_default_network(stage: Stage, annotations: dict[str, str], reason: str) -> None:
    stage.put("network", nad(subnets="10.100.0.0/24"))
    stage.put("pod", pod("a", annotations=annotations))
    await stage.settle()
    assert stage.problems[Owner("pod", "ns/a")].reason == reason
    assert "ns_a" in stage.named("Logical_Switch_Port")
    assert set(stage.annotations["ns/a"]) == {"default"}


async def test_bandwidth(stage: Stage) -> None:
    rates = {"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "1Gi"}
    stage.put("pod", pod("a", uid="a", annotations=rates))
    await stage.settle()
    rows = {row["direction"]: row for row in stage.rows("QoS")}
    assert rows["to-lport"]["bandwidth"] == {"rate": 10000}
    assert rows["from-lport"]["bandwidth"] == {"rate": 1073741}
    assert rows["to-lport"]["match"] == 'outport == "ns_a"'
    assert stage.named("Logical_Switch")["n1"]["qos_rules"] == {row.uuid for row in rows.values()}
    stage.put("pod", pod("a", uid="a"))
    await stage.settle()
    assert not list(stage.rows("QoS"))


def claim(ips: tuple[str, ...] = (), name: str = "c") -> dict[str, Any]:
    status = {"ips": list(ips)} if ips else {}
    return {
        "metadata": {"name": name, "namespace": "ns"},
        "spec": {"network": "blue", "interface": "net1"},
        "status": status,
    }


async def test_a_claim_keeps_its_addresses_when_the_pod_goes(stage: Stage) -> None:
    claiming = asking([{"name": "blue", "ipam-claim-reference": "c"}])
    stage.put("network", nad(subnets="10.100.0.0/24"))
    stage.put("pod", pod("vm", uid="v1", annotations=claiming))
    await stage.settle()
    assert "no IPAMClaim ns/c" in str(stage.problems[Owner("pod", "ns/vm")])
    stage.put("ipamclaim", claim())
    await stage.settle()
    assert stage.problems == {}
    ips = stage.claims["ns/c"]
    assert list(ips) == stage.annotations["ns/vm"]["ns/blue"]["ips"]
    stage.put("ipamclaim", claim(ips))
    stage.remove("pod", "ns/vm")
    thief = asking([{"name": "blue", "ips": [ips[0]]}])
    stage.put("pod", pod("thief", annotations=thief))
    await stage.settle()
    assert stage.problems[Owner("pod", "ns/thief")].reason == "AddressConflict"
    stage.put("pod", pod("vm-again", on="n2", uid="v2", annotations=claiming))
    await stage.settle()
    assert stage.annotations["ns/vm-again"]["ns/blue"]["ips"] == list(ips)
    stage.remove("pod", "ns/vm-again")
    stage.remove("ipamclaim", "ns/c")
    await stage.settle()
    assert stage.problems == {}, "without its claim the address is free"


async def test_a_claims_addresses_are_kept_over_a_restart(stage: Stage) -> None:
    stage.put("ipamclaim", claim(("10.100.0.9/24",)))
    stage.put("network", nad(subnets="10.100.0.0/24"))
    stage.put("pod", pod("thief", annotations=asking([{"name": "blue", "ips": ["10.100.0.9"]}])))
    stage.put("pod", pod("vm", annotations=asking([{"name": "blue", "ipam-claim-reference": "c"}])))
    await stage.settle()
    assert stage.problems[Owner("pod", "ns/thief")].reason == "AddressConflict"
    assert stage.annotations["ns/vm"]["ns/blue"]["ips"] == ["10.100.0.9/24"]


async def test_a_policy_binds_only_the_networks_it_is_for() -> None:
    """By real OVN: what MultiNetworkPolicy refuses on one network passes on the other, and on the default one."""
    async with Tracer() as tracer, Stage(tracer.central.nb) as stage:
        stage.put("node", node("n1", "10.1.0.0/24"))
        for name, subnet in (("blue", "10.100.0.0/24"), ("red", "10.101.0.0/24")):
            stage.put("network", nad(name, subnets=subnet))
        for name in "abc":
            stage.put("pod", pod(name, labels={"app": name}, annotations=asking("blue,red")))
        spec = {
            "podSelector": {"matchLabels": {"app": "a"}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "b"}}}], "ports": [{"port": 80}]}],
        }
        metadata = {"name": "p", "namespace": "ns", "annotations": {"k8s.v1.cni.cncf.io/policy-for": "blue"}}
        stage.put("multinetworkpolicy", {"metadata": metadata, "spec": spec})
        await stage.settle()
        await tracer.synchronise()

        def side(name: str, network: str) -> Endpoint:
            entry = stage.annotations[f"ns/{name}"][f"ns/{network}" if network else "default"]
            port = f"ns.{network}_ns_{name}" if network else f"ns_{name}"
            return Endpoint(port, network, entry["mac"], entry["ips"][0].partition("/")[0], "")

        questions = [("b", "blue", 80), ("b", "blue", 81), ("c", "blue", 80), ("c", "red", 80), ("c", "", 80)]
        verdicts = await tracer.reaches([(side(who, on), side("a", on), "TCP", port) for who, on, port in questions])
        assert verdicts == [True, False, False, True, True]
        metadata["annotations"] = {}
        stage.put("multinetworkpolicy", {"metadata": metadata, "spec": spec})
        await stage.settle()
        assert "names no network" in str(stage.problems[Owner("multinetworkpolicy", "ns/p")])
        assert not list(stage.rows("ACL"))
