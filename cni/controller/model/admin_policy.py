"""An AdminNetworkPolicy, or the baseline one: ordered rules that allow, deny or pass on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cni.controller.errors import InvalidPolicy
from cni.controller.model.policy import EVERYTHING, Block, NodePeer, Ports, Rule, block, ports
from cni.controller.model.selector import PodSelector, pod_selector
from foundation.kube.models import policy as api

HIGHEST_PRIORITY = 1000


@dataclass(frozen=True, slots=True)
class AdminRule:
    """`action`: Allow, Deny or Pass (on to the network policies)."""

    action: str
    rule: Rule


@dataclass(frozen=True, slots=True)
class AdminPolicy:
    """`priority` None: the baseline, after all network policies. `fault`: what of it cannot be served."""

    name: str
    priority: int | None
    subject: PodSelector
    ingress: tuple[AdminRule, ...]
    egress: tuple[AdminRule, ...]
    fault: str = ""

    def rules(self) -> tuple[tuple[Literal["ingress", "egress"], tuple[Rule, ...]], ...]:
        """Both directions with their rules, whatever their actions."""
        return (
            ("ingress", tuple(each.rule for each in self.ingress)),
            ("egress", tuple(each.rule for each in self.egress)),
        )

    @property
    def passes(self) -> bool:
        """Whether any rule is a Pass."""
        return any(each.action == "Pass" for each in (*self.ingress, *self.egress))

    @property
    def levels(self) -> int:
        """How many priorities it needs."""
        return max(len(self.ingress), len(self.egress))


def _selector(subject: api.Subject | api.Peer) -> PodSelector:
    if subject.pods is not None:
        return pod_selector(namespaces=subject.pods.namespace_selector, pods=subject.pods.pod_selector)
    if subject.namespaces is not None:
        return pod_selector(namespaces=subject.namespaces, pods=EVERYTHING)
    raise InvalidPolicy("a subject or peer has neither namespaces nor pods")


def _peers(peers: Sequence[api.Peer]) -> tuple[PodSelector | Block | NodePeer, ...]:
    found: list[PodSelector | Block | NodePeer] = []
    for peer in peers:
        if peer.domain_names is not None:
            continue  # see `_fault`
        if peer.networks is not None:
            found += [block(cidr) for cidr in peer.networks]
        elif peer.nodes is not None:
            found.append(NodePeer(peer.nodes))
        else:
            found.append(_selector(peer))
    return tuple(found)


def _ports(wanted: Sequence[api.Port] | None) -> tuple[Ports, ...] | None:
    if not wanted:
        return None
    found = []
    for each in wanted:
        if each.port_number is not None:
            found.append(ports(each.port_number.protocol, each.port_number.port, None))
        elif each.port_range is not None:
            found.append(ports(each.port_range.protocol, each.port_range.start, each.port_range.end))
        elif each.named_port:
            # The name alone, whatever the protocol (policy.networking.k8s.io/v1alpha1 AdminNetworkPolicyPort).
            found += [ports(protocol, each.named_port, None) for protocol in ("TCP", "UDP", "SCTP")]
        else:
            raise InvalidPolicy("a port has neither portNumber, portRange nor namedPort")
    return tuple(found)


def _rule(action: str, peers: Sequence[api.Peer], wanted: Sequence[api.Port] | None, *, baseline: bool) -> AdminRule:
    allowed = ("Allow", "Deny") if baseline else ("Allow", "Deny", "Pass")
    if action not in allowed:
        raise InvalidPolicy(f"action {action!r} is none of {', '.join(allowed)}")
    if not peers:
        raise InvalidPolicy("a rule of an AdminNetworkPolicy needs at least one peer")
    return AdminRule(action, Rule(_peers(peers), _ports(wanted)))


def _fault(rules: Sequence[api.EgressRule]) -> str:
    """Names of the DNS are nobody here: the rule's other peers are served, and so is the rest of the policy, since a
    policy that is left out altogether would let pass what it denies."""
    unserved = [
        str(index) for index, each in enumerate(rules) if any(peer.domain_names is not None for peer in each.to)
    ]
    if not unserved:
        return ""
    return f"egress rule {', '.join(unserved)}: domainNames are not supported, so they match nothing: use networks"


def parse(policy: api.AdminNetworkPolicy | api.BaselineAdminNetworkPolicy) -> AdminPolicy:
    """From the API's object (policy.networking.k8s.io/v1alpha1). Raises InvalidPolicy."""
    spec = policy.spec
    priority = spec.priority if isinstance(spec, api.AdminNetworkPolicySpec) else None
    if priority is not None and not 0 <= priority <= HIGHEST_PRIORITY:
        raise InvalidPolicy(f"priority {priority} is impossible: use 0 to {HIGHEST_PRIORITY}")
    baseline = priority is None
    return AdminPolicy(
        name=policy.metadata.name,
        priority=priority,
        subject=_selector(spec.subject),
        ingress=tuple(_rule(each.action, each.from_, each.ports, baseline=baseline) for each in spec.ingress or ()),
        egress=tuple(_rule(each.action, each.to, each.ports, baseline=baseline) for each in spec.egress or ()),
        fault=_fault(spec.egress or ()),
    )
