"""A network policy of any kind, as rules over selectors, blocks of addresses, ports."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cni.controller.errors import InvalidPolicy
from cni.controller.model.selector import PodSelector, pod_selector
from foundation.kube.models import cncf, networking
from foundation.kube.models.meta import LabelSelector, ObjectMeta

PROTOCOLS = ("TCP", "UDP", "SCTP")
POLICY_FOR = "k8s.v1.cni.cncf.io/policy-for"
EVERYTHING = LabelSelector()


@dataclass(frozen=True, slots=True)
class Block:
    """Addresses of `cidr` without those of `excepts`; all of one family."""

    cidr: str
    excepts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NodePeer:
    """Nodes by labels: all addresses of those nodes."""

    nodes: LabelSelector


@dataclass(frozen=True, slots=True)
class Ports:
    """A protocol's ports from `first` to `last`; all of them when `first` is 0; a container port by name if given."""

    protocol: str
    first: int = 0
    last: int = 0
    name: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """Lets pass (or not) what comes from or goes to any of `peers` on any of `ports`; None is everybody, every port."""

    peers: tuple[PodSelector | Block | NodePeer, ...] | None
    ports: tuple[Ports, ...] | None


@dataclass(frozen=True, slots=True)
class Policy:
    """A NetworkPolicy. `ingress` / `egress` None: it does not isolate in that direction."""

    namespace: str
    name: str
    subject: PodSelector
    ingress: tuple[Rule, ...] | None
    egress: tuple[Rule, ...] | None

    def rules(self) -> tuple[tuple[Literal["ingress", "egress"], tuple[Rule, ...]], ...]:
        """The directions in which it isolates, with their rules."""
        found: list[tuple[Literal["ingress", "egress"], tuple[Rule, ...]]] = []
        if self.ingress is not None:
            found.append(("ingress", self.ingress))
        if self.egress is not None:
            found.append(("egress", self.egress))
        return tuple(found)


def block(cidr: str, excepts: Sequence[str] = ()) -> Block:
    """Raises InvalidPolicy for what is no CIDR, or an exception that lies outside."""
    try:
        whole = ipaddress.ip_network(cidr, strict=False)
    except ValueError:
        raise InvalidPolicy(f"ipBlock cidr {cidr!r} is no CIDR") from None
    inside = []
    for text in excepts:
        try:
            part = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise InvalidPolicy(f"ipBlock except {text!r} is no CIDR") from None
        if part.version != whole.version or not part.subnet_of(whole):  # type: ignore[arg-type]  # same version by now
            raise InvalidPolicy(f"ipBlock except {text} is not inside of {cidr}")
        inside.append(str(part))
    return Block(str(whole), tuple(sorted(inside)))


def ports(protocol: str | None, port: int | str | None, end_port: int | None) -> Ports:
    """Raises InvalidPolicy for a protocol, a number or a range that cannot be."""
    protocol = protocol or "TCP"
    if protocol not in PROTOCOLS:
        raise InvalidPolicy(f"protocol {protocol!r} is none of {', '.join(PROTOCOLS)}")
    if port is None:
        if end_port is not None:
            raise InvalidPolicy(f"endPort {end_port} needs a port")
        return Ports(protocol)
    if isinstance(port, str):
        if end_port is not None:
            raise InvalidPolicy(f"endPort {end_port} cannot go with port name {port!r}")
        return Ports(protocol, name=port)
    last = port if end_port is None else end_port
    if not 1 <= port <= last <= 65535:
        raise InvalidPolicy(f"ports {port} to {last} are impossible: use 1 to 65535, the smaller first")
    return Ports(protocol, port, last)


def _peer(namespace: str, peer: networking.NetworkPolicyPeer, network: str) -> PodSelector | Block:
    if peer.ip_block is not None:
        if peer.pod_selector is not None or peer.namespace_selector is not None:
            raise InvalidPolicy("a peer has both an ipBlock and a selector")
        return block(peer.ip_block.cidr, peer.ip_block.except_ or ())
    if peer.namespace_selector is not None:
        return pod_selector(namespaces=peer.namespace_selector, pods=peer.pod_selector or EVERYTHING, network=network)
    if peer.pod_selector is not None:
        return pod_selector(namespace=namespace, pods=peer.pod_selector, network=network)
    raise InvalidPolicy("a peer has neither an ipBlock nor a selector")


def _rule(
    namespace: str,
    peers: Sequence[networking.NetworkPolicyPeer] | None,
    numbers: Sequence[networking.NetworkPolicyPort] | None,
    network: str,
) -> Rule:
    return Rule(
        peers=tuple(_peer(namespace, peer, network) for peer in peers) if peers else None,
        ports=tuple(ports(each.protocol, each.port, each.end_port) for each in numbers) if numbers else None,
    )


def parse(policy: networking.NetworkPolicy) -> Policy:
    """From the API's object (networking.k8s.io/v1 NetworkPolicySpec). Raises InvalidPolicy."""
    return _policy(policy.metadata, policy.spec, network="")


def parse_multi(policy: cncf.MultiNetworkPolicy) -> tuple[Policy, ...]:
    """One for each network that annotation policy-for names. Raises InvalidPolicy."""
    text = policy.metadata.annotations.get(POLICY_FOR, "")
    namespace = policy.metadata.namespace
    names = [each.strip() for each in text.split(",") if each.strip()]
    keys = [each if "/" in each else f"{namespace}/{each}" for each in names]
    if not keys:
        raise InvalidPolicy(f"annotation {POLICY_FOR} names no network")
    return tuple(_policy(policy.metadata, policy.spec, network=key) for key in dict.fromkeys(keys))


def _policy(metadata: ObjectMeta, spec: networking.NetworkPolicySpec, *, network: str) -> Policy:
    namespace = metadata.namespace
    types = spec.policy_types
    if not types:  # the API server fills them in for NetworkPolicy, nobody does for MultiNetworkPolicy
        types = ("Ingress", "Egress") if spec.egress else ("Ingress",)
    for each in types:
        if each not in ("Ingress", "Egress"):
            raise InvalidPolicy(f"policyType {each!r} is neither Ingress nor Egress")
    return Policy(
        namespace=namespace,
        name=metadata.name,
        subject=pod_selector(namespace=namespace, pods=spec.pod_selector, network=network),
        ingress=tuple(_rule(namespace, rule.from_, rule.ports, network) for rule in spec.ingress or ())
        if "Ingress" in types
        else None,
        egress=tuple(_rule(namespace, rule.to, rule.ports, network) for rule in spec.egress or ())
        if "Egress" in types
        else None,
    )
