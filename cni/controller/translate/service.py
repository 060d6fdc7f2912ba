"""A service into load balancers.

What is the same on every node hangs on the two groups (all switches, all gateway routers). Where a traffic policy is
Local, each node that has endpoints gets a load balancer of its own, and those without share one that refuses. Whom
loadBalancerSourceRanges leave out is stopped where traffic from outside comes in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cni.controller.model import endpoints
from cni.controller.model.endpoints import Backend, Slice
from cni.controller.model.service import PROTOCOLS, Port, Service
from cni.controller.rows import Member, Row, RowId, State
from cni.controller.translate import term
from cni.controller.translate.acl import acl
from cni.controller.translate.names import (
    OUTSIDE,
    OUTSIDE_NAME,
    ROUTER_BALANCERS,
    SWITCH_BALANCERS,
    gateway_router,
    node_switch,
)

HAIRPIN = ("169.254.169.5", "fd69::5")
"""Source of a connection that a service leads back to the pod that began it."""

GUARD_PRIORITY = 2000
LONGEST_AFFINITY = 65535
"""Seconds, by ovn-nb(5); Kubernetes allows a day."""

Vips = dict[str, str]


@dataclass(frozen=True, slots=True)
class Node:
    """What a service needs to know of a node: its own addresses, those of its gateway router (none without)."""

    name: str
    own: tuple[str, ...]
    outer: tuple[str, ...]

    @property
    def addresses(self) -> tuple[str, ...]:
        """All that node ports are served on."""
        return tuple(dict.fromkeys((*self.own, *self.outer)))


def translate(service: Service, slices: Iterable[Slice], nodes: Mapping[str, Node]) -> State:
    """All load balancers of a service. `nodes` is looked at only if `service.per_node`."""
    return _Builder(service, tuple(slices), nodes).build()


class _Builder:
    def __init__(self, service: Service, slices: tuple[Slice, ...], nodes: Mapping[str, Node]) -> None:
        self.service = service
        self._key = f"{service.namespace}/{service.name}"
        self.slices = slices
        self.nodes = nodes
        self._chosen: dict[tuple[int, str, str, str | None], str] = {}
        self.rows: list[Row] = []
        self.members: list[Member] = []

    def build(self) -> State:
        for protocol in PROTOCOLS:
            ports = [port for port in self.service.ports if port.protocol == protocol]
            if ports:
                self._protocol(protocol, ports)
                self._guard(protocol, ports)
        if self.service.health_port:
            self._health(self.service.health_port)
        return State(tuple(self.rows), tuple(self.members))

    def _protocol(self, protocol: str, ports: list[Port]) -> None:
        service = self.service
        everywhere: Vips = {}
        inside: Vips = {}  # for connections that pods begin
        for port in ports:
            if not service.internal_local:
                everywhere.update(self._vips(service.cluster_ips, port.number, port))
            # A pod that calls an outside address is inside: the external policy does not bind it.
            target = inside if service.external_local else everywhere
            target.update(self._vips(service.external, port.number, port))
            if port.node_port:
                for node in self.nodes.values():
                    target.update(self._vips(node.addresses, port.node_port, port))
        self._add(f"{protocol}.all", protocol, everywhere, SWITCH_BALANCERS, ROUTER_BALANCERS)
        self._add(f"{protocol}.inside", protocol, inside, SWITCH_BALANCERS)
        if service.internal_local:
            self._internal_local(protocol, ports)
        if service.external_local:
            self._external_local(protocol, ports)

    def _internal_local(self, protocol: str, ports: list[Port]) -> None:
        refusing: list[RowId] = []
        empty: Vips = {}
        for name, node in sorted(self.nodes.items()):
            holders = (node_switch(name), gateway_router(name)) if node.outer else (node_switch(name),)
            vips: Vips = {}
            for port in ports:
                vips |= self._vips(self.service.cluster_ips, port.number, port, node=name)
            if any(vips.values()):
                self._add(f"{protocol}.inside.{name}", protocol, vips, *holders)
            else:
                refusing += holders
                empty |= vips
        self._add(f"{protocol}.inside-none", protocol, empty, *refusing)

    def _external_local(self, protocol: str, ports: list[Port]) -> None:
        refusing: list[RowId] = []
        empty: Vips = {}
        for name, node in sorted(self.nodes.items()):
            if not node.outer:
                continue
            vips: Vips = {}
            for port in ports:
                vips |= self._vips(self.service.external, port.number, port, node=name)
                if port.node_port:
                    vips |= self._vips(node.addresses, port.node_port, port, node=name)
            if any(vips.values()):
                self._add(f"{protocol}.outside.{name}", protocol, vips, gateway_router(name), keep_source=True)
            elif vips:
                refusing.append(gateway_router(name))
                empty |= vips
        self._add(f"{protocol}.outside-none", protocol, empty, *refusing)

    def _guard(self, protocol: str, ports: list[Port]) -> None:
        """Drops what comes to the load balancer's addresses from outside of the source ranges."""
        service = self.service
        if service.source_ranges is None:
            return
        word = protocol.lower()
        numbers = term.one_of([str(each.number) for each in ports])
        for family in (4, 6):
            vips = [each for each in service.balancer if (":" in each) == (family == 6)]
            allowed = [each for each in service.source_ranges if (":" in each) == (family == 6)]
            if not vips:
                continue
            match = f"inport == @{OUTSIDE_NAME} && ip{family}.dst == {term.one_of(vips)} && {word}.dst == {numbers}"
            if allowed:
                match += f" && ip{family}.src != {term.one_of(allowed)}"
            row = RowId("ACL", "service", self._key, f"sources.{protocol}.v{family}")
            self.rows.append(acl(row, "outside", priority=GUARD_PRIORITY, match=match, action="drop"))
            self.members.append(Member(OUTSIDE, "acls", row))

    def _health(self, port: int) -> None:
        """A gateway's health port leads to its node, where cni-node answers for the service."""
        for name, node in sorted(self.nodes.items()):
            vips: Vips = {}
            for outer in node.outer:
                own = next((each for each in node.own if (":" in each) == (":" in outer)), outer)
                if own != outer:
                    vips[_joined(outer, port)] = _joined(own, port)
            self._add(f"TCP.health.{name}", "TCP", vips, gateway_router(name))

    def _vips(self, addresses: Iterable[str], number: int, port: Port, *, node: str | None = None) -> Vips:
        return {_joined(each, number): self._backends(6 if ":" in each else 4, port, node) for each in addresses}

    def _backends(self, family: int, port: Port, node: str | None) -> str:
        """Chosen once, however many addresses lead there: a node port has some on each node."""
        key = (family, port.name, port.protocol, node)
        found = self._chosen.get(key)
        if found is None:
            chosen = endpoints.choose(
                self.slices,
                family=family,
                port_name=port.name,
                protocol=port.protocol,
                publish_not_ready=self.service.publish_not_ready,
                node=node,
            )
            found = self._chosen[key] = ",".join(map(_backend, chosen))
        return found

    def _add(self, part: str, protocol: str, vips: Vips, *holders: RowId, keep_source: bool = False) -> None:
        if not vips or not holders:
            return
        service = self.service
        row = RowId("Load_Balancer", "service", self._key, part)
        options = {"reject": "true", "hairpin_snat_ip": " ".join(HAIRPIN), "neighbor_responder": "none"}
        if service.affinity_seconds:
            options["affinity_timeout"] = str(min(service.affinity_seconds, LONGEST_AFFINITY))
        if keep_source:
            options["skip_snat"] = "true"
        if protocol == "UDP":
            # A client that goes on sending from one port would stay with a backend that is gone for ever.
            options["ct_flush"] = "true"
        self.rows.append(
            Row(
                row,
                {
                    "name": f"{self._key} {part}",
                    "protocol": protocol.lower(),
                    "vips": vips,
                    "options": options,
                },
            )
        )
        self.members += [Member(holder, "load_balancer", row) for holder in holders]


def _joined(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _backend(backend: Backend) -> str:
    return _joined(backend.address, backend.port)
