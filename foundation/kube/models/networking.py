"""Network policies (API group networking.k8s.io/v1)."""

from __future__ import annotations

import msgspec

from foundation.kube.models.meta import KubernetesObject, LabelSelector, Model


class IPBlock(Model, frozen=True):
    """A prefix without the prefixes in `except_`."""

    cidr: str = ""
    except_: tuple[str, ...] | None = msgspec.field(name="except", default=None)


class NetworkPolicyPeer(Model, frozen=True):
    """Pods by selectors (absent is not the same as empty), or addresses."""

    pod_selector: LabelSelector | None = None
    namespace_selector: LabelSelector | None = None
    ip_block: IPBlock | None = None


class NetworkPolicyPort(Model, frozen=True):
    """A port: number, container port's name, or absent for all; with `end_port` a range."""

    protocol: str | None = None
    port: int | str | None = None
    end_port: int | None = None


class NetworkPolicyIngressRule(Model, frozen=True):
    """Who may come in; no `from_` means everybody, no `ports` every port."""

    from_: tuple[NetworkPolicyPeer, ...] | None = msgspec.field(name="from", default=None)
    ports: tuple[NetworkPolicyPort, ...] | None = None


class NetworkPolicyEgressRule(Model, frozen=True):
    """Where pods may go; no `to` means everywhere, no `ports` every port."""

    to: tuple[NetworkPolicyPeer, ...] | None = None
    ports: tuple[NetworkPolicyPort, ...] | None = None


class NetworkPolicySpec(Model, frozen=True):
    """Which pods, and what they may exchange."""

    pod_selector: LabelSelector = LabelSelector()
    policy_types: tuple[str, ...] | None = None
    ingress: tuple[NetworkPolicyIngressRule, ...] | None = None
    egress: tuple[NetworkPolicyEgressRule, ...] | None = None


class NetworkPolicy(KubernetesObject, frozen=True):
    """A network policy."""

    spec: NetworkPolicySpec = NetworkPolicySpec()
