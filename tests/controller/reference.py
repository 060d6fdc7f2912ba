"""What Kubernetes says a NetworkPolicy means, worked out from the objects alone: the judge of the controller's ACLs.

It shares no code with the controller. Source: networking.k8s.io/v1 API reference, "Network Policies" concept page.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

Object = Mapping[str, Any]


def _selects(selector: Object, labels: Mapping[str, str]) -> bool:
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for term in selector.get("matchExpressions", []):
        key, operator, values = term["key"], term["operator"], term.get("values", [])
        holds = {
            "In": key in labels and labels[key] in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }[operator]
        if not holds:
            return False
    return True


class Cluster:
    """Namespaces (name -> labels), pods as the API gives them, with their addresses; policies."""

    def __init__(
        self,
        namespaces: Mapping[str, Mapping[str, str]],
        pods: Sequence[Object],
        addresses: Mapping[str, str],
        policies: Sequence[Object],
    ) -> None:
        self.namespaces = namespaces
        self.pods = {f"{p['metadata']['namespace']}/{p['metadata']['name']}": p for p in pods}
        self.addresses = addresses
        self.policies = policies

    def allowed(self, source: str, destination: str, protocol: str, port: int) -> bool:
        """Whether a connection from pod `source` to pod `destination` may be made."""
        return self._side("Egress", source, destination, destination, protocol, port) and self._side(
            "Ingress", destination, source, destination, protocol, port
        )

    def _side(self, direction: str, subject: str, peer: str, destination: str, protocol: str, port: int) -> bool:
        isolated = False
        for policy in self.policies:
            spec = policy["spec"]
            types = spec.get("policyTypes")
            if types is None:
                types = ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]
            if direction not in types or not self._is_subject(policy, subject):
                continue
            isolated = True
            rules = spec.get(direction.lower()) or []
            if any(self._passes(policy, rule, direction, peer, destination, protocol, port) for rule in rules):
                return True
        return not isolated

    def _is_subject(self, policy: Object, key: str) -> bool:
        metadata = self.pods[key]["metadata"]
        return metadata["namespace"] == policy["metadata"]["namespace"] and _selects(
            policy["spec"]["podSelector"], metadata["labels"]
        )

    def _passes(
        self, policy: Object, rule: Object, direction: str, peer: str, destination: str, protocol: str, port: int
    ) -> bool:
        peers = rule.get("from" if direction == "Ingress" else "to")
        if peers and not any(self._is_peer(policy, each, peer) for each in peers):
            return False
        ports = rule.get("ports")
        return not ports or any(self._is_port(each, destination, protocol, port) for each in ports)

    def _is_peer(self, policy: Object, peer: Object, key: str) -> bool:
        block = peer.get("ipBlock")
        if block is not None:
            address = ipaddress.ip_address(self.addresses[key])
            return address in ipaddress.ip_network(block["cidr"]) and not any(
                address in ipaddress.ip_network(each) for each in block.get("except", [])
            )
        metadata = self.pods[key]["metadata"]
        if "namespaceSelector" in peer:
            if not _selects(peer["namespaceSelector"], self.namespaces[metadata["namespace"]]):
                return False
        elif metadata["namespace"] != policy["metadata"]["namespace"]:
            return False
        return _selects(peer.get("podSelector", {}), metadata["labels"])

    def _is_port(self, wanted: Object, destination: str, protocol: str, port: int) -> bool:
        if wanted.get("protocol", "TCP") != protocol:
            return False
        number = wanted.get("port")
        if number is None:
            return True
        if isinstance(number, str):
            containers = self.pods[destination]["spec"]["containers"]
            return any(
                each["name"] == number and each["protocol"] == protocol and each["containerPort"] == port
                for container in containers
                for each in container["ports"]
            )
        return bool(number <= port <= wanted.get("endPort", number))
