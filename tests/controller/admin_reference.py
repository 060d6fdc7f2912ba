"""What the network policy API says AdminNetworkPolicies mean, on top of `reference`: judge of the ACLs.

Source: policy.networking.k8s.io/v1alpha1 API reference.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from tests.controller.reference import Cluster, Object, _selects


class AdminCluster(Cluster):
    """A cluster with AdminNetworkPolicies, perhaps a baseline."""

    def __init__(
        self, *given: Any, admin: Sequence[Object], baseline: Object | None, **more: Mapping[str, Any]
    ) -> None:
        super().__init__(*given, **more)
        self.admin = sorted(admin, key=lambda each: (each["spec"]["priority"], each["metadata"]["name"]))
        self.baseline = baseline

    def _side(self, direction: str, subject: str, peer: str, destination: str, protocol: str, port: int) -> bool:
        question = (subject, peer, destination, protocol, port)
        for policy in self.admin:
            verdict = self._ask(policy, direction, *question)
            if verdict == "Pass":
                break
            if verdict is not None:
                return verdict == "Allow"
        if self._isolated(direction, subject) or self.baseline is None:
            return super()._side(direction, *question)
        return self._ask(self.baseline, direction, *question) != "Deny"

    def _isolated(self, direction: str, subject: str) -> bool:
        return any(
            direction in policy["spec"].get("policyTypes", ["Ingress"]) and self._is_subject(policy, subject)
            for policy in self.policies
        )

    def _ask(
        self, policy: Object, direction: str, subject: str, peer: str, destination: str, protocol: str, port: int
    ) -> str | None:
        if not self._chosen(policy["spec"]["subject"], subject):
            return None
        for rule in policy["spec"].get(direction.lower(), []):
            peers = rule["from" if direction == "Ingress" else "to"]
            ports = rule.get("ports")
            if any(self._chosen(each, peer) for each in peers) and (
                not ports or any(self._port(each, destination, protocol, port) for each in ports)
            ):
                return str(rule["action"])
        return None

    def _chosen(self, chooser: Object, key: str) -> bool:
        if "networks" in chooser:
            address = ipaddress.ip_address(self.addresses[key])
            return any(address in ipaddress.ip_network(each) for each in chooser["networks"])
        metadata = self.pods[key]["metadata"]
        labels = self.namespaces[metadata["namespace"]]
        if "namespaces" in chooser:
            return _selects(chooser["namespaces"], labels)
        pods = chooser["pods"]
        return _selects(pods["namespaceSelector"], labels) and _selects(pods["podSelector"], metadata["labels"])

    def _port(self, wanted: Object, destination: str, protocol: str, port: int) -> bool:
        if "portNumber" in wanted:
            number = wanted["portNumber"]
            return bool(number["protocol"] == protocol and number["port"] == port)
        if "portRange" in wanted:
            span = wanted["portRange"]
            return bool(span["protocol"] == protocol and span["start"] <= port <= span["end"])
        return self._is_port({"port": wanted["namedPort"], "protocol": protocol}, destination, protocol, port)
