"""How many endpoints each node has of the services whose load balancers ask nodes for their health; no I/O."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cni.controller.model.endpoints import Slice
from cni.controller.model.service import Service


@dataclass(frozen=True, slots=True)
class _Check:
    """`endpoints`: ready addresses by node."""

    port: int
    endpoints: dict[str, int]


class HealthChecks:
    """Kept service by service, so that a node's list costs no look at all endpoints."""

    def __init__(self) -> None:
        self._checks: dict[str, _Check] = {}

    def put(self, key: str, service: Service | None, slices: Iterable[Slice]) -> set[str] | None:
        """A service or its endpoints may be others now. The nodes whose answer has changed; None: every node's."""
        old, new = self._checks.pop(key, None), None
        if service is not None and service.health_port:
            new = self._checks[key] = _Check(service.health_port, _count(service, slices))
        if (old.port if old else 0) != (new.port if new else 0):
            return None
        if old is None or new is None:
            return set()
        return {node for node, _ in old.endpoints.items() ^ new.endpoints.items()}

    def of_node(self, node: str) -> list[tuple[int, str, int]]:
        """(port, key of the service, ready endpoints on the node), sorted by port."""
        return sorted((check.port, key, check.endpoints.get(node, 0)) for key, check in self._checks.items())


def _count(service: Service, slices: Iterable[Slice]) -> dict[str, int]:
    family = 6 if ":" in service.cluster_ips[0] else 4
    ready = {
        (each.node, each.address)
        for piece in slices
        if piece.family == family
        for each in piece.endpoints
        if each.ready and each.node
    }
    found: dict[str, int] = {}
    for node, _ in sorted(ready):
        found[node] = found.get(node, 0) + 1
    return found
