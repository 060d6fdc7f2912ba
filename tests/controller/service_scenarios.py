"""Services of every kind with their endpoints, each a row of moments that follow one another.

Endpoints are named by their pods (`a`, `d` on n1, `b` on n2, `c` on n3; `host2` is n2 itself); the tests know the
pods' addresses.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
WHERE = {"a": "n1", "d": "n1", "b": "n2", "c": "n3", "host2": "n2"}
STATES: Mapping[str, Json] = {
    "ready": {"ready": True, "serving": True, "terminating": False},
    "unsaid": {},
    "unready": {"ready": False, "serving": False, "terminating": False},
    "serving": {"ready": False, "serving": True, "terminating": True},
    "leaving": {"ready": False, "serving": False, "terminating": True},
}
Addresses = Callable[[str, int], str]
"""(pod, family) -> its address."""


@dataclass(frozen=True)
class Moment:
    """What exists at once; `nodes` that have gone meanwhile."""

    services: list[Json]
    slices: list[Json]
    gone: tuple[str, ...] = ()


class Writer:
    """Writes services; a service's cluster addresses are a function of its name."""

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses
        self.services: list[Json] = []
        self.slices: list[Json] = []

    def service(
        self, name: str, *, families: tuple[int, ...] = (4, 6), ports: list[Json] | None = None, **spec: Any
    ) -> None:
        index = zlib.crc32(name.encode()) & 0xFFFF
        ips = [f"10.96.{index >> 8}.{index & 255}" if family == 4 else f"fd10::{index:x}" for family in families]
        ingress = [{"ip": ip} for ip in spec.pop("ingress", [])]
        body = {"clusterIP": ips[0], "clusterIPs": ips, "ports": ports or [port("http", 80)], **spec}
        metadata = {"name": name, "namespace": "ns"}
        self.services.append({"metadata": metadata, "spec": body, "status": {"loadBalancer": {"ingress": ingress}}})

    def slice(
        self,
        service: str,
        *pods: str,
        ports: list[tuple[str, str, int]] | None = None,
        families: tuple[int, ...] = (4, 6),
        name: str = "",
    ) -> None:
        """`pods`: name, or name=state of `STATES`."""
        for family in families:
            endpoints = []
            for each in pods:
                pod, _, state = each.partition("=")
                endpoints.append(
                    {
                        "addresses": [self._addresses(pod, family)],
                        "nodeName": WHERE[pod],
                        "conditions": dict(STATES[state or "ready"]),
                    }
                )
            labels = {"kubernetes.io/service-name": service}
            self.slices.append(
                {
                    "metadata": {"name": f"{name or service}-{family}", "namespace": "ns", "labels": labels},
                    "addressType": f"IPv{family}",
                    "endpoints": endpoints,
                    "ports": [
                        {"name": n, "protocol": p, "port": number} for n, p, number in ports or [("http", "TCP", 8080)]
                    ],
                }
            )


def port(name: str, number: int, protocol: str = "TCP", node_port: int = 0) -> Json:
    entry: Json = {"name": name, "protocol": protocol, "port": number}
    return {**entry, "nodePort": node_port} if node_port else entry


