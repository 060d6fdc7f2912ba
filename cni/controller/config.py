"""The settings of cni-controller."""

from __future__ import annotations

from typing import Annotated

import msgspec

from foundation.daemon.configuration import DaemonConfig


class OvsdbConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A database of OVN."""

    remotes: str = "unix:/var/run/ovn/ovnnb_db.sock"
    """Comma-separated: unix:PATH, tcp:HOST:PORT, ssl:HOST:PORT."""
    ca: str = ""
    """Authority for ssl remotes: path of a PEM file."""
    certificate: str = ""
    """Our certificate for ssl remotes."""
    key: str = ""
    """Our key for ssl remotes."""


class LeaderElectionConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one of several replicas is chosen to write."""

    enabled: bool = True
    """Off only where a single replica runs."""
    namespace: str = "dpu-offload"
    """Namespace of the lease."""
    name: str = "cni-controller"
    """Name of the lease."""
    identity: str = ""
    """Unique among the replicas; empty: host name and process id."""
    lease_seconds: float = 10.0
    """After so long without renewal another replica takes over; it then needs a few seconds to take in the cluster."""


class DnsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What guests of virtual machines are told by DHCP, as pods are by kubelet."""

    servers: list[str] = []
    """Addresses of the cluster's DNS; empty: those of `service`."""
    service: str = "kube-system/kube-dns"
    """Namespace and name of the cluster's DNS service."""
    domain: str = "cluster.local"
    """The cluster's domain."""


class ClusterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The default network."""

    ranges: list[str] = []
    """Pod ranges, one a family: nodes without podCIDRs get subnets of them, nodes reach each other's pods in them,
    secondary networks keep out of them. Empty: such nodes stay without, gateways go by the nodes' podCIDRs."""
    host_prefixes: tuple[int, int] = (24, 64)
    """Prefix lengths of the nodes' subnets from `ranges`: IPv4, IPv6."""
    service_ranges: list[str] = []
    """Ranges of the cluster's service addresses: nodes send what is for them to their management port."""
    join_ranges: tuple[str, ...] = ("100.64.0.0/16", "fd98::/64")
    """Between the nodes' gateway routers and the rest; used nowhere else."""
    mtu: Annotated[int, msgspec.Meta(ge=576, le=9216)] = 1400
    """MTU of pods: what the underlay carries less 58 bytes (IPv4 underlay) or 78 bytes (IPv6) of Geneve."""
    dns: DnsConfig = DnsConfig()
    """Names for virtual machines."""


class StatusPageConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The page to look at."""

    listen: str = ""
    """host:port of the read-only page with pairs, ports and disks; empty: none. It asks for no password: who reaches it
    sees names of pods and claims."""


class ControllerConfig(DaemonConfig, frozen=True, kw_only=True):
    """Settings of cni-controller."""

    kubeconfig: str = ""
    """Path; empty: in-cluster, then $KUBECONFIG."""
    northbound: OvsdbConfig = OvsdbConfig()
    """OVN's northbound database."""
    leader_election: LeaderElectionConfig = LeaderElectionConfig()
    """Which replica writes."""
    cluster: ClusterConfig = ClusterConfig()
    """The default network."""
    status_page: StatusPageConfig = StatusPageConfig()
    """The page to look at."""
