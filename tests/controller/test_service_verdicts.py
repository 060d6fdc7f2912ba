"""Services' verdicts by the real OVN against the reference: every client, address, port in every moment."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterator
from typing import Any

import pytest

from cni.controller.model.annotations import GATEWAY
from tests.controller.service_reference import Answer, ServiceCluster, Source
from tests.controller.service_scenarios import WHERE, Moment, drawn, moments
from tests.controller.stage import Stage, pod
from tests.controller.tracer import Endpoint, Tracer, microflow
from tests.controller.verdicts import record

Json = dict[str, Any]
GATEWAYS = ("n1", "n2")
DRAWN = 3
NEXT_HOPS = {4: "192.0.2.254", 6: "fd02::fe"}
REFUSALS = {"TCP": ("tcp_reset",), "UDP": ("icmp4 {", "icmp6 {"), "SCTP": ("sctp_abort",)}
STRANGERS = {4: ("203.0.113.5", "203.0.113.77"), 6: ("fd03::5", "fd03::1:5")}
"""Clients outside: the first is in every service's source ranges, the second is not."""


def node(name: str) -> Json:
    index = int(name[1:])
    annotations = {}
    if name in GATEWAYS:
        ips = [f"192.0.2.10{index}/24", f"fd02::10{index}/64"]
        annotations[GATEWAY] = json.dumps({"ips": ips, "nextHops": list(NEXT_HOPS.values())})
    addresses = [{"type": "InternalIP", "address": each} for each in (f"192.0.2.{index}", f"fd02::{index}")]
    return {
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"podCIDRs": [f"10.1.{index}.0/24", f"fd00:{index}::/64"]},
        "status": {"addresses": addresses},
    }


def addresses_of(name: str) -> list[str]:
    """All addresses of a node, its gateway's included."""
    index = int(name[1:])
    outer = [f"192.0.2.10{index}", f"fd02::10{index}"] if name in GATEWAYS else []
    return [f"192.0.2.{index}", f"fd02::{index}", *outer]


