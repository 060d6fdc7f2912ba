"""Cluster-wide network policies (API group policy.networking.k8s.io/v1alpha1)."""

from __future__ import annotations

import msgspec

from foundation.kube.models.meta import KubernetesObject, LabelSelector, Model


class NamespacedPods(Model, frozen=True):
    """Pods by labels in namespaces by labels."""

    namespace_selector: LabelSelector = LabelSelector()
    pod_selector: LabelSelector = LabelSelector()


class Subject(Model, frozen=True):
    """Whom a policy is about: exactly one of the two is present."""

    namespaces: LabelSelector | None = None
    pods: NamespacedPods | None = None


class Peer(Model, frozen=True):
    """The other side: exactly one field is present; the last three for egress only."""

    namespaces: LabelSelector | None = None
    pods: NamespacedPods | None = None
    nodes: LabelSelector | None = None
    networks: tuple[str, ...] | None = None
    domain_names: tuple[str, ...] | None = None


class PortNumber(Model, frozen=True):
    """One port."""

    protocol: str = "TCP"
    port: int = 0


class PortRange(Model, frozen=True):
    """Ports from `start` to `end`, both included."""

    protocol: str = "TCP"
    start: int = 0
    end: int = 0


class Port(Model, frozen=True):
    """Exactly one field is present."""

    port_number: PortNumber | None = None
    named_port: str | None = None
    port_range: PortRange | None = None


class IngressRule(Model, frozen=True):
    """`action` is Allow, Deny or (not in a baseline) Pass."""

    name: str = ""
    action: str = ""
    from_: tuple[Peer, ...] = msgspec.field(name="from", default=())
    ports: tuple[Port, ...] | None = None


class EgressRule(Model, frozen=True):
    """`action` is Allow, Deny or (not in a baseline) Pass."""

    name: str = ""
    action: str = ""
    to: tuple[Peer, ...] = ()
    ports: tuple[Port, ...] | None = None


class AdminNetworkPolicySpec(Model, frozen=True):
    """Rules before all NetworkPolicies; a lower `priority` (0 to 1000) goes first."""

    priority: int = 0
    subject: Subject = Subject()
    ingress: tuple[IngressRule, ...] | None = None
    egress: tuple[EgressRule, ...] | None = None


class AdminNetworkPolicy(KubernetesObject, frozen=True):
    """An administrator's policy."""

    spec: AdminNetworkPolicySpec = AdminNetworkPolicySpec()


class BaselineAdminNetworkPolicySpec(Model, frozen=True):
    """Rules after all NetworkPolicies."""

    subject: Subject = Subject()
    ingress: tuple[IngressRule, ...] | None = None
    egress: tuple[EgressRule, ...] | None = None


class BaselineAdminNetworkPolicy(KubernetesObject, frozen=True):
    """The administrator's fallback; the only object is named `default`."""

    spec: BaselineAdminNetworkPolicySpec = BaselineAdminNetworkPolicySpec()
