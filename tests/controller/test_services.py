"""Services into load balancers: which backends by table, which way packets go by real OVN.

Subjects: the choice of endpoints (none, several slices, twice the same, other port name, protocol, family; ready,
terminating, serving, not ready but published; of one node), rows for cluster addresses, several ports, two families,
node ports, outer addresses, both policies Local, affinity, services without load balancer, source ranges, health ports,
nodes that go. Verdicts for every client and address are in `test_service_verdicts`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import pytest

from cni.controller.model.annotations import GATEWAY, HEALTH_CHECKS
from cni.controller.model.endpoints import Endpoint, Slice, choose
from cni.controller.rows import Owner
from tests.controller.stage import Northbound, Stage, node, pod
from tests.controller.tracer import Endpoint as Side
from tests.controller.tracer import Tracer, microflow


def endpoint(address: str, on: str = "n1", state: str = "ready") -> Endpoint:
    """`state`: ready, unready, serving (terminating but serving), leaving (terminating, not serving)."""
    return Endpoint(
        address,
        on,
        ready=state == "ready",
        serving=state in ("ready", "serving"),
        terminating=state in ("serving", "leaving"),
    )


def piece(*endpoints: Endpoint, family: int = 4, ports: Mapping[tuple[str, str], int] | None = None) -> Slice:
    return Slice("ns/svc", family, endpoints, ports or {("http", "TCP"): 8080})


A, B = "10.0.0.1", "10.0.0.2"


@pytest.mark.parametrize(
    ("slices", "options", "addresses"),
    [
        ([], {}, []),
        ([piece()], {}, []),
        ([piece(endpoint(A))], {}, [A]),
        ([piece(endpoint(B), endpoint(A))], {}, [A, B]),
        ([piece(endpoint(A)), piece(endpoint(B))], {}, [A, B]),
        ([piece(endpoint(A)), piece(endpoint(A))], {}, [A]),
        ([piece(endpoint(A, state="unready")), piece(endpoint(A))], {}, [A]),
        ([piece(endpoint(A, state="unready"))], {}, []),
        ([piece(endpoint(A, state="unready"))], {"publish_not_ready": True}, [A]),
        ([piece(endpoint(A), endpoint(B, state="serving"))], {}, [A]),
        ([piece(endpoint(A, state="unready"), endpoint(B, state="serving"))], {}, [B]),
        ([piece(endpoint(A, state="leaving"))], {}, []),
        ([piece(endpoint(A, state="serving"), endpoint(B, state="serving"))], {}, [A, B]),
        ([piece(endpoint(A), family=6)], {}, []),
        ([piece(endpoint("fd00::1"), family=6)], {"family": 6}, ["fd00::1"]),
        ([piece(endpoint("host.example"), family=0)], {}, []),
        ([piece(endpoint(A), ports={("other", "TCP"): 1})], {}, []),
        ([piece(endpoint(A), ports={("http", "UDP"): 1})], {}, []),
        ([piece(endpoint(A), ports={("", "TCP"): 1})], {"port_name": ""}, [A]),
        ([piece(endpoint(A, "n1"), endpoint(B, "n2"))], {"node": "n2"}, [B]),
        ([piece(endpoint(A, "n1"), endpoint(B, "n2", "serving"))], {"node": "n2"}, [B]),
        ([piece(endpoint(A, "n1"))], {"node": "n3"}, []),
    ],
)
def test_choice_of_endpoints(slices: list[Slice], options: dict[str, Any], addresses: list[str]) -> None:
    arguments = {"family": 4, "port_name": "http", "protocol": "TCP", "publish_not_ready": False, **options}
    assert [each.address for each in choose(slices, **arguments)] == addresses


def service(**spec: Any) -> dict[str, Any]:
    ingress, labels = spec.pop("ingress", []), spec.pop("labels", {})
    ports = spec.pop("ports", [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}])
    return {
        "metadata": {"name": "svc", "namespace": "ns", "labels": labels},
        "spec": {"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ports": ports, **spec},
        "status": {"loadBalancer": {"ingress": [{"ip": ip} for ip in ingress]}},
    }


def endpoint_slice(
    *addresses: tuple[str, str], name: str = "s", port: int = 8080, family: str = "IPv4", protocol: str = "TCP"
) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "ns", "labels": {"kubernetes.io/service-name": "svc"}},
        "addressType": family,
        "endpoints": [{"addresses": [address], "nodeName": on, "conditions": {}} for address, on in addresses],
        "ports": [{"name": "http", "protocol": protocol, "port": port}],
    }


def gateway_node(name: str, cidr: str, ip: str, gateway: str = "") -> dict[str, Any]:
    made = node(name, cidr, ip=ip)
    if gateway:
        text = json.dumps({"ips": [f"{gateway}/24"], "nextHops": ["192.0.2.254"]})
        made["metadata"]["annotations"] = {GATEWAY: text}
    return made


@pytest.fixture
def northbound() -> Iterator[Northbound]:
    server = Northbound()
    yield server
    server.remove()


@pytest.fixture
async def stage(northbound: Northbound) -> AsyncIterator[Stage]:
    async with Stage(northbound.remote, ranges=["10.1.0.0/16"]) as stage:
        stage.put("node", gateway_node("n1", "10.1.1.0/24", "192.0.2.1", "192.0.2.101"))
        stage.put("node", gateway_node("n2", "10.1.2.0/24", "192.0.2.2", "192.0.2.102"))
        yield stage


def balancers(stage: Stage) -> dict[str, dict[str, str]]:
    return {row["name"].removeprefix("ns/svc "): row["vips"] for row in stage.rows("Load_Balancer")}


def holders(stage: Stage, part: str) -> set[str]:
    """Names of the switches, routers or groups that use a load balancer."""
    (row,) = (row for row in stage.rows("Load_Balancer") if row["name"] == f"ns/svc {part}")
    tables = ("Logical_Switch", "Logical_Router", "Load_Balancer_Group")
    return {each["name"] for table in tables for each in stage.rows(table) if row.uuid in each["load_balancer"]}


SWITCHES, GATEWAYS = "dpu-offload:cluster:default:switches", "dpu-offload:cluster:default:gateways"


async def test_cluster_ip(stage: Stage) -> None:
    stage.put("service", service())
    stage.put("endpointslice", endpoint_slice(("10.1.1.9", "n1"), ("10.1.2.9", "n2")))
    await stage.settle()
    assert balancers(stage) == {"TCP.all": {"10.96.0.10:80": "10.1.1.9:8080,10.1.2.9:8080"}}
    assert holders(stage, "TCP.all") == {SWITCHES, GATEWAYS}
    (row,) = stage.rows("Load_Balancer")
    assert row["protocol"] == "tcp"
    assert row["options"]["reject"] == "true"
    groups = {each["name"]: each.uuid for each in stage.rows("Load_Balancer_Group")}
    assert stage.named("Logical_Switch")["n1"]["load_balancer_group"] == {groups[SWITCHES]}
    assert stage.named("Logical_Router")["gateway_n1"]["load_balancer_group"] == {groups[GATEWAYS]}
    stage.remove("endpointslice", "ns/s")
    await stage.settle()
    assert balancers(stage) == {"TCP.all": {"10.96.0.10:80": ""}}
    stage.remove("service", "ns/svc")
    await stage.settle()
    assert balancers(stage) == {}


async def test_dual_stack_several_ports_and_protocols(stage: Stage) -> None:
    ports = [
        {"name": "http", "protocol": "TCP", "port": 80},
        {"name": "dns", "protocol": "UDP", "port": 53},
        {"name": "sig", "protocol": "SCTP", "port": 99},
    ]
    stage.put("service", service(ports=ports, clusterIPs=["10.96.0.10", "fd10::10"]))
    stage.put("endpointslice", endpoint_slice(("10.1.1.9", "n1")))
    stage.put("endpointslice", endpoint_slice(("fd00::9", "n1"), name="s6", family="IPv6"))
    await stage.settle()
    assert balancers(stage) == {
        "TCP.all": {"10.96.0.10:80": "10.1.1.9:8080", "[fd10::10]:80": "[fd00::9]:8080"},
        "UDP.all": {"10.96.0.10:53": "", "[fd10::10]:53": ""},
        "SCTP.all": {"10.96.0.10:99": "", "[fd10::10]:99": ""},
    }
    flushed = {row["protocol"]: row["options"].get("ct_flush") for row in stage.rows("Load_Balancer")}
    assert flushed == {"tcp": None, "udp": "true", "sctp": None}


async def test_outside_addresses_and_node_ports(stage: Stage) -> None:
    ports = [{"name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080}]
    stage.put(
        "service", service(type="LoadBalancer", ports=ports, externalIPs=["198.51.100.7"], ingress=["198.51.100.8"])
    )
    stage.put("endpointslice", endpoint_slice(("10.1.1.9", "n1")))
    await stage.settle()
    (vips,) = balancers(stage).values()
    addresses = ("192.0.2.1:30080", "192.0.2.101:30080", "192.0.2.2:30080", "192.0.2.102:30080")
    assert set(vips) == {"10.96.0.10:80", "198.51.100.7:80", "198.51.100.8:80", *addresses}
    assert set(vips.values()) == {"10.1.1.9:8080"}
    stage.remove("node", "n2")
    await stage.settle()
    (vips,) = balancers(stage).values()
    assert "192.0.2.2:30080" not in vips


async def test_external_policy_local(stage: Stage) -> None:
    ports = [{"name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080}]
    spec = {"type": "LoadBalancer", "ports": ports, "ingress": ["198.51.100.8"], "externalTrafficPolicy": "Local"}
    stage.put("service", service(**spec))
    stage.put("endpointslice", endpoint_slice(("10.1.1.9", "n1")))
    await stage.settle()
    found = balancers(stage)
    assert set(found) == {"TCP.all", "TCP.inside", "TCP.outside.n1", "TCP.outside-none"}
    assert found["TCP.outside.n1"]["198.51.100.8:80"] == "10.1.1.9:8080"
    assert set(found["TCP.outside-none"].values()) == {""}
    assert holders(stage, "TCP.outside.n1") == {"gateway_n1"}
    assert holders(stage, "TCP.outside-none") == {"gateway_n2"}
    assert holders(stage, "TCP.inside") == {SWITCHES}
    local = next(row for row in stage.rows("Load_Balancer") if row["name"].endswith("outside.n1"))
    assert local["options"]["skip_snat"] == "true"
    stage.remove("node", "n1")
    await stage.settle()
    assert "TCP.outside.n1" not in balancers(stage)


async def test_internal_policy_local(stage: Stage) -> None:
    stage.put("service", service(internalTrafficPolicy="Local"))
    stage.put("endpointslice", endpoint_slice(("10.1.1.9", "n1")))
    await stage.settle()
    assert balancers(stage) == {
        "TCP.inside.n1": {"10.96.0.10:80": "10.1.1.9:8080"},
        "TCP.inside-none": {"10.96.0.10:80": ""},
    }
    assert holders(stage, "TCP.inside.n1") == {"n1", "gateway_n1"}
    assert holders(stage, "TCP.inside-none") == {"n2", "gateway_n2"}


async def test_source_ranges_and_health_ports(stage: Stage) -> None:
    spec = {
        "type": "LoadBalancer",
        "ingress": ["198.51.100.8", "fd51::8"],
        "externalIPs": ["198.51.100.7"],
        "externalTrafficPolicy": "Local",
        "healthCheckNodePort": 30999,
        "loadBalancerSourceRanges": [" 203.0.113.7/24", "198.18.0.0/15"],
    }
    stage.put("service", service(**spec))
    ready, leaving = ("10.1.1.9", "n1"), ("10.1.2.9", "n2")
    slices = endpoint_slice(ready, leaving)
    slices["endpoints"][1]["conditions"] = {"ready": False, "serving": True, "terminating": True}
    stage.put("endpointslice", slices)
    await stage.settle()
    rules = {row["match"] for row in stage.rows("ACL")}
    begin = "inport == @dpu_offload_outside && "
    assert rules == {
        f"{begin}ip4.dst == 198.51.100.8 && tcp.dst == 80 && ip4.src != {{203.0.113.0/24, 198.18.0.0/15}}",
        f"{begin}ip6.dst == fd51::8 && tcp.dst == 80",  # no IPv6 client is in any range
    }
    (group,) = (row for row in stage.rows("Port_Group") if row["name"] == "dpu_offload_outside")
    names = {row.uuid: row["name"] for row in stage.rows("Logical_Switch_Port")}
    assert {names[each] for each in group["ports"]} == {"external__n1-localnet", "external__n2-localnet"}
    found = balancers(stage)
    assert found["TCP.health.n1"] == {"192.0.2.101:30999": "192.0.2.1:30999"}
    assert holders(stage, "TCP.health.n2") == {"gateway_n2"}

    def told(name: str) -> Any:
        return json.loads(stage.node_annotations[name][HEALTH_CHECKS])

    about = {"port": 30999, "service": {"namespace": "ns", "name": "svc"}}
    assert told("n1") == [{**about, "localEndpoints": 1}]
    assert told("n2") == [{**about, "localEndpoints": 0}], "a terminating endpoint is not ready"
    slices["endpoints"][1]["conditions"] = {}
    stage.put("endpointslice", slices)
    await stage.settle()
    assert told("n2") == [{**about, "localEndpoints": 1}]
    for index in (1, 2):  # as the API server would send the nodes back
        made = gateway_node(f"n{index}", f"10.1.{index}.0/24", f"192.0.2.{index}", f"192.0.2.10{index}")
        made["metadata"]["annotations"] |= stage.node_annotations[f"n{index}"]
        stage.put("node", made)
    stage.put("service", service(type="LoadBalancer", ingress=["198.51.100.8"]))
    await stage.settle()
    assert (told("n1"), told("n2")) == ([], [])
    assert not list(stage.rows("ACL"))
    assert not [name for name in balancers(stage) if "health" in name]


@pytest.mark.parametrize(
    ("spec", "seconds"),
    [
        ({}, None),
        ({"sessionAffinity": "ClientIP"}, "10800"),
        ({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}}, "60"),
        ({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86400}}}, "65535"),
    ],
)
async def test_session_affinity(stage: Stage, spec: dict[str, Any], seconds: str | None) -> None:
    stage.put("service", service(**spec))
    await stage.settle()
    (row,) = stage.rows("Load_Balancer")
    assert row["options"].get("affinity_timeout") == seconds


@pytest.mark.parametrize(
    "spec",
    [
        {"clusterIP": "None", "clusterIPs": ["None"]},
        {"type": "ExternalName", "clusterIP": "", "clusterIPs": [], "externalName": "x.example"},
        {"clusterIP": "", "clusterIPs": []},
        {"ports": []},
        {"labels": {"service.kubernetes.io/service-proxy-name": "mesh"}},
    ],
)
async def test_services_without_a_load_balancer(stage: Stage, spec: dict[str, Any]) -> None:
    stage.put("service", service(**spec))
    stage.put("endpointslice", endpoint_slice(("10.1.1.9", "n1")))
    await stage.settle()
    assert balancers(stage) == {}
    assert stage.problems == {}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"clusterIPs": ["nonsense"]}, "no IP address"),
        ({"ports": [{"name": "http", "protocol": "TCP", "port": 70000}]}, "impossible"),
        ({"ports": [{"name": "http", "protocol": "ICMP", "port": 7}]}, "none of TCP"),
        ({"externalIPs": ["300.1.1.1"]}, "no IP address"),
    ],
)
async def test_bad_services(stage: Stage, spec: dict[str, Any], message: str) -> None:
    stage.put("service", service(**spec))
    await stage.settle()
    assert message in str(stage.problems[Owner("service", "ns/svc")])
    assert balancers(stage) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not of the form"),
        ('{"ips": []}', "one address a family"),
        ('{"ips": ["192.0.2.5/24", "192.0.2.6/24"]}', "one address a family"),
        ('{"ips": ["192.0.2.5/24"], "nextHops": ["198.51.100.1"]}', "is in none of"),
        ('{"ips": ["192.0.2.5/24"], "vlan": 5000}', "VLAN"),
        ('{"ips": ["192.0.2.5/24"], "nexthop": "x"}', "is not of the form"),
    ],
)
async def test_a_bad_gateway_leaves_the_node_its_switch(stage: Stage, text: str, message: str) -> None:
    bad = node("n3", "10.1.3.0/24")
    bad["metadata"]["annotations"] = {GATEWAY: text}
    stage.put("node", bad)
    await stage.settle()
    assert message in str(stage.problems[Owner("node", "n3")])
    assert "n3" in stage.named("Logical_Switch")
    assert "gateway_n3" not in stage.named("Logical_Router")


async def test_packets_find_their_backends() -> None:
    """By real OVN: services of all kinds from inside, from outside, under local policies; replies without backends."""
    async with Tracer() as tracer, Stage(tracer.central.nb, ranges=["10.1.0.0/16"]) as stage:
        for index in (1, 2):
            name = f"n{index}"
            stage.put("node", gateway_node(name, f"10.1.{index}.0/24", f"192.0.2.{index}", f"192.0.2.10{index}"))
        stage.put("pod", pod("a", on="n1", uid="a"), pod("b", on="n2", uid="b"))
        await stage.settle()
        entry = {key: stage.annotations[f"ns/{key}"]["default"] for key in "ab"}
        address = {key: each["ips"][0].partition("/")[0] for key, each in entry.items()}
        inner = {f"n{i}": stage.named("Logical_Router_Port")[f"router-to-n{i}"]["mac"] for i in (1, 2)}
        sides = {
            key: Side(f"ns_{key}", on, entry[key]["mac"], address[key], inner[on])
            for key, on in (("a", "n1"), ("b", "n2"))
        }
        outer = {i: stage.named("Logical_Router_Port")[f"gateway_n{i}-to-external"]["mac"] for i in (1, 2)}
        stage.put("endpointslice", endpoint_slice((address["b"], "n2")))
        node_port = [{"name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080}]
        outside = {"type": "LoadBalancer", "ports": node_port, "ingress": ["198.51.100.8"]}

        async def inside(source: str, vip: str, port: int = 80) -> str:
            there = Side("", "elsewhere", "", vip, "")
            return await _one(tracer, sides[source], there, port)

        async def outsider(gateway: int, vip: str, port: int) -> str:
            wire = Side(f"external__n{gateway}-localnet", "wire", "02:00:00:00:00:99", "203.0.113.5", outer[gateway])
            return await _one(tracer, wire, Side("", "elsewhere", "", vip, ""), port)

        stage.put("service", service(**outside))
        await stage.settle()
        for row in stage.rows("Static_MAC_Binding"):
            await tracer.learn(row["logical_port"], row["ip"], row["mac"])
        for index in (1, 2):
            await tracer.learn(f"gateway_n{index}-to-external", "192.0.2.254", "02:00:00:00:00:fe")
            name = f"gateway_n{index}-to-join"
            ip = next(each for each in stage.named("Logical_Router_Port")[name]["networks"] if ":" not in each)
            mac = stage.named("Logical_Router_Port")[name]["mac"]
            await tracer.learn("router_to_join", ip.partition("/")[0], mac)
        await tracer.synchronise()
        to_b = 'output("ns_b")'
        assert to_b in await inside("a", "10.96.0.10")
        assert to_b in await inside("b", "10.96.0.10"), "a pod reaches itself through its service"
        assert to_b in await inside("a", "198.51.100.8")
        assert to_b in await inside("a", "192.0.2.101", 30080)
        assert to_b not in await inside("a", "10.96.0.10", 81)
        assert to_b in await outsider(1, "192.0.2.101", 30080)
        assert to_b in await outsider(1, "198.51.100.8", 80)

        stage.put("service", service(**outside, externalTrafficPolicy="Local"))
        await stage.settle()
        await tracer.synchronise()
        assert to_b in await inside("a", "198.51.100.8"), "inside the external policy does not bind"
        assert "tcp_reset" in await outsider(1, "198.51.100.8", 80), "no backend on that node"
        local = await outsider(2, "198.51.100.8", 80)
        assert to_b in local
        assert "ip4.src = 192" not in local.replace("ct_snat", "ip4.src = 192"), "the client's address is kept"

        stage.put("service", service(internalTrafficPolicy="Local"))
        await stage.settle()
        await tracer.synchronise()
        assert "tcp_reset" in await inside("a", "10.96.0.10")
        assert to_b in await inside("b", "10.96.0.10")

        stage.remove("endpointslice", "ns/s")
        stage.put("service", service())
        await stage.settle()
        await tracer.synchronise()
        assert "tcp_reset" in await inside("a", "10.96.0.10")

        egress = await inside("a", "203.0.113.5", 443)
        assert 'output("external__n1-localnet")' in egress, "a pod leaves by its own node's gateway"

        annotations = {"dpu-offload.io/egress-ips": '["192.0.2.200"]'}
        stage.put("namespace", {"metadata": {"name": "ns", "annotations": annotations}})
        await stage.settle()
        (nat,) = (row for row in stage.rows("NAT") if row["logical_ip"] == address["a"])
        routers = stage.named("Logical_Router")
        (way,) = (name for name, row in routers.items() if nat.uuid in row["nat"])
        await tracer.synchronise()
        egress = await inside("a", "203.0.113.5", 443)
        assert f'output("external__{way.removeprefix("gateway_")}-localnet")' in egress
        assert "192.0.2.200" in egress, "its source is the namespace's address"
        assert 'output("management__n2")' in await inside("a", "192.0.2.2", 10250), "a node is reached directly"
        assert to_b not in egress


async def _one(tracer: Tracer, source: Side, destination: Side, port: int) -> str:
    (trace,) = await tracer.traces([microflow(source, destination, "TCP", port)])
    return trace
