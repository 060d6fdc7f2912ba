"""Objects that change at random: what the database holds in the end depends on them, not on how they came about.

Subjects: services and their slices, policies of all kinds, namespaces, networks, nodes, pods in variants that follow
one another in any order; the same after a restart, with the objects listed in another order.
"""

from __future__ import annotations

import json
import os
import random
from typing import Any

import pytest

from cni.controller.model.annotations import ACL_LOGGING, ADDRESSES, GATEWAY, ISOLATION, POD_NETWORKS
from cni.controller.model.policy import POLICY_FOR
from cni.selection import NETWORKS
from tests.controller.stage import Northbound, Stage, contents, node, pod

Json = dict[str, Any]
Variants = list[tuple[str, str, list[Json | None]]]

WALKS = int(os.environ.get("DPU_OFFLOAD_WALKS", "8"))
"""Random walks of each kind: more of them on request."""


def named(name: str, spec: Json, *, labels: Json | None = None, annotations: Json | None = None, **more: Any) -> Json:
    metadata = {"name": name, "namespace": "ns", "labels": labels or {}, "annotations": annotations or {}}
    return {"metadata": metadata, "spec": spec, **more}


def gateway(name: str, cidr: str, index: int) -> Json:
    made = node(name, cidr, ip=f"192.0.2.{index}")
    made["metadata"]["annotations"] = {GATEWAY: f'{{"ips": ["192.0.2.10{index}/24"]}}'}
    return made


def service(kind: str, *ports: tuple[str, str, int], ips: tuple[str, ...] = ("10.96.0.10",), **spec: Any) -> Json:
    entries = [
        {"name": name, "protocol": protocol, "port": 80, "nodePort": number if kind != "ClusterIP" else 0}
        for name, protocol, number in ports
    ]
    status = {"loadBalancer": {"ingress": [{"ip": "192.0.2.150"}]}} if kind == "LoadBalancer" else {}
    return named("s", {"type": kind, "clusterIP": ips[0], "clusterIPs": ips, "ports": entries, **spec}, status=status)


def piece(name: str, of: str, port: int, *endpoints: tuple[str, Json]) -> Json:
    found = [{"addresses": [ip], "nodeName": f"n{ip.split('.')[2]}", "conditions": is_} for ip, is_ in endpoints]
    ports = [{"name": "a", "protocol": "TCP", "port": port}, {"name": "b", "protocol": "UDP", "port": port}]
    made = named(name, {}, labels={"kubernetes.io/service-name": of})
    return {**made, "addressType": "IPv4", "ports": ports, "endpoints": found}


def admin(name: str, priority: int, *rules: Json) -> Json:
    return {"metadata": {"name": name}, "spec": {"priority": priority, "subject": {"namespaces": {}}, "ingress": rules}}


def network(**config: Any) -> Json:
    return named("x", {"config": json.dumps({"type": "dpu-offload", **config})})


def asks(last: int, **more: str) -> Json:
    return {ADDRESSES: f'{{"ips": ["10.1.1.{last}"]}}', **more}


