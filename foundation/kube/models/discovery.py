"""Endpoint slices (API group discovery.k8s.io/v1)."""

from __future__ import annotations

from foundation.kube.models.meta import KubernetesObject, Model, ObjectReference


class EndpointConditions(Model, frozen=True):
    """State of an endpoint; an absent `ready` or `serving` counts as true, an absent `terminating` as false."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Endpoint(Model, frozen=True):
    """One backend of a service."""

    addresses: tuple[str, ...] = ()
    conditions: EndpointConditions = EndpointConditions()
    hostname: str | None = None
    node_name: str | None = None
    zone: str | None = None
    target_ref: ObjectReference | None = None


class EndpointPort(Model, frozen=True):
    """A port of all endpoints of the slice; no number means all ports."""

    name: str | None = None
    protocol: str | None = None
    port: int | None = None
    app_protocol: str | None = None


class EndpointSlice(KubernetesObject, frozen=True):
    """A part of a service's endpoints, all of one `address_type` (IPv4, IPv6, FQDN). An empty list arrives as null."""

    address_type: str = ""
    endpoints: tuple[Endpoint, ...] | None = None
    ports: tuple[EndpointPort, ...] | None = None
