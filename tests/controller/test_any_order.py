"""The same objects in any order, with faults between any two commits, end in the same northbound database."""

from __future__ import annotations

import asyncio
import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cni.controller.model.annotations import EGRESS_IPS, GATEWAY, ISOLATION, POD_NETWORKS
from cni.controller.model.policy import POLICY_FOR
from cni.selection import NETWORKS
from tests.controller.stage import Northbound, Stage, contents, node, pod

Json = dict[str, Any]
Step = tuple[str, str, Json | None]
"""(kind, key, the object, or None for its end)."""


def _service(name: str, ip: str, **spec: Any) -> Json:
    ports = [{"name": "http", "protocol": "TCP", "port": 80, "nodePort": spec.pop("node_port", 0)}]
    return {
        "metadata": {"name": name, "namespace": "x"},
        "spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": ports, **spec},
    }


def _balanced(policy: str) -> Json:
    more = {
        "externalTrafficPolicy": policy,
        "healthCheckNodePort": 30999,
        "loadBalancerSourceRanges": ["203.0.113.0/24"],
    }
    made = _service("u", "10.96.0.3", type="LoadBalancer", node_port=30081, **more)
    return {**made, "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.8"}]}}}


def _slice(name: str, service: str, *addresses: str) -> Json:
    return {
        "metadata": {"name": name, "namespace": "x", "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [each], "nodeName": "n1"} for each in addresses],
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
    }


def _policy(name: str, **spec: Any) -> Json:
    return {"metadata": {"name": name, "namespace": "x"}, "spec": {"podSelector": {}, **spec}}


def _network(subnets: str) -> Json:
    config = json.dumps({"type": "dpu-offload", "topology": "layer2", "subnets": subnets})
    return {"metadata": {"name": "blue", "namespace": "x"}, "spec": {"config": config}}


def _claim() -> Json:
    return {"metadata": {"name": "keep", "namespace": "x"}, "spec": {"network": "blue", "interface": "net1"}}


def _claiming(uid: str, on: str) -> Json:
    text = json.dumps([{"name": "blue", "ipam-claim-reference": "keep"}])
    return pod("vm", namespace="x", on=on, uid=uid, labels={"role": "db"}, annotations={NETWORKS: text})


def _multi(*ports: int) -> Json:
    made = _policy("multi", ingress=[{"from": [{"podSelector": {}}], "ports": [{"port": each} for each in ports]}])
    made["metadata"]["annotations"] = {POLICY_FOR: "blue"}
    return made


def _admin(action: str) -> Json:
    every = {"namespaces": {"matchLabels": {"team": "a"}}}
    rules = [{"action": "Pass", "from": [every]}, {"action": action, "from": [{"namespaces": {}}]}]
    return {"metadata": {"name": "admin"}, "spec": {"priority": 5, "subject": {"namespaces": {}}, "ingress": rules}}


def _namespace(name: str, annotations: Json | None = None, **labels: str) -> Json:
    return {"metadata": {"name": name, "labels": labels, "annotations": annotations or {}}}


def _with_gateway(made: Json, ip: str) -> Json:
    made["metadata"]["annotations"] = {GATEWAY: json.dumps({"ips": [f"{ip}/24"], "nextHops": ["192.0.2.254"]})}
    return made


def life(kind: str, key: str, *objects: Json | None) -> list[Step]:
    return [(kind, key, each) for each in objects]


def lives() -> list[list[Step]]:
    """Each object's life; the lives may be interleaved in any way."""
    serve = {"web": ("TCP", 8080)}
    peers = {"from": [{"namespaceSelector": {"matchLabels": {"team": "a"}}}], "ports": [{"port": "web"}]}
    by_role = {"to": [{"podSelector": {"matchLabels": {"role": "db"}}}]}
    pods = {
        "a": [pod("a", namespace="x", on="n1", uid="a1", labels={"role": "web"}, ports=serve)],
        "b": [
            pod("b", namespace="x", on="n2", uid="b1", labels={"role": "web"}),
            pod("b", namespace="x", on="n2", uid="b1", labels={"role": "db"}, ports=serve),
        ],
        # deleted and made anew, elsewhere
        "c": [pod("c", namespace="x", on="n1", uid="c1"), None, pod("c", namespace="x", on="n2", uid="c2")],
        "d": [
            pod("d", namespace="x", on="n1", uid="d1"),
            pod("d", namespace="x", on="n1", uid="d1", phase="Succeeded"),
        ],
        "e": [pod("e", namespace="x", on="n2", uid="e1"), None],
    }
    found: list[list[Step]] = [life("pod", f"x/{name}", *each) for name, each in pods.items()]
    found.append([("pod", "y/f", pod("f", namespace="y", on="n2", uid="f1", labels={"role": "db"}, ports=serve))])
    found += [
        [
            ("node", "n1", node("n1", "10.1.0.0/16")),
            ("node", "n1", _with_gateway(node("n1", "10.1.0.0/16"), "192.0.2.9")),
        ],
        [("node", "n2", node("n2", "10.2.0.0/16", ip="192.0.2.2"))],
        [("node", "n3", node("n3", "10.3.0.0/16")), ("node", "n3", None)],
        [("namespace", "x", _namespace("x")), ("namespace", "x", _namespace("x", {ISOLATION: "true"}))],
        [("namespace", "y", _namespace("y", team="b")), ("namespace", "y", _namespace("y", team="a"))],
        [
            ("networkpolicy", "x/in", _policy("in", ingress=[peers])),
            ("networkpolicy", "x/in", _policy("in", ingress=[peers, {}])),
        ],
        life("network", "x/blue", _network("172.16.0.0/16"), _network("172.17.0.0/16")),
        life("pod", "x/g", pod("g", namespace="x", uid="g1", annotations={NETWORKS: "blue"})),
        life("ipamclaim", "x/keep", _claim()),
        life("pod", "x/vm", _claiming("v1", "n1"), None, _claiming("v2", "n2")),
        life("multinetworkpolicy", "x/multi", _multi(80), _multi(80, 81)),
        life("namespace", "z", _namespace("z"), _namespace("z", {EGRESS_IPS: '["192.0.2.200"]'})),
        life("pod", "z/h", pod("h", namespace="z", on="n2", uid="h1")),
        life("adminnetworkpolicy", "admin", _admin("Allow"), _admin("Deny")),
        [("networkpolicy", "x/out", _policy("out", policyTypes=["Egress"], egress=[by_role]))],
        [("networkpolicy", "x/gone", _policy("gone")), ("networkpolicy", "x/gone", None)],
        [
            ("service", "x/s", _service("s", "10.96.0.1")),
            ("service", "x/s", _service("s", "10.96.0.1", type="NodePort", node_port=30080)),
        ],
        [("service", "x/t", _service("t", "10.96.0.2", internalTrafficPolicy="Local"))],
        life("service", "x/u", _balanced("Cluster"), _balanced("Local")),
        [("endpointslice", "x/u1", _slice("u1", "u", "10.1.0.8", "10.1.0.9"))],
        [
            ("endpointslice", "x/s1", _slice("s1", "s", "10.1.0.5")),
            ("endpointslice", "x/s1", _slice("s1", "s", "10.1.0.6")),
        ],
        [("endpointslice", "x/t1", _slice("t1", "t", "10.1.0.7"))],
    ]
    return found


def shuffled(source: random.Random) -> Iterator[Step]:
    remaining = lives()
    while remaining:
        chosen = source.choice(remaining)
        yield chosen.pop(0)
        if not chosen:
            remaining.remove(chosen)


class Play:
    """An API server's memory before a controller that may be killed."""

    def __init__(self, northbound: Northbound, source: random.Random) -> None:
        self.northbound, self.source = northbound, source
        self.objects: dict[tuple[str, str], Json] = {}

    def _keep_claims(self, stage: Stage) -> list[str]:
        """What the controller has patched onto claims."""
        kept = []
        for key, ips in stage.claims.items():
            obj = self.objects.get(("ipamclaim", key))
            if obj is not None and obj.get("status") != {"ips": list(ips)}:
                obj["status"] = {"ips": list(ips)}
                kept.append(key)
        return kept

    def _keep_annotations(self, stage: Stage) -> None:
        """What the controller has patched; some patches get lost when it is killed."""
        if self.source.random() < 0.5:
            self._keep_claims(stage)
        for key, networks in stage.annotations.items():
            obj = self.objects.get(("pod", key))
            if obj is not None and self.source.random() < 0.5:
                obj["metadata"]["annotations"] |= {POD_NETWORKS: json.dumps(networks)}

    async def run(self) -> dict[str, Any]:
        steps = list(shuffled(self.source))
        end: dict[str, Any] = {}
        while True:
            async with Stage(self.northbound.remote, ranges=["10.0.0.0/8"]) as stage:
                for (kind, _), obj in sorted(self.objects.items(), key=lambda item: item[0][0]):
                    stage.put(kind, obj)
                killed = await self._live(stage, steps)
                if not killed:
                    await stage.settle()
                    assert not stage.problems, stage.problems
                    assert not stage.refused, stage.refused
                    end = contents(stage)
                    break
                self._keep_annotations(stage)
        return end

    async def _live(self, stage: Stage, steps: list[Step]) -> bool:
        """Feeds steps until there are none, or until it is killed (True)."""
        while steps:
            kind, key, obj = steps.pop(0)
            obj = copy.deepcopy(obj)
            if obj is None:
                self.objects.pop((kind, key), None)
                stage.remove(kind, key)
            else:
                self.objects[kind, key] = obj
                stage.put(kind, obj)
            fault = self.source.random()
            if fault < 0.06:
                return True
            if fault < 0.12 and stage.session.connected.is_set():
                self.northbound.kill()
                self.northbound.start()
            elif fault < 0.3:
                await stage.settle()
                for each in self._keep_claims(stage):
                    stage.put("ipamclaim", self.objects["ipamclaim", each])
            elif fault < 0.5:
                await asyncio.sleep(0)
        return False


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    """The database after the lives in their written order, without faults."""

    async def play() -> dict[str, Any]:
        northbound = Northbound()
        try:
            async with Stage(northbound.remote, ranges=["10.0.0.0/8"]) as stage:
                for each in lives():
                    for kind, key, obj in each:
                        if obj is None:
                            stage.remove(kind, key)
                        else:
                            stage.put(kind, obj)
                await stage.settle()
                return contents(stage)
        finally:
            northbound.remove()

    return asyncio.run(play())


AT_ONCE = 5
"""Orders played side by side: each waits for its killed servers most of the time."""


@given(seed=st.integers(0, 1 << 30))
@pytest.mark.timeout(300)
@settings(max_examples=50 // AT_ONCE, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_any_order_and_any_fault_end_alike(reference: dict[str, Any], seed: int) -> None:
    async def play(seed: int) -> dict[str, Any]:
        northbound = Northbound()
        try:
            return await Play(northbound, random.Random(seed)).run()
        finally:
            northbound.remove()

    async def plays() -> list[dict[str, Any]]:
        return await asyncio.gather(*(play(seed + index) for index in range(AT_ONCE)))

    for end in asyncio.run(plays()):
        assert end == reference