APP = {"podSelector": {"matchLabels": {"app": "a"}}}
WEB = [{"port": "web"}]
READY, LEAVING = {"ready": True}, {"ready": False, "serving": True, "terminating": True}
OBJECTS: Variants = [
    ("node", "n1", [node("n1", "10.1.1.0/24", ip="192.0.2.1"), gateway("n1", "10.1.1.0/24", 1)]),
    ("node", "n2", [None, gateway("n2", "10.1.2.0/24", 2), node("n2", "10.1.2.0/24", labels={"zone": "a"})]),
    (
        "namespace",
        "ns",
        [
            None,
            {"metadata": {"name": "ns", "labels": {"team": "t"}}},
            {"metadata": {"name": "ns", "annotations": {ISOLATION: "true", ACL_LOGGING: '{"deny": "alert"}'}}},
        ],
    ),
    (
        "network",
        "ns/x",
        [
            None,
            network(topology="layer2", subnets="172.16.0.0/24"),
            network(topology="localnet", vlanID=5, subnets="172.16.0.0/24"),
            network(topology="layer9"),
        ],
    ),
    (
        "networkpolicy",
        "ns/p",
        [
            None,
            named("p", {"podSelector": {}, "policyTypes": ["Ingress"]}),
            named("p", {"podSelector": {}, "ingress": [{"from": [APP], "ports": WEB}]}),
            named("p", {**APP, "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": WEB}]}),
            named("p", {"podSelector": {}, "ingress": [{"ports": [{"port": 99999}]}]}),
        ],
    ),
    (
        "multinetworkpolicy",
        "ns/m",
        [None, named("m", {**APP, "ingress": [{"from": [APP]}]}, annotations={POLICY_FOR: "x"})],
    ),
    (
        "adminnetworkpolicy",
        "first",
        [
            None,
            admin("first", 5, {"action": "Pass", "from": [{"namespaces": {}}], "ports": [{"namedPort": "web"}]}),
            admin("first", 7, {"action": "Allow", "from": [{"namespaces": {"matchLabels": {"team": "t"}}}]}),
        ],
    ),
    ("adminnetworkpolicy", "second", [None, admin("second", 6, {"action": "Deny", "from": [{"namespaces": {}}]})]),
    (
        "pod",
        "ns/a",
        [
            None,
            pod("a", uid="1", labels={"app": "a"}, annotations=asks(10), ports={"web": ("TCP", 80)}),
            pod("a", uid="1", labels={"app": "b"}, annotations=asks(10), ports={"web": ("TCP", 80)}),
            pod("a", uid="1", labels={"app": "a"}, annotations=asks(10), phase="Succeeded"),
            pod("a", uid="2", labels={"app": "a"}, annotations=asks(11), ports={"web": ("UDP", 81)}),
            pod("a", uid="3", labels={"app": "a"}, host_network=True),
            pod("a", uid="1", annotations=asks(10, **{NETWORKS: '[{"name": "x", "ips": ["172.16.0.5"]}]'})),
        ],
    ),
    (
        "pod",
        "ns/b",
        [
            None,
            pod("b", uid="4", labels={"app": "a"}, annotations=asks(12), ports={"web": ("TCP", 8080)}),
            pod("b", uid="4", labels={"app": "a"}, annotations=asks(12), ports={"web": ("TCP", 80)}),
        ],
    ),
    (
        "service",
        "ns/s",
        [
            None,
            named("s", {"type": "ExternalName", "externalName": "x.example"}, status={}),
            service("ClusterIP", ("a", "TCP", 0), ("b", "UDP", 0)),
            service("ClusterIP", ("a", "TCP", 0), ips=("None",)),
            service("ClusterIP", ("a", "TCP", 0), ips=("10.96.0.10", "fd00:96::10"), sessionAffinity="ClientIP"),
            service("NodePort", ("a", "TCP", 30080), externalTrafficPolicy="Local", internalTrafficPolicy="Local"),
            service("LoadBalancer", ("b", "UDP", 30081), externalTrafficPolicy="Local", healthCheckNodePort=32000),
        ],
    ),
    (
        "endpointslice",
        "ns/s1",
        [
            None,
            piece("s1", "s", 8080, ("10.1.1.10", READY), ("10.1.2.10", LEAVING)),
            piece("s1", "s", 8080, ("10.1.1.10", LEAVING)),
            piece("s1", "other", 8080, ("10.1.1.10", READY)),
        ],
    ),
    ("endpointslice", "ns/s2", [None, piece("s2", "s", 9090, ("10.1.1.10", READY), ("10.1.1.12", READY))]),
]
CROWD: Variants = [
    ("node", "n1", [None, node("n1", "10.1.1.0/29"), node("n1", "10.1.1.0/28", "fd01:1::/64")]),
    ("node", "n2", [node("n2", "10.1.2.0/29"), node("n2", "10.1.1.0/28")]),
    (
        "network",
        "ns/x",
        [
            network(topology="layer2", subnets="172.16.0.0/28"),
            network(topology="layer2", subnets="172.16.0.0/28", mtu=1300),
            network(topology="layer3", subnets="172.16.0.0/26/28"),
        ],
    ),
    *(
        (
            "pod",
            f"ns/{name}",
            [
                None,
                *(
                    pod(name, on=f"n{1 + index % 2}", uid=f"{name}{index}", annotations={NETWORKS: text})
                    for index in range(4)
                    for text in ("x", "x, x")
                ),
            ],
        )
        for name in "pqrst"
    ),
]


