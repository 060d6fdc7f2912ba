"""NetworkPolicies' verdicts by the real OVN against the reference: every pair of pods and port in every situation."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable
from typing import Any

import pytest

from tests.controller import scenarios
from tests.controller.admin_reference import AdminCluster
from tests.controller.scenarios import NAMESPACES, PODS, PORTS, PROTOCOLS, Moment
from tests.controller.stage import Stage, node, pod
from tests.controller.tracer import Endpoint, Tracer
from tests.controller.verdicts import record

NODES = {"n1": ("10.1.0.0/24", "fd00:1::/64"), "n2": ("10.2.0.0/24", "fd00:2::/64")}
FAMILIES = (4, 6)
DRAWN = 10


class Theatre:
    """Nine pods on two nodes, whose policies and labels are changed from moment to moment."""

    def __init__(self, stage: Stage, tracer: Tracer) -> None:
        self.stage, self.tracer = stage, tracer
        self.pairs = dict.fromkeys(FAMILIES, 0)
        self.wrong, self.refused = dict(self.pairs), dict(self.pairs)
        self.mistakes: list[str] = []
        self.policies: dict[str, Any] = {}
        self.admin: dict[str, Any] = {}
        stage.put("node", *(node(name, *cidrs) for name, cidrs in NODES.items()))
        self.keys = [f"{n}/{p}" for n in NAMESPACES for p in PODS]
        self._namespaces(Moment())
        self._pods(Moment())

    def _namespaces(self, moment: Moment) -> None:
        self.namespaces = {n: {"ns": n, **moment.namespace_labels.get(n, {})} for n in NAMESPACES}
        for name, labels in self.namespaces.items():
            self.stage.put("namespace", {"metadata": {"name": name, "labels": labels}})

    def _pods(self, moment: Moment) -> None:
        self.pods = []
        for index, key in enumerate(self.keys):
            namespace, name = key.split("/")
            ports = {f"serve-{number}-{each.lower()}": (each, number) for number in PORTS for each in PROTOCOLS}
            ports["mixed"] = ("TCP", PORTS[index % 2])
            labels = {"pod": name, **moment.pod_labels.get(key, {})}
            on = "n1" if index % 2 else "n2"
            self.pods.append(pod(name, namespace=namespace, on=on, uid=key, labels=labels, ports=ports))
        self.stage.put("pod", *self.pods)

    async def ready(self) -> None:
        await self.stage.settle()
        routers = self.stage.named("Logical_Router_Port")
        self.endpoints: dict[int, dict[str, Endpoint]] = {family: {} for family in FAMILIES}
        for each in self.pods:
            key = f"{each['metadata']['namespace']}/{each['metadata']['name']}"
            entry = self.stage.annotations[key]["default"]
            switch = each["spec"]["nodeName"]
            for family, text in zip(FAMILIES, entry["ips"], strict=True):
                ip, router = text.partition("/")[0], routers[f"router-to-{switch}"]["mac"]
                self.endpoints[family][key] = Endpoint(key.replace("/", "_"), switch, entry["mac"], ip, router)
        self.addresses = {
            family: {key: endpoint.ip for key, endpoint in each.items()} for family, each in self.endpoints.items()
        }

    async def play(self, name: str, moments: Iterable[Moment]) -> None:
        for number, moment in enumerate((*moments, None)):
            wanted = (
                {f"{p['metadata']['namespace']}/{p['metadata']['name']}": p for p in moment.policies} if moment else {}
            )
            self.stage.remove("networkpolicy", *(key for key in self.policies if key not in wanted))
            self.stage.put("networkpolicy", *wanted.values())
            self.policies = wanted
            self._admin(moment)
            self._namespaces(moment or Moment())
            self._pods(moment or Moment())
            await self.stage.settle()
            assert not self.stage.problems, self.stage.problems
            if moment is not None:
                await self._judge(f"{name} [{number}]", moment)

    def _admin(self, moment: Moment | None) -> None:
        wanted = {each["metadata"]["name"]: each for each in (moment.admin if moment is not None else [])}
        self.stage.remove("adminnetworkpolicy", *(name for name in self.admin if name not in wanted))
        self.stage.put("adminnetworkpolicy", *wanted.values())
        self.admin = wanted
        if moment is not None and moment.baseline is not None:
            self.stage.put("baselineadminnetworkpolicy", moment.baseline)
        else:
            self.stage.remove("baselineadminnetworkpolicy", "default")

    async def _judge(self, name: str, moment: Moment) -> None:
        await self.tracer.synchronise()
        services = [(protocol, port) for protocol in PROTOCOLS for port in PORTS]
        if '"port' not in json.dumps([moment.policies, moment.admin, moment.baseline]):
            services = [("TCP", 80), ("UDP", 81)]  # nothing in the policies tells services apart
        questions = [
            (source, destination, protocol, port)
            for source, destination in itertools.permutations(self.keys, 2)
            for protocol, port in services
        ]
        for family in FAMILIES:
            ends = self.endpoints[family]
            verdicts = await self.tracer.reaches([(ends[s], ends[d], *service) for s, d, *service in questions])
            self.pairs[family] += len(questions)
            self.refused[family] += verdicts.count(False)
            cluster = AdminCluster(
                self.namespaces,
                self.pods,
                self.addresses[family],
                moment.policies,
                admin=moment.admin,
                baseline=moment.baseline,
            )
            for question, verdict in zip(questions, verdicts, strict=True):
                if verdict != cluster.allowed(*question):
                    self.wrong[family] += 1
                    word = "allowed" if verdict else "refused"
                    self.mistakes.append(f"{name} IPv{family}: {question} is {word}")


SITUATIONS = {
    "simple": lambda addresses: scenarios.simple(),
    "peers": lambda addresses: scenarios.peers(),
    "blocks": lambda addresses: itertools.chain(*(scenarios.blocks(addresses[each]) for each in FAMILIES)),
    "ports": lambda addresses: scenarios.numbers(),
    "changes": lambda addresses: scenarios.changes(),
    "drawn": lambda addresses: scenarios.drawn(random.Random(11), addresses.values(), DRAWN),
    "administration": lambda addresses: scenarios.administration(),
}


# ovn-trace works for minutes on a machine that is busy with other things.
@pytest.mark.timeout(240)
@pytest.mark.parametrize("part", SITUATIONS)
async def test_every_pair_of_every_situation(part: str) -> None:
    async with Tracer() as tracer, Stage(tracer.central.nb) as stage:
        theatre = Theatre(stage, tracer)
        await theatre.ready()
        for name, moments in SITUATIONS[part](theatre.addresses):
            await theatre.play(name, moments)
        assert not list(stage.rows("ACL")), "rules are left after the last policy has gone"
        for table in ("Port_Group", "Address_Set"):
            assert not [row for row in stage.rows(table) if row["external_ids"]["dpu-offload.io/owner"] == "selector"]
    for family in FAMILIES:
        record(f"{part} ipv{family}", pairs=theatre.pairs[family], wrong=theatre.wrong[family])
        assert 0 < theatre.refused[family] < theatre.pairs[family]  # both verdicts have been seen
    assert theatre.mistakes == []


async def test_a_node_reaches_its_own_pods_whatever_policies_say() -> None:
    """Kubelet's probes come by the node's own management port; another node is a client like any other."""
    async with Tracer() as tracer, Stage(tracer.central.nb) as stage:
        theatre = Theatre(stage, tracer)
        await theatre.ready()
        deny = [scenarios.policy("p", scenarios.DENY_ALL, namespace) for namespace in NAMESPACES]
        admin = scenarios.admin_policy(
            "deny", 1, {"namespaces": {}}, ingress=[{"action": "Deny", "from": [{"namespaces": {}}]}]
        )
        stage.put("networkpolicy", *deny)
        stage.put("adminnetworkpolicy", admin)
        (text,) = stage.named("Logical_Switch_Port")["management__n1"]["addresses"]
        mac, *addresses = text.split()
        router = stage.named("Logical_Router_Port")["router-to-n1"]["mac"]

        async def verdicts() -> dict[str, set[bool]]:
            await stage.settle()
            await tracer.synchronise()
            found: dict[str, set[bool]] = {}
            for family, ip in zip(FAMILIES, addresses, strict=True):
                here = Endpoint("management__n1", "n1", mac, ip, router)
                there = theatre.endpoints[family]
                for key, answer in zip(
                    there, await tracer.reaches([(here, each, "TCP", 80) for each in there.values()]), strict=True
                ):
                    found.setdefault(there[key].switch, set()).add(answer)
            return found

        assert await verdicts() == {"n1": {True}, "n2": {False}}
        blocks = [{"ipBlock": {"cidr": f"{ip}/{128 if ':' in ip else 32}"}} for ip in addresses]
        stage.put(
            "networkpolicy", *(scenarios.policy("node", scenarios.ingress({"from": blocks}), n) for n in NAMESPACES)
        )
        assert await verdicts() == {"n1": {True}, "n2": {True}}
