"""What Kubernetes says a Service means, worked out from the objects alone: the judge of the load balancers.

It shares no code with the controller. Sources: core/v1 Service and discovery.k8s.io/v1 EndpointSlice API references,
"Virtual IPs and Service Proxies" page, KEP-1669 (terminating endpoints), KEP-2086 (internal traffic policy). As with
kube-proxy, an external policy binds who comes from outside, not who is inside already.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

Object = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """A client: at `node`, or `outside` beyond that node's gateway."""

    node: str
    address: str
    outside: bool = False


@dataclass(frozen=True)
class Answer:
    """`backends` None: no service's address; empty: the connection is refused. `stopped`: the client is not let in.

    `affinity`: seconds for which a client keeps its backend. `keeps_source`: backends must see the client's address.
    """

    backends: frozenset[str] | None = None
    stopped: bool = False
    affinity: int = 0
    keeps_source: bool = False


def _same(one: str, other: str) -> bool:
    return ipaddress.ip_address(one) == ipaddress.ip_address(other)


def _has(addresses: Iterable[str], address: str) -> bool:
    return any(_same(each, address) for each in addresses)


class ServiceCluster:
    """Services and endpoint slices as the API gives them; `nodes`: all addresses of each node."""

    def __init__(
        self, services: Sequence[Object], slices: Sequence[Object], nodes: Mapping[str, Sequence[str]]
    ) -> None:
        self.services, self.slices, self.nodes = services, slices, nodes

    def answer(self, source: Source, address: str, protocol: str, number: int) -> Answer:
        """What becomes of a connection to an address."""
        for service in self.services:
            spec = service["spec"]
            if spec.get("type") == "ExternalName" or spec.get("clusterIP") in ("", "None"):
                continue
            for port in spec["ports"]:
                if port.get("protocol", "TCP") == protocol:
                    found = self._ask(service, port, source, address, number)
                    if found is not None:
                        return found
        return Answer()

    def _ask(self, service: Object, port: Object, source: Source, address: str, number: int) -> Answer | None:
        spec = service["spec"]
        if number == port["port"] and _has(spec["clusterIPs"], address):
            return self._to(service, port, source, address, local=spec.get("internalTrafficPolicy") == "Local")
        if number == port["port"] and _has(spec.get("externalIPs", []), address):
            return self._outer(service, port, source, address)
        if number == port["port"] and _has(self._balanced(service), address):
            ranges = [ipaddress.ip_network(each) for each in spec.get("loadBalancerSourceRanges", [])]
            if ranges and source.outside and not any(ipaddress.ip_address(source.address) in each for each in ranges):
                return Answer(stopped=True)
            return self._outer(service, port, source, address)
        opened = spec.get("type") in ("NodePort", "LoadBalancer") and port.get("nodePort")
        if opened and number == port["nodePort"] and any(_has(each, address) for each in self.nodes.values()):
            return self._outer(service, port, source, address)
        return None

    def _outer(self, service: Object, port: Object, source: Source, address: str) -> Answer:
        local = source.outside and service["spec"].get("externalTrafficPolicy") == "Local"
        return replace(self._to(service, port, source, address, local=local), keeps_source=local)

    @staticmethod
    def _balanced(service: Object) -> list[str]:
        if service["spec"].get("type") != "LoadBalancer":
            return []
        given = service.get("status", {}).get("loadBalancer", {}).get("ingress", [])
        return [each["ip"] for each in given if each.get("ipMode", "VIP") == "VIP"]

    def _to(self, service: Object, port: Object, source: Source, address: str, *, local: bool) -> Answer:
        spec = service["spec"]
        family = "IPv6" if ":" in address else "IPv4"
        ready, leaving = set(), set()
        for piece in self.slices:
            metadata = piece["metadata"]
            if metadata["namespace"] != service["metadata"]["namespace"] or piece["addressType"] != family:
                continue
            if metadata["labels"].get("kubernetes.io/service-name") != service["metadata"]["name"]:
                continue
            for own in piece["ports"]:
                if own.get("name", "") != port.get("name", "") or own["protocol"] != port.get("protocol", "TCP"):
                    continue
                for endpoint in piece["endpoints"]:
                    if local and endpoint.get("nodeName") != source.node:
                        continue
                    ip = endpoint["addresses"][0]
                    text = f"[{ip}]:{own['port']}" if family == "IPv6" else f"{ip}:{own['port']}"
                    conditions = endpoint.get("conditions", {})
                    if conditions.get("ready", True) or spec.get("publishNotReadyAddresses"):
                        ready.add(text)
                    elif conditions.get("serving") and conditions.get("terminating"):
                        leaving.add(text)
        affinity = 0
        if spec.get("sessionAffinity") == "ClientIP":
            affinity = spec.get("sessionAffinityConfig", {}).get("clientIP", {}).get("timeoutSeconds", 10800)
        return Answer(frozenset(ready or leaving), affinity=affinity)