def put(stage: Stage, kind: str, key: str, obj: Json | None) -> None:
    if obj is None:
        stage.remove(kind, key)
    else:
        stage.put(kind, obj)


async def walk(stage: Stage, objects: Variants, draw: random.Random, *, echo: bool) -> dict[tuple[str, str], Json]:
    """`echo`: pods are seen with their annotations afterwards, sooner or later."""
    there: dict[tuple[str, str], Json] = {}
    for _ in range(40):
        kind, key, variants = draw.choice(objects)
        new, old = draw.choice(variants), there.pop((kind, key), None)
        if old is not None and (new is None or new["metadata"].get("uid") != old["metadata"].get("uid")):
            put(stage, kind, key, None)
            stage.annotations.pop(key, None)
        if new is not None:
            put(stage, kind, key, new)
            there[kind, key] = new
        if draw.random() < 0.6:
            await stage.settle()
            for (of, name), each in list(there.items()):
                if echo and of == "pod" and draw.random() < 0.5:
                    stage.put("pod", written(stage, name, each))
    await stage.settle()
    for (of, name), each in there.items():
        if echo and of == "pod":
            stage.put("pod", written(stage, name, each))
    await stage.settle()
    return there


def written(stage: Stage, key: str, obj: Json) -> Json:
    """A pod with the annotation that was made for it."""
    found = stage.annotations.get(key)
    if found is None:
        return obj
    annotations = {**obj["metadata"]["annotations"], POD_NETWORKS: json.dumps(found)}
    return {**obj, "metadata": {**obj["metadata"], "annotations": annotations}}


def outcome(stage: Stage) -> tuple[Json, dict[str, str]]:
    assert stage.core.engine.failures == 0
    assert stage.refused == []
    return contents(stage), {str(owner): str(each) for owner, each in stage.problems.items()}


@pytest.mark.parametrize("seed", range(WALKS))
async def test_the_way_does_not_matter(seed: int) -> None:
    northbound, other = Northbound(), Northbound()
    try:
        async with Stage(northbound.remote, ranges=["10.1.0.0/16"]) as stage:
            there = await walk(stage, OBJECTS, random.Random(seed), echo=False)
            found = outcome(stage)
        async with Stage(other.remote, ranges=["10.1.0.0/16"]) as stage:
            for kind, key, _ in OBJECTS:
                put(stage, kind, key, there.get((kind, key)))
            await stage.settle()
            assert outcome(stage) == found
    finally:
        northbound.remove()
        other.remove()


@pytest.mark.parametrize("seed", range(WALKS))
async def test_a_restart_changes_nothing(seed: int) -> None:
    """Some annotations are lost meanwhile, and everything is listed in another order."""
    draw = random.Random(seed)
    northbound = Northbound()
    try:
        async with Stage(northbound.remote) as stage:
            there = await walk(stage, CROWD, draw, echo=True)
            found = outcome(stage)
            addresses = [
                ip for row in stage.rows("Logical_Switch_Port") for ip in " ".join(row["addresses"]).split()[1:]
            ]
            assert len(set(addresses)) == len(addresses), "nobody has another one's address"
        async with Stage(northbound.remote) as again:
            for kind in ("node", "network", "pod"):
                for (of, key), each in sorted(there.items(), reverse=True):
                    if of == kind:
                        again.put(kind, written(stage, key, each) if kind == "pod" and draw.random() < 0.8 else each)
            await again.settle()
            assert outcome(again) == found
            assert again.core.committer.statistics.transactions == 0
    finally:
        northbound.remove()
