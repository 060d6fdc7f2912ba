"""A slice of a service's endpoints, with the rules by which endpoints are chosen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from foundation.kube.models import discovery

SERVICE_NAME = "kubernetes.io/service-name"
_FAMILIES = {"IPv4": 4, "IPv6": 6}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address with its state (discovery/v1 EndpointConditions, absent values filled in)."""

    address: str
    node: str
    ready: bool
    serving: bool
    terminating: bool


@dataclass(frozen=True, slots=True)
class Slice:
    """`family` 0: names instead of addresses, of no use here. `ports`: (port name, protocol) -> number."""

    service: str
    family: int
    endpoints: tuple[Endpoint, ...]
    ports: Mapping[tuple[str, str], int]


@dataclass(frozen=True, slots=True)
class Backend:
    """Where a connection may go."""

    address: str
    port: int
    node: str


def parse(piece: discovery.EndpointSlice) -> Slice:
    """From the API's object."""
    endpoints = []
    for each in piece.endpoints or ():
        conditions = each.conditions
        ready = conditions.ready is not False
        serving = ready if conditions.serving is None else conditions.serving
        endpoints += [
            Endpoint(address, each.node_name or "", ready, serving, bool(conditions.terminating))
            for address in each.addresses[:1]  # further ones mean the same endpoint (discovery/v1)
        ]
    name = piece.metadata.labels.get(SERVICE_NAME, "")
    return Slice(
        service=f"{piece.metadata.namespace}/{name}" if name else "",
        family=_FAMILIES.get(piece.address_type, 0),
        endpoints=tuple(endpoints),
        ports={(port.name or "", port.protocol or "TCP"): port.port for port in piece.ports or () if port.port},
    )


def choose(
    slices: Iterable[Slice],
    *,
    family: int,
    port_name: str,
    protocol: str,
    publish_not_ready: bool,
    node: str | None = None,
) -> tuple[Backend, ...]:
    """The backends of one service port, sorted; of one node's own if `node` is given.

    Ready endpoints; if there are none, those that still serve while they terminate (KEP-1669). An endpoint in several
    slices counts once, and is ready if any says so.
    """
    ready: dict[tuple[str, int], Backend] = {}
    leaving: dict[tuple[str, int], Backend] = {}
    for piece in slices:
        number = piece.ports.get((port_name, protocol))
        if piece.family != family or number is None:
            continue
        for each in piece.endpoints:
            if node is not None and each.node != node:
                continue
            key = (each.address, number)
            if each.ready or publish_not_ready:
                ready[key] = Backend(each.address, number, each.node)
            elif each.serving and each.terminating:
                leaving[key] = Backend(each.address, number, each.node)
    chosen = ready or leaving
    return tuple(chosen[key] for key in sorted(chosen))
