"""A service: its addresses, its ports, its policies."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from cni.controller.errors import InvalidService
from foundation.kube.models import core

PROTOCOLS = ("TCP", "UDP", "SCTP")
DEFAULT_AFFINITY_SECONDS = 10800
PROXY_NAME = "service.kubernetes.io/service-proxy-name"
"""Label (well-known): somebody else than the cluster's own proxy serves this service."""


@dataclass(frozen=True, slots=True)
class Port:
    """One port; `node_port` 0: none."""

    name: str
    protocol: str
    number: int
    node_port: int


@dataclass(frozen=True, slots=True)
class Service:
    """A service with a load balancer. `affinity_seconds` 0: no session affinity.

    `external` are addresses from outside of the cluster: externalIPs, then those of the load balancer, which are in
    `balancer` too. `source_ranges`: whom the load balancer's addresses serve; None for everybody. `health_port`: where
    the load balancer asks nodes for their health; 0: nowhere.
    """

    namespace: str
    name: str
    cluster_ips: tuple[str, ...]
    external: tuple[str, ...]
    ports: tuple[Port, ...]
    affinity_seconds: int
    internal_local: bool
    external_local: bool
    publish_not_ready: bool
    balancer: tuple[str, ...] = ()
    source_ranges: tuple[str, ...] | None = None
    health_port: int = 0

    @property
    def per_node(self) -> bool:
        """Whether its rows depend on which nodes there are."""
        return self.internal_local or self.external_local or any(port.node_port for port in self.ports)


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise InvalidService(f"{text!r} is no IP address") from None


def _range(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text.strip(), strict=False))
    except ValueError:
        raise InvalidService(f"loadBalancerSourceRanges: {text!r} is no CIDR") from None


def _port(port: core.ServicePort, *, outside: bool) -> Port:
    if port.protocol not in PROTOCOLS:
        raise InvalidService(f"protocol {port.protocol!r} is none of {', '.join(PROTOCOLS)}")
    if not 1 <= port.port <= 65535 or not 0 <= port.node_port <= 65535:
        raise InvalidService(f"port {port.port} (node port {port.node_port}) is impossible: use 1 to 65535")
    return Port(port.name, port.protocol, port.port, port.node_port if outside else 0)


def parse(service: core.Service) -> Service:
    """From the API's object; one without cluster addresses (headless, external name), or of another proxy, has no ports
    left.

    Raises InvalidService.
    """
    spec, metadata = service.spec, service.metadata
    cluster_ips = spec.cluster_ips or ((spec.cluster_ip,) if spec.cluster_ip else ())
    cluster_ips = tuple(_address(ip) for ip in cluster_ips if ip != "None")
    served = bool(cluster_ips) and spec.type != "ExternalName" and PROXY_NAME not in metadata.labels
    balanced = spec.type == "LoadBalancer"
    ports = tuple(_port(each, outside=balanced or spec.type == "NodePort") for each in spec.ports or ())
    ingress = service.status.load_balancer.ingress or () if balanced else ()
    given = tuple(_address(each.ip) for each in ingress if each.ip and each.ip_mode != "Proxy")
    ranges = tuple(map(_range, spec.load_balancer_source_ranges or ())) if balanced else ()
    external_local = spec.external_traffic_policy == "Local"
    affinity = 0
    if spec.session_affinity == "ClientIP":
        config = spec.session_affinity_config
        timeout = config.client_ip.timeout_seconds if config is not None and config.client_ip is not None else None
        affinity = timeout or DEFAULT_AFFINITY_SECONDS
    return Service(
        namespace=metadata.namespace,
        name=metadata.name,
        cluster_ips=cluster_ips,
        external=tuple(dict.fromkeys((*map(_address, spec.external_ips or ()), *given))),
        ports=ports if served else (),
        affinity_seconds=affinity,
        internal_local=spec.internal_traffic_policy == "Local",
        external_local=external_local,
        publish_not_ready=spec.publish_not_ready_addresses,
        balancer=given,
        source_ranges=ranges or None,
        health_port=spec.health_check_node_port if served and balanced and external_local else 0,
    )
