"""Objects that cannot be: each gets its Event, nothing else changes, no part of it is written.

Every case is put beside a working cluster, then mended, then removed again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cni.controller.addresses import plan
from cni.controller.config import ClusterConfig
from cni.controller.errors import InvalidPlan, Refused
from cni.controller.model import bandwidth, gateway, network
from cni.controller.model import namespace as namespaces
from cni.controller.model import pod as pods
from cni.controller.model.annotations import ACL_LOGGING, ADDRESSES, EGRESS_IPS, GATEWAY, ISOLATION, POD_NETWORKS
from cni.controller.model.policy import POLICY_FOR
from cni.controller.rows import Owner
from cni.selection import NETWORKS
from foundation.kube.client import KubeClient
from foundation.kube.models import cncf, core
from foundation.kube.models.meta import ObjectMeta
from foundation.kube.reflector import Change, Reflector
from foundation.kube.resources import EVENTS, NAMESPACES, NETWORK_ATTACHMENT_DEFINITIONS, NODES, PODS
from lab.apiserver.server import ApiServer
from tests.controller.stage import Northbound, Stage, contents, node, pod
from tests.controller.test_daemon import controller, node_object, pod_object

Json = dict[str, Any]


@pytest.fixture
def northbound() -> Iterator[Northbound]:
    server = Northbound()
    yield server
    server.remove()


@pytest.fixture
async def stage(northbound: Northbound) -> AsyncIterator[Stage]:
    """A cluster that works, with something of every kind in it."""
    cluster = {"ranges": ["10.1.0.0/16"], "service_ranges": ["10.96.0.0/16"]}
    async with Stage(northbound.remote, **cluster) as stage:
        made = node("n1", "10.1.1.0/24", ip="192.0.2.1")
        made["metadata"]["annotations"] = {GATEWAY: '{"ips": ["192.0.2.101/24"], "nextHops": ["192.0.2.254"]}'}
        stage.put("node", made)
        stage.put("namespace", {"metadata": {"name": "ns"}})
        stage.put("network", nad("good", subnets="172.16.0.0/24"))
        stage.put("pod", pod("good", uid="good", labels={"app": "a"}, annotations={NETWORKS: "good"}))
        stage.put("networkpolicy", policy(ingress=[{"ports": [{"port": 80}]}], name="good"))
        stage.put("service", service(name="good"))
        await stage.settle()
        assert stage.problems == {}
        yield stage


def nad(name: str, text: str | None = None, **config: Any) -> Json:
    config_text = json.dumps({"type": "dpu-offload", "topology": "layer2", **config}) if text is None else text
    return {"metadata": {"name": name, "namespace": "ns"}, "spec": {"config": config_text}}


def policy(name: str = "bad", annotations: Json | None = None, **spec: Any) -> Json:
    metadata = {"name": name, "namespace": "ns", "annotations": annotations or {}}
    return {"metadata": metadata, "spec": {"podSelector": {}, **spec}}


def service(name: str = "bad", **spec: Any) -> Json:
    ip = "10.96.0.10" if name == "good" else "10.96.0.11"
    ports = [{"name": "http", "protocol": "TCP", "port": 80}]
    body = {"clusterIP": ip, "clusterIPs": [ip], "ports": ports, **spec}
    return {"metadata": {"name": name, "namespace": "ns"}, "spec": body, "status": {}}


def admin(**spec: Any) -> Json:
    body = {"priority": 5, "subject": {"namespaces": {}}, **spec}
    return {"metadata": {"name": "bad"}, "spec": body}


def rule(action: str = "Deny", side: str = "from", peer: Json | None = None, **more: Any) -> Json:
    return {"action": action, side: [peer or {"namespaces": {}}], **more}


def asking(text: Any) -> Json:
    return {NETWORKS: text if isinstance(text, str) else json.dumps(text)}


NODE = node("bad", "10.1.7.0/24")
POD = pod("bad", uid="bad")


def with_annotations(made: Json, **annotations: str) -> Json:
    return {**made, "metadata": {**made["metadata"], "annotations": annotations}}


CASES: dict[str, tuple[str, Json, str, str]] = {
    "node: CIDR that is none": ("node", node("bad", "10.1.300.0/24"), "InvalidNodeSubnet", "is no CIDR"),
    "node: host bits": ("node", node("bad", "10.1.7.5/24"), "InvalidNodeSubnet", "is no CIDR"),
    "node: overlap": ("node", node("bad", "10.1.0.0/20"), "InvalidNodeSubnet", "overlaps with 10.1.1.0/24 of node n1"),
    "node: too small": ("node", node("bad", "10.1.7.0/31"), "InvalidNodeSubnet", "too small"),
    "network: not JSON": ("network", nad("bad", '{"type": "dpu-offload", '), "InvalidNetwork", "cannot be read"),
    "network: topology": ("network", nad("bad", topology="layer9"), "InvalidNetwork", "none of layer2"),
    "network: CIDR": ("network", nad("bad", subnets="10.300.0.0/16"), "InvalidNetwork", "is no CIDR"),
    "network: form": ("network", nad("bad", subnets="172.16.0.0/16/"), "InvalidNetwork", "is not of the form"),
    "network: parts": (
        "network",
        nad("bad", topology="layer3", subnets="172.16.0.0/24/16"),
        "InvalidNetwork",
        "cannot be split",
    ),
    "network: overlaps pods": ("network", nad("bad", subnets="10.1.128.0/17"), "InvalidNetwork", "overlaps with"),
    "network: overlaps services": ("network", nad("bad", subnets="10.0.0.0/8"), "InvalidNetwork", "overlaps with"),
    "network: VLAN": ("network", nad("bad", topology="localnet", vlanID=4095), "InvalidNetwork", "VLAN"),
    "network: wrong type": ("network", nad("bad", mtu="big"), "InvalidNetwork", "cannot be read"),
    "policy: port": ("networkpolicy", policy(ingress=[{"ports": [{"port": 70000}]}]), "InvalidNetworkPolicy", "70000"),
    "policy: range": (
        "networkpolicy",
        policy(ingress=[{"ports": [{"port": 90, "endPort": 80}]}]),
        "InvalidNetworkPolicy",
        "the smaller first",
    ),
    "policy: name with a range": (
        "networkpolicy",
        policy(ingress=[{"ports": [{"port": "http", "endPort": 80}]}]),
        "InvalidNetworkPolicy",
        "cannot go with port name",
    ),
    "policy: protocol": (
        "networkpolicy",
        policy(egress=[{"ports": [{"protocol": "ICMP"}]}]),
        "InvalidNetworkPolicy",
        "none of TCP",
    ),
    "policy: block": (
        "networkpolicy",
        policy(ingress=[{"from": [{"ipBlock": {"cidr": "10.0.0.0/33"}}]}]),
        "InvalidNetworkPolicy",
        "is no CIDR",
    ),
    "policy: exception": (
        "networkpolicy",
        policy(ingress=[{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/24"]}}]}]),
        "InvalidNetworkPolicy",
        "is not inside",
    ),
    "policy: peer of two kinds": (
        "networkpolicy",
        policy(ingress=[{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]}]),
        "InvalidNetworkPolicy",
        "both an ipBlock and a selector",
    ),
    "policy: selector": (
        "networkpolicy",
        policy(podSelector={"matchExpressions": [{"key": "a", "operator": "Near", "values": ["b"]}]}),
        "InvalidNetworkPolicy",
        "Near",
    ),
    "policy: good rules beside a bad one": (
        "networkpolicy",
        policy(ingress=[{"ports": [{"port": 80}]}, {"ports": [{"port": 0}]}]),
        "InvalidNetworkPolicy",
        "use 1 to 65535",
    ),
    "multi policy: for no network": ("multinetworkpolicy", policy(), "InvalidNetworkPolicy", "names no network"),
    "multi policy: port": (
        "multinetworkpolicy",
        policy(annotations={POLICY_FOR: "good"}, ingress=[{"ports": [{"port": -1}]}]),
        "InvalidNetworkPolicy",
        "use 1 to 65535",
    ),
    "admin policy: priority": ("adminnetworkpolicy", admin(priority=1001), "InvalidNetworkPolicy", "0 to 1000"),
    "admin policy: action": (
        "adminnetworkpolicy",
        admin(ingress=[rule("Log")]),
        "InvalidNetworkPolicy",
        "none of Allow",
    ),
    "admin policy: port": (
        "adminnetworkpolicy",
        admin(ingress=[rule(ports=[{"portRange": {"protocol": "TCP", "start": 9, "end": 8}}])]),
        "InvalidNetworkPolicy",
        "the smaller first",
    ),
    "baseline: pass": (
        "baselineadminnetworkpolicy",
        {"metadata": {"name": "bad"}, "spec": {"subject": {"namespaces": {}}, "ingress": [rule("Pass")]}},
        "InvalidNetworkPolicy",
        "none of Allow, Deny",
    ),
    "service: address": ("service", service(clusterIPs=["10.96.0.256"]), "InvalidService", "no IP address"),
    "service: outer address": ("service", service(externalIPs=["::g"]), "InvalidService", "no IP address"),
    "service: port": ("service", service(ports=[{"protocol": "TCP", "port": 0}]), "InvalidService", "impossible"),
    "service: protocol": ("service", service(ports=[{"protocol": "GRE", "port": 1}]), "InvalidService", "none of TCP"),
    "service: source range": (
        "service",
        service(type="LoadBalancer", loadBalancerSourceRanges=["10.0.0.0/40"]),
        "InvalidService",
        "is no CIDR",
    ),
    "pod: request": ("pod", with_annotations(POD, **{ADDRESSES: "{"}), "InvalidNetworkAnnotation", "not of the form"),
    "pod: address outside": (
        "pod",
        with_annotations(POD, **{ADDRESSES: '{"ips": ["10.9.9.9"]}'}),
        "InvalidAddressRequest",
        "outside of 10.1.1.0/24",
    ),
    "pod: MAC": ("pod", with_annotations(POD, **{ADDRESSES: '{"mac": "x"}'}), "InvalidAddressRequest", "no MAC"),
}

# What these say otherwise is good, and is served: the rows named here are all that comes.
PARTLY: dict[str, tuple[str, Json, str, str, set[str]]] = {
    "node: gateway": (
        "node",
        with_annotations(NODE, **{GATEWAY: '{"ips": ["192.0.2.9"]'}),
        "InvalidGateway",
        "not of the form",
        {"Logical_Switch", "Logical_Switch_Port", "Logical_Router_Port", "ACL"},
    ),
    "pod: selection": (
        "pod",
        with_annotations(POD, **asking("[{")),
        "InvalidNetworkAnnotation",
        "cannot be read",
        {"Logical_Switch_Port"},
    ),
    "pod: network that is not there": (
        "pod",
        with_annotations(POD, **asking("good,elsewhere")),
        "NetworkMissing",
        "ns/elsewhere",
        {"Logical_Switch_Port"},
    ),
    "pod: secondary address outside": (
        "pod",
        with_annotations(POD, **asking([{"name": "good", "ips": ["172.17.0.9"]}])),
        "InvalidAddressRequest",
        "outside of 172.16.0.0/24",
        {"Logical_Switch_Port"},
    ),
    "pod: secondary MAC": (
        "pod",
        with_annotations(POD, **asking([{"name": "good", "mac": "01:00:00:00:00:01"}])),
        "InvalidAddressRequest",
        "multicast",
        {"Logical_Switch_Port"},
    ),
    "pod: bandwidth": (
        "pod",
        with_annotations(POD, **{"kubernetes.io/egress-bandwidth": "-1M"}),
        "InvalidBandwidth",
        "no bandwidth",
        {"Logical_Switch_Port"},
    ),
    "admin policy: names of the DNS": (
        "adminnetworkpolicy",
        admin(
            egress=[
                rule("Allow", "to", {"domainNames": ["*.example.com"]}),
                rule("Deny", "to", {"networks": ["198.51.100.0/24"]}),
            ]
        ),
        "InvalidNetworkPolicy",
        "egress rule 0: domainNames are not supported",
        {"ACL", "Port_Group"},
    ),
    "namespace: logging": (
        "namespace",
        {"metadata": {"name": "bad", "annotations": {ACL_LOGGING: '{"deny": "loud"}'}}},
        "InvalidNamespaceAnnotation",
        "none of alert",
        set(),
    ),
    "namespace: isolation": (
        "namespace",
        {"metadata": {"name": "bad", "annotations": {ISOLATION: "yes"}}},
        "InvalidNamespaceAnnotation",
        'must be "true" or "false"',
        set(),
    ),
    "namespace: egress": (
        "namespace",
        {"metadata": {"name": "bad", "annotations": {EGRESS_IPS: '["192.0.2.300"]'}}},
        "InvalidNamespaceAnnotation",
        "not of the form",
        set(),
    ),
}


def key_of(made: Json) -> str:
    metadata = made["metadata"]
    return f"{metadata['namespace']}/{metadata['name']}" if "namespace" in metadata else str(metadata["name"])


async def told_and_undisturbed(
    stage: Stage, kind: str, bad: Json, *, reason: str, message: str, tables: set[str]
) -> None:
    before = contents(stage)
    stage.put(kind, bad)
    await stage.settle()
    assert set(stage.problems) == {Owner(kind, key_of(bad))}
    (problem,) = stage.problems.values()
    assert problem.reason == reason
    assert message in str(problem)
    after = contents(stage)
    assert {each.partition("table='")[2].partition("'")[0] for each in after.keys() - before.keys()} == tables
    # Others' rows are as they were, but for the sets that the good part joins.
    sets = ("ports", "acls", "addresses", "static_routes")
    assert {row: _without(columns, sets) for row, columns in after.items() if row in before} == {
        row: _without(columns, sets) for row, columns in before.items()
    }
    if not tables:
        assert after == before
    stage.remove(kind, key_of(bad))
    await stage.settle()
    assert stage.problems == {}
    assert contents(stage) == before
    assert stage.core.engine.failures == 0
    assert stage.refused == []


def _without(columns: Json, names: tuple[str, ...]) -> Json:
    return {name: value for name, value in columns.items() if name not in names}


async def test_nothing_of_what_cannot_be(stage: Stage) -> None:
    for name, (kind, bad, reason, message) in CASES.items():
        try:
            await told_and_undisturbed(stage, kind, bad, reason=reason, message=message, tables=set())
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


async def test_the_good_part_is_served(stage: Stage) -> None:
    for name, (kind, bad, reason, message, tables) in PARTLY.items():
        try:
            await told_and_undisturbed(stage, kind, bad, reason=reason, message=message, tables=tables)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


async def test_what_was_good_goes_when_its_object_turns_bad_and_comes_back(stage: Stage) -> None:
    before = contents(stage)
    for kind, bad, good in (
        ("networkpolicy", policy(name="good", ingress=[{"ports": [{"port": 0}]}]), None),
        ("service", service(name="good", externalIPs=["x"]), service(name="good")),
    ):
        stage.put(kind, bad)
        await stage.settle()
        gone = {each for each in before if "ns/good" in each and kind in each}
        assert gone
        assert not gone & set(contents(stage)), "half of an object is worse than none"
        stage.put(kind, good or policy(name="good", ingress=[{"ports": [{"port": 80}]}]))
        await stage.settle()
        assert contents(stage) == before


async def test_each_becomes_an_event_on_its_object(tmp_path: Path, northbound: Northbound) -> None:
    async with ApiServer() as server:
        server.kubeconfig(tmp_path / "kubeconfig")
        async with await KubeClient.connect(str(tmp_path / "kubeconfig")) as client:
            found: dict[tuple[str, str], str] = {}
            enough = asyncio.Event()

            def seen(change: Change[core.Event]) -> None:
                if change.new is not None:
                    found[change.new.involved_object.kind, change.new.involved_object.name] = change.new.reason
                if len(found) >= 4:
                    enough.set()

            reflector = Reflector(client, EVENTS)
            reflector.subscribe(seen)
            task = asyncio.create_task(reflector.run())
            async with controller(tmp_path / "kubeconfig", northbound):
                await client.create(NODES, node_object("n1", "10.1.0.0/24"))
                gateway_text = {"dpu-offload.io/gateway": "nonsense"}
                await client.create(
                    NODES, {**node_object("n2", "10.2.0.0/24"), "metadata": {"name": "n2", "annotations": gateway_text}}
                )
                await client.create(NAMESPACES, {"metadata": {"name": "loud", "annotations": {ACL_LOGGING: "["}}})
                bad = {**nad("bad", topology="ring"), "metadata": {"name": "bad", "namespace": "default"}}
                await client.create(NETWORK_ATTACHMENT_DEFINITIONS, bad)
                await client.create(PODS, pod_object("bad", **{NETWORKS: "bad"}))
                await asyncio.wait_for(enough.wait(), 40)
            task.cancel()
            await asyncio.wait({task})
    assert found == {
        ("Node", "n2"): "InvalidGateway",
        ("Namespace", "loud"): "InvalidNamespaceAnnotation",
        ("NetworkAttachmentDefinition", "bad"): "InvalidNetwork",
        ("Pod", "bad"): "NetworkMissing",
    }


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["10.0.0.0/8", "::1/64", "a/b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["ips", "mac", "name", "type"]), inner),
    max_leaves=6,
).map(json.dumps)


@given(st.text(max_size=20) | JSON_LIKE)
@example("[" * 100_000)
@example('{"x":' * 40_000)
def test_any_text_in_any_annotation_is_read_or_refused(text: str) -> None:
    keys = (ADDRESSES, POD_NETWORKS, NETWORKS, ACL_LOGGING, EGRESS_IPS, ISOLATION, *bandwidth.ANNOTATIONS.values())
    metadata = ObjectMeta(name="x", namespace="ns", uid="u", annotations=dict.fromkeys(keys, text))
    pod_ = pods.parse(core.Pod(metadata=metadata))
    namespaces.parse(core.Namespace(metadata=metadata))
    config = cncf.NetworkAttachmentDefinitionSpec(config=text)
    with_text = cncf.NetworkAttachmentDefinition(metadata=metadata, spec=config)
    for read in (
        pod_.request,
        pod_.bandwidth,
        pod_.written,
        lambda: network.wishes(text, "ns"),
        lambda: network.parse(with_text),
        lambda: gateway.parse(text),
    ):
        with contextlib.suppress(Refused):
            read()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ranges": ["10.0.0.0/33"]}, "cluster.ranges"),
        ({"ranges": ["10.0.0.0/8", "172.16.0.0/16"]}, "two ranges of one family"),
        ({"ranges": ["10.0.0.0/8"], "service_ranges": ["10.96.0.0/12"]}, "overlap"),
        ({"ranges": ["100.64.0.0/12"]}, "overlap"),
        ({"join_ranges": ()}, "join_ranges is empty"),
        ({"ranges": ["10.0.0.0/16"], "host_prefixes": (12, 64)}, "do not fit"),
        ({"ranges": ["10.0.0.0/16"], "host_prefixes": (31, 64)}, "do not fit"),
    ],
)
def test_bad_settings(settings: Json, message: str) -> None:
    with pytest.raises(InvalidPlan, match=message):
        plan.make(ClusterConfig(**settings))
