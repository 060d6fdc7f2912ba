"""Equal parts of many objects kept once, because the pods of a cluster say mostly the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from msgspec.structs import force_setattr

from foundation.kube.models.core import Pod
from foundation.kube.models.meta import KubernetesObject

V = TypeVar("V")

PARTS = 1 << 14
"""Distinct parts remembered; then all are forgotten, and sharing starts over. Objects keep what they share."""


class Sharing:
    """Replaces parts of freshly decoded objects by equal ones seen before.

    Of 10,000 pods half of the memory is labels, owners and containers that a pod has in common with its siblings. The
    objects are immutable, so nobody can tell.
    """

    def __init__(self) -> None:
        self._parts: dict[Any, Any] = {}
        self._labels: dict[tuple[tuple[str, str], ...], Mapping[str, str]] = {}

    def share(self, new: KubernetesObject, old: KubernetesObject | None = None) -> None:
        """Make `new` share its large parts; to be called before anybody sees it.

        First with its own former state `old`, whose parts are shared already: that costs a comparison and no hashing.
        """
        metadata = new.metadata
        labels, owners = metadata.labels, metadata.owner_references
        if labels:
            kept = old.metadata.labels if old is not None else None
            if kept != labels:
                kept = self._known_labels(labels)
            force_setattr(metadata, "labels", kept)
        if owners:
            force_setattr(metadata, "owner_references", self._known(owners, old and old.metadata.owner_references))
        if isinstance(new, Pod):
            before = old.spec.containers if isinstance(old, Pod) else None
            force_setattr(new.spec, "containers", self._known(new.spec.containers, before))

    def _known(self, value: V, old: V | None) -> V:
        if value == old:
            return old
        if len(self._parts) > PARTS:
            self._parts.clear()
        found: V = self._parts.setdefault(value, value)
        return found

    def _known_labels(self, labels: Mapping[str, str]) -> Mapping[str, str]:
        if len(self._labels) > PARTS:
            self._labels.clear()
        return self._labels.setdefault(tuple(labels.items()), labels)
