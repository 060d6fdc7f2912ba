"""Secondary networks as the Network Plumbing Working Group defines them (API group k8s.cni.cncf.io)."""

from __future__ import annotations

from foundation.kube.models.meta import Condition, KubernetesObject, Model
from foundation.kube.models.networking import NetworkPolicySpec


class NetworkAttachmentDefinitionSpec(Model, frozen=True):
    """`config` is a CNI configuration as JSON text; "" refers to one on the node's disk."""

    config: str = ""


class NetworkAttachmentDefinition(KubernetesObject, frozen=True):
    """A secondary network."""

    spec: NetworkAttachmentDefinitionSpec = NetworkAttachmentDefinitionSpec()


class IPAMClaimSpec(Model, frozen=True):
    """The network (name in the CNI configuration) and the interface which the addresses are for."""

    network: str = ""
    interface: str = ""


class OwnerPod(Model, frozen=True):
    """The pod that uses the claim now."""

    name: str = ""


class IPAMClaimStatus(Model, frozen=True):
    """The addresses, each with its prefix length."""

    ips: tuple[str, ...] | None = None
    owner_pod: OwnerPod | None = None
    conditions: tuple[Condition, ...] | None = None


class IPAMClaim(KubernetesObject, frozen=True):
    """Addresses that outlive a pod."""

    spec: IPAMClaimSpec = IPAMClaimSpec()
    status: IPAMClaimStatus | None = None


class MultiNetworkPolicy(KubernetesObject, frozen=True):
    """A network policy for the networks named in its annotation `k8s.v1.cni.cncf.io/policy-for`."""

    spec: NetworkPolicySpec = NetworkPolicySpec()
