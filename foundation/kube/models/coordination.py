"""Leases (API group coordination.k8s.io/v1)."""

from __future__ import annotations

from foundation.kube.models.meta import KubernetesObject, Model


class LeaseSpec(Model, frozen=True):
    """Who holds it; times are RFC 3339 with microseconds."""

    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class Lease(KubernetesObject, frozen=True):
    """A lease."""

    spec: LeaseSpec = LeaseSpec()