def _inside(w: Writer) -> None:
    w.service("plain", ports=[port("http", 80), port("tls", 443)])
    w.slice("plain", "a", "b", ports=[("http", "TCP", 8080), ("tls", "TCP", 8443)])
    w.service("names", ports=[port("dns", 53, "UDP"), port("dns-tcp", 53)])
    w.slice("names", "a", "c", ports=[("dns", "UDP", 5353), ("dns-tcp", "TCP", 5354)])
    w.service("signal", ports=[port("sig", 99, "SCTP")])
    w.slice("signal", "b", ports=[("sig", "SCTP", 9999)])
    w.service("hairpin")
    w.slice("hairpin", "a")
    w.service("on-hosts")
    w.slice("on-hosts", "host2")
    w.service("nowhere")
    w.service("not-ready")
    w.slice("not-ready", "a=unready", "b=leaving")
    w.service("published", publishNotReadyAddresses=True)
    w.slice("published", "a=unready", "b")
    w.service("going-down")
    w.slice("going-down", "a=serving", "b=unready", "c=leaving")
    w.service("half-down")
    w.slice("half-down", "a=serving", "b=unsaid")
    w.service("other-name")
    w.slice("other-name", "a", ports=[("metrics", "TCP", 9100), ("http", "UDP", 8080)])
    w.service("two-numbers")
    w.slice("two-numbers", "a", name="first")
    w.slice("two-numbers", "b", "a=unready", name="second", ports=[("http", "TCP", 9090)])
    w.service("old", families=(4,))
    w.slice("old", "a", "b")
    w.service("new", families=(6,))
    w.slice("new", "b", "c")
    w.service("nameless", ports=[port("", 80)])
    w.slice("nameless", "d", ports=[("", "TCP", 8080)])
    w.service("sticky", sessionAffinity="ClientIP", sessionAffinityConfig={"clientIP": {"timeoutSeconds": 77}})
    w.slice("sticky", "a", "b")
    w.service("sticky-default", sessionAffinity="ClientIP")
    w.slice("sticky-default", "c")
    w.service("at-home", internalTrafficPolicy="Local")
    w.slice("at-home", "a", "d", "c=serving")


def _outside(w: Writer) -> None:
    w.service("opened", type="NodePort", ports=[port("http", 80, node_port=30080), port("q", 81, "UDP", 30080)])
    w.slice("opened", "a", "b", ports=[("http", "TCP", 8080), ("q", "UDP", 8081)])
    w.service(
        "balanced",
        type="LoadBalancer",
        ports=[port("http", 80, node_port=30081)],
        externalIPs=["198.51.100.7"],
        ingress=["198.51.100.8", "fd51::8"],
        loadBalancerSourceRanges=["203.0.113.0/28", "fd03::/120"],
    )
    w.slice("balanced", "a", "c")
    w.service(
        "only-old",
        type="LoadBalancer",
        ports=[port("http", 8080)],
        ingress=["198.51.100.8", "fd51::8"],
        loadBalancerSourceRanges=["203.0.113.0/24"],
    )
    w.slice("only-old", "b")
    w.service(
        "kept",
        type="LoadBalancer",
        ports=[port("http", 80, node_port=30082), port("tls", 443, node_port=30083)],
        ingress=["198.51.100.9", "fd51::9"],
        externalTrafficPolicy="Local",
        healthCheckNodePort=30999,
    )
    w.slice("kept", "a", "c", ports=[("http", "TCP", 8080), ("tls", "TCP", 8443)])
    w.service(
        "kept-going",
        type="NodePort",
        ports=[port("http", 80, node_port=30084)],
        externalTrafficPolicy="Local",
        internalTrafficPolicy="Local",
        externalIPs=["198.51.100.10", "fd51::10"],
    )
    w.slice("kept-going", "a", "d=serving", "b=serving")
    w.service("empty-out", type="NodePort", ports=[port("http", 80, node_port=30085)], externalTrafficPolicy="Local")
    w.service("proxied", type="LoadBalancer", ports=[port("http", 80)])
    w.services[-1]["status"]["loadBalancer"]["ingress"] = [{"ip": "198.51.100.20", "ipMode": "Proxy"}]
    w.slice("proxied", "a")
    w.service("headless", externalIPs=["198.51.100.21"])
    w.services[-1]["spec"] |= {"clusterIP": "None", "clusterIPs": ["None"]}
    w.slice("headless", "a")
    w.service("elsewhere", type="ExternalName", externalName="db.example", externalIPs=["198.51.100.22"])
    w.services[-1]["spec"] |= {"clusterIP": "", "clusterIPs": []}


