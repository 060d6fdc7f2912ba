"""A choice of pods by labels: what subjects and peers of every kind of policy come down to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from cni.controller.errors import InvalidPolicy
from cni.controller.hashing import short_hash
from foundation.kube.models.meta import LabelSelector
from foundation.kube.selectors import InvalidSelector, matches, validate


def _canonical(selector: LabelSelector | None) -> object:
    if selector is None:
        return None
    expressions = sorted(
        (each.key, each.operator, sorted(each.values or ())) for each in selector.match_expressions or ()
    )
    return [sorted((selector.match_labels or {}).items()), expressions]


@dataclass(frozen=True, slots=True, eq=False)
class PodSelector:
    """Pods by labels: of one namespace, or (`namespace` empty) of the namespaces that `namespaces` selects.

    Two that mean the same have the same `id`, so they share one address set and port group. Equality is by id.
    """

    namespace: str
    namespaces: LabelSelector | None
    pods: LabelSelector
    id: str
    network: str = ""
    """Key of a secondary network whose ports and addresses are meant; empty: the default network's."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PodSelector) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def takes_namespace(self, name: str, labels: Mapping[str, str] | None) -> bool:
        """Whether pods of a namespace may be chosen; `labels` is None for a namespace that is not known (yet)."""
        if self.namespace:
            return name == self.namespace
        return labels is not None and matches(self.namespaces, labels)

    def takes_labels(self, labels: Mapping[str, str]) -> bool:
        """Whether a pod's labels fit."""
        return matches(self.pods, labels)


def pod_selector(
    *, namespace: str = "", namespaces: LabelSelector | None = None, pods: LabelSelector, network: str = ""
) -> PodSelector:
    """Give `namespace`, or `namespaces` to choose by labels. Raises InvalidPolicy for a selector without meaning."""
    try:
        validate(namespaces)
        validate(pods)
    except InvalidSelector as error:
        raise InvalidPolicy(str(error)) from None
    text = json.dumps([namespace, _canonical(namespaces), _canonical(pods), network])
    return PodSelector(namespace, namespaces, pods, short_hash(text), network)


def every_pod(network: str = "") -> PodSelector:
    """All pods on a network."""
    return pod_selector(namespaces=LabelSelector(), pods=LabelSelector(), network=network)
