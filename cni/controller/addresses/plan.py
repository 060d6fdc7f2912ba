"""Which addresses the whole cluster uses for what, as configured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cni.controller.addresses.subnets import SMALLEST
from cni.controller.config import ClusterConfig
from cni.controller.errors import InvalidPlan
from cni.controller.model.addressing import IPNetwork, networks


@dataclass(frozen=True, slots=True)
class Plan:
    """Ranges of pods, of services, between routers."""

    pods: tuple[IPNetwork, ...]
    services: tuple[IPNetwork, ...]
    join: tuple[IPNetwork, ...]

    @property
    def taken(self) -> tuple[IPNetwork, ...]:
        """All of them: no secondary network may have any part."""
        return (*self.pods, *self.services, *self.join)


def make(cluster: ClusterConfig) -> Plan:
    """Raises InvalidPlan, which names the setting, for what is no CIDR, too small, or used twice."""
    plan = Plan(
        pods=_read("ranges", cluster.ranges),
        services=_read("service_ranges", cluster.service_ranges),
        join=_read("join_ranges", cluster.join_ranges),
    )
    for setting, given in (("ranges", plan.pods), ("join_ranges", plan.join)):
        if len({each.version for each in given}) != len(given):
            raise InvalidPlan(f"cluster.{setting} has two ranges of one family: {', '.join(map(str, given))}")
    if not plan.join:
        raise InvalidPlan("cluster.join_ranges is empty: give one range a family")
    for index, one in enumerate(plan.taken):
        for other in plan.taken[index + 1 :]:
            if one.version == other.version and one.overlaps(other):
                raise InvalidPlan(f"cluster ranges {one} and {other} overlap: pods, services and join need their own")
    for whole in plan.pods:
        length = cluster.host_prefixes[0 if whole.version == 4 else 1]
        if not whole.prefixlen <= length or 1 << (whole.max_prefixlen - min(length, whole.max_prefixlen)) < SMALLEST:
            raise InvalidPlan(f"node subnets of /{length} do not fit into {whole}: change cluster.host_prefixes")
    return plan


def _read(setting: str, texts: Sequence[str]) -> tuple[IPNetwork, ...]:
    try:
        return networks(texts)
    except ValueError as error:
        raise InvalidPlan(f"cluster.{setting}: {error}") from None