class Theatre:
    """Three nodes, two of them with gateways, four pods; services change from moment to moment."""

    def __init__(self, stage: Stage, tracer: Tracer) -> None:
        self.stage, self.tracer = stage, tracer
        self.pairs = self.wrong = 0
        self.seen: set[str] = set()
        self.mistakes: list[str] = []

    async def ready(self) -> None:
        self.stage.put("node", *(node(f"n{index}") for index in (1, 2, 3)))
        pods = {name: on for name, on in WHERE.items() if not name.startswith("host")}
        self.stage.put("pod", *(pod(name, on=on, uid=name) for name, on in pods.items()))
        await self.stage.settle()
        self.entries = {name: self.stage.annotations[f"ns/{name}"]["default"] for name in pods}
        self.ports = {self.address(name, family): f"ns_{name}" for name in pods for family in (4, 6)}
        routers = self.stage.named("Logical_Router_Port")
        self.inner = {f"n{index}": routers[f"router-to-n{index}"]["mac"] for index in (1, 2, 3)}
        self.outer = {name: routers[f"gateway_{name}-to-external"]["mac"] for name in GATEWAYS}
        for name in GATEWAYS:
            join = routers[f"gateway_{name}-to-join"]
            for each in join["networks"]:
                await self.tracer.learn("router_to_join", each.partition("/")[0], join["mac"])
            for each in (*NEXT_HOPS.values(), "192.0.2.2", "fd02::2"):
                await self.tracer.learn(f"gateway_{name}-to-external", each, "02:00:00:00:00:fe")
        for row in self.stage.rows("Static_MAC_Binding"):
            await self.tracer.learn(row["logical_port"], row["ip"], row["mac"])

    def address(self, name: str, family: int) -> str:
        if name == "host2":
            return {4: "192.0.2.2", 6: "fd02::2"}[family]
        return next(ip.partition("/")[0] for ip in self.entries[name]["ips"] if (":" in ip) == (family == 6))

    def clients(self, family: int, gone: tuple[str, ...]) -> Iterator[tuple[Source, Endpoint]]:
        for name, on in WHERE.items():
            if name not in self.entries or on in gone:
                continue
            ip = self.address(name, family)
            yield Source(on, ip), Endpoint(f"ns_{name}", on, self.entries[name]["mac"], ip, self.inner[on])
        for on in {"n1", "n2", "n3"} - set(gone):
            (text,) = self.stage.named("Logical_Switch_Port")[f"management__{on}"]["addresses"]
            mac, *ips = text.split()
            ip = next(each for each in ips if (":" in each) == (family == 6))
            yield Source(on, ip), Endpoint(f"management__{on}", on, mac, ip, self.inner[on])
        for on in GATEWAYS:
            if on not in gone:
                for ip in STRANGERS[family]:
                    port = f"external__{on}-localnet"
                    yield (
                        Source(on, ip, outside=True),
                        Endpoint(port, "wire", "02:00:00:00:00:99", ip, self.outer[on]),
                    )

    async def play(self, name: str, before: Moment | None, moment: Moment) -> None:
        keys = [{f"ns/{each['metadata']['name']}" for each in m.services} if m else set() for m in (before, moment)]
        self.stage.remove("service", *(keys[0] - keys[1]))
        slices = [{f"ns/{each['metadata']['name']}" for each in m.slices} if m else set() for m in (before, moment)]
        self.stage.remove("endpointslice", *(slices[0] - slices[1]))
        self.stage.remove("node", *moment.gone)
        self.stage.put("service", *moment.services)
        self.stage.put("endpointslice", *moment.slices)
        await self.stage.settle()
        assert not [owner for owner in self.stage.problems if owner.kind == "service"], self.stage.problems
        await self.tracer.synchronise()
        await self._judge(name, moment)

    async def _judge(self, name: str, moment: Moment) -> None:
        nodes = {each: addresses_of(each) for each in ("n1", "n2", "n3") if each not in moment.gone}
        cluster = ServiceCluster(moment.services, moment.slices, nodes)
        targets = dict.fromkeys(target for each in moment.services for target in _targets(each, nodes))
        asked: list[tuple[Source, str, str, int]] = []
        sides: list[Endpoint] = []
        flows: list[str] = []
        for family in (4, 6):
            for source, side in self.clients(family, moment.gone):
                for address, protocol, number in targets:
                    if (":" in address) != (family == 6) or not _can_come(source, address, nodes):
                        continue
                    asked.append((source, address, protocol, number))
                    sides.append(side)
                    there = Endpoint("", "elsewhere", "", address, "")
                    flows.append(microflow(side, there, protocol, number))
        traces = await self.tracer.traces(flows, detail="--summary")
        self.pairs += len(asked)
        for question, side, trace in zip(asked, sides, traces, strict=True):
            fault = self._compare(cluster.answer(*question), question, side.port, trace)
            if fault:
                self.wrong += 1
                self.mistakes.append(f"{name}: {question}: {fault}")

    def _compare(self, answer: Answer, question: tuple[Source, str, str, int], port: str, trace: str) -> str:
        """What is wrong with the trace of a packet that came by `port`; "" when it is as it must be."""
        source, _, protocol, _ = question
        chosen = re.search(r"backends=([^);]*)", trace)
        backends = frozenset(chosen[1].split(",")) if chosen is not None else None
        reached = set(re.findall(r'output to "([^"]+)", type "(?:localnet)?"', trace))
        refused = any(word in trace for word in REFUSALS[protocol])
        # A refusal comes back to who has asked.
        pods = {each for each in reached if each.startswith("ns_")} - ({port} if refused else set())
        if answer.stopped:
            self.seen.add("stopped")
            return "" if not reached and not refused and backends is None else "is not stopped"
        if answer.backends is None:
            self.seen.add("nobody's")
            return f"goes to {backends or pods}" if backends is not None or pods else ""
        if not answer.backends:
            self.seen.add("refused")
            return "" if refused and backends is None and not pods else f"is not refused but goes to {backends}"
        if backends != answer.backends:
            return f"goes to {set(backends or ())} instead of {set(answer.backends)}"
        if answer.affinity:
            self.seen.add("sticky")
            # ovn-trace goes no further: the backend is remembered, then the packet comes anew.
            return "" if f"timeout = {answer.affinity})" in trace else "has no affinity"
        self.seen.add("served")
        wanted = set().union(*(self._ways(each) for each in answer.backends))
        if not reached or not reached <= wanted:
            return f"is put out at {reached} instead of {wanted}"
        # Replies to a source that is kept go out by the backend's own gateway, which is the one it came in by.
        snat = "skip_snat" if answer.keeps_source else "force_snat"
        return f"has no {snat}" if source.outside and f"; {snat})" not in trace else ""

    def _ways(self, backend: str) -> set[str]:
        address = backend.rpartition(":")[0].strip("[]")
        # A node itself is reached by its management port, from a gateway over the wire too.
        return {self.ports.get(address, "management__n2"), *(f"external__{on}-localnet" for on in GATEWAYS)}


def _targets(service: Json, nodes: dict[str, list[str]]) -> Iterator[tuple[str, str, int]]:
    spec = service["spec"]
    given = [each["ip"] for each in service["status"]["loadBalancer"].get("ingress", [])]
    addresses = [each for each in (*spec["clusterIPs"], *spec.get("externalIPs", []), *given) if each != "None"]
    for port in spec["ports"]:
        for address in addresses:
            yield address, port["protocol"], port["port"]
        if port.get("nodePort"):
            for address in itertools.chain(*nodes.values()):
                yield address, port["protocol"], port["nodePort"]
    for address in addresses:
        yield address, "TCP", 7  # a port that no service has
    yield from ((address, "UDP", spec["ports"][0]["port"]) for address in spec["clusterIPs"] if address != "None")


def _can_come(source: Source, address: str, nodes: dict[str, list[str]]) -> bool:
    """What is another node's own address does not come from outside by this node's gateway."""
    owners = [name for name, each in nodes.items() if address in each]
    return not source.outside or not owners or owners == [source.node]


# ovn-trace works for minutes on a machine that is busy with other things.
@pytest.mark.timeout(240)
async def test_every_client_and_every_address() -> None:
    async with Tracer() as tracer, Stage(tracer.central.nb) as stage:
        theatre = Theatre(stage, tracer)
        await theatre.ready()
        before = None
        everything = {**drawn(random.Random(7), theatre.address, DRAWN), **moments(theatre.address)}
        for name, moment in everything.items():
            await theatre.play(name, before, moment)
            before = moment
    record("services ipv4 and ipv6", pairs=theatre.pairs, wrong=theatre.wrong)
    assert theatre.mistakes == []
    assert theatre.seen == {"stopped", "nobody's", "refused", "sticky", "served"}
