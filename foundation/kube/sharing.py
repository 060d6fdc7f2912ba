"""Equal parts of many objects kept once, because the pods of a cluster say mostly the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import force_setattr

from foundation.kube.models.core import Pod
from foundation.kube.models.meta import KubernetesObject

PARTS = 1 << 14
"""Distinct parts remembered; then all are forgotten, and sharing starts over. Objects keep what they share."""


class Sharing:
    """Replaces parts of freshly decoded objects by equal ones seen before.

    Of 10,000 pods half of the memory is labels, owners and containers that a pod has in common with its siblings. The
    objects are immutable, so nobody can tell.
    """

    def __init__(self) -> None:
        self._parts: dict[Any, Any] = {}
        self._part = self._parts.setdefault
        self._labels: dict[tuple[tuple[str, str], ...], Mapping[str, str]] = {}

    def share(self, new: KubernetesObject) -> None:
        """Make `new` share its large parts; to be called before anybody sees it."""
        if len(self._parts) > PARTS or len(self._labels) > PARTS:
            self._parts.clear()
            self._labels.clear()
        part = self._part
        metadata = new.metadata
        labels, owners = metadata.labels, metadata.owner_references
        if labels:
            force_setattr(metadata, "labels", self._labels.setdefault(tuple(labels.items()), labels))
        if owners:
            force_setattr(metadata, "owner_references", part(owners, owners))
        if isinstance(new, Pod):
            containers = new.spec.containers
            force_setattr(new.spec, "containers", part(containers, containers))