def _without(piece: Json, node: str) -> Json:
    return {**piece, "endpoints": [each for each in piece["endpoints"] if each["nodeName"] != node]}


def moments(addresses: Addresses) -> dict[str, Moment]:
    """All services at once; then changed in kind, endpoints, policies; then without one of the nodes."""
    inside, outside, changed = Writer(addresses), Writer(addresses), Writer(addresses)
    _inside(inside)
    _outside(outside)
    # Another kind, another policy, other families, endpoints that moved to another service or went.
    changed.service("opened", ports=[port("http", 8000)])
    changed.slice("opened", "b", "c")
    changed.service(
        "balanced",
        type="LoadBalancer",
        ports=[port("http", 80, node_port=30081)],
        ingress=["198.51.100.8", "fd51::8"],
        externalTrafficPolicy="Local",
    )
    changed.slice("balanced", "b")
    changed.service("kept", type="LoadBalancer", ports=[port("http", 80, node_port=30082)], ingress=["198.51.100.9"])
    changed.service("kept-going", type="NodePort", ports=[port("http", 80, node_port=30084)])
    changed.slice("kept-going", "a", "c", name="kept")
    changed.service("old")
    changed.slice("old", "a", "b")
    return {
        "inside": Moment(inside.services, inside.slices),
        "outside": Moment(outside.services, outside.slices),
        "changed": Moment(changed.services, changed.slices),
        "without a node": Moment(outside.services, [_without(each, "n2") for each in outside.slices], gone=("n2",)),
    }


def drawn(source: random.Random, addresses: Addresses, count: int) -> dict[str, Moment]:
    """Moments with services thrown together at random; the same names come again as something else."""
    return {f"drawn {number}": _drawn(source, Writer(addresses), number) for number in range(count)}


def _drawn(source: random.Random, writer: Writer, number: int) -> Moment:
    node_ports = iter(range(30100 + 100 * number, 32000))
    for index in range(6):
        name, kind = f"svc-{index}", source.choice(("ClusterIP", "NodePort", "LoadBalancer"))
        ports = [
            port(f"p{each}", source.choice((80, 443, 8000)) + each, source.choice(("TCP", "UDP", "SCTP")))
            for each in range(source.randint(1, 3))
        ]
        spec: Json = {"type": kind, "publishNotReadyAddresses": source.random() < 0.2}
        if kind != "ClusterIP":
            ports = [{**each, "nodePort": next(node_ports)} if source.random() < 0.8 else each for each in ports]
            spec["externalTrafficPolicy"] = source.choice(("Cluster", "Local"))
        if kind == "LoadBalancer":
            spec["ingress"] = source.sample([f"198.51.100.{100 + index}", f"fd51::{100 + index}"], source.randint(0, 2))
            if source.random() < 0.5:
                choices = ["203.0.113.0/28", "203.0.113.64/26", "fd03::/120", "0.0.0.0/0", "::/0"]
                spec["loadBalancerSourceRanges"] = source.sample(choices, 2)
        if source.random() < 0.3:
            spec["externalIPs"] = [f"198.51.100.{120 + index}"]
        if source.random() < 0.3:
            spec["internalTrafficPolicy"] = "Local"
        if source.random() < 0.2:
            spec["sessionAffinity"] = "ClientIP"
        families = source.choice(((4,), (6,), (4, 6), (6, 4)))
        writer.service(name, families=families, ports=ports, **spec)
        for piece in range(source.randint(0, 3)):
            pods = [f"{pod}={source.choice(list(STATES))}" for pod in source.sample(list(WHERE), source.randint(0, 4))]
            numbers = [(each["name"], each["protocol"], 8000 + 10 * piece) for each in ports if source.random() < 0.8]
            writer.slice(name, *pods, ports=numbers or [("other", "TCP", 1)], families=families, name=f"{name}-{piece}")
    return Moment(writer.services, writer.slices)
