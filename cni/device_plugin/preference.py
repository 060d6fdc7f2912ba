"""Which of a resource's free devices a container should get."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

from cni.device_plugin.config import Packing
from cni.device_plugin.errors import BadRequest

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Place:
    """Where a device sits. `numa_node` -1: near none in particular; `index` orders the VFs of one PF."""

    numa_node: int
    pf: str
    index: int


def prefer(
    available: Collection[str],
    must_include: Collection[str],
    size: int,
    *,
    places: Mapping[str, Place],
    packing: Packing,
) -> list[str]:
    """`size` devices: on the fewest NUMA nodes, then on the fewest PFs, then by the packing rule, lowest index first.

    The packing rule decides between PFs that serve equally well: `packed` takes the one with the fewest free devices
    that suffice, `spread` the one with the most. Devices without a place come last: kubelet may not have heard yet that
    they are gone or unwell, and fails the pod where no preference is told. Raises BadRequest when the numbers
    contradict each other.
    """
    chosen = sorted(set(must_include))
    free = sorted(set(available) - set(chosen))
    if size < len(chosen) or size > len(chosen) + len(free):
        raise BadRequest(
            f"{size} devices are asked for, {len(chosen)} of them must be included and {len(free)} more are available"
        )
    placed = [device for device in free if device in places]
    while placed and len(chosen) < size:
        chosen += _next(placed, chosen, size - len(chosen), places, packing)
        placed = [device for device in placed if device not in chosen]
    return chosen + [device for device in free if device not in places][: size - len(chosen)]


def _next(
    free: Sequence[str], chosen: Sequence[str], wanted: int, places: Mapping[str, Place], packing: Packing
) -> list[str]:
    """Devices of one PF, as many as it can give of those wanted."""
    used_nodes = {places[device].numa_node for device in chosen if device in places}
    used_pfs = {places[device].pf for device in chosen if device in places}
    nodes = {
        node: _grouped(devices, lambda device: places[device].pf)
        for node, devices in _grouped(free, lambda device: places[device].numa_node).items()
    }

    def node_rank(node: int) -> tuple[bool, bool, int, int, int]:
        sizes = [len(devices) for devices in nodes[node].values()]
        suffices = sum(sizes) >= wanted
        return node not in used_nodes, not suffices, _pfs_needed(sizes, wanted), order(sum(sizes), suffices), node

    def pf_rank(pf: str) -> tuple[bool, bool, int, str]:
        suffices = len(pfs[pf]) >= wanted
        return pf not in used_pfs, not suffices, order(len(pfs[pf]), suffices), pf

    def order(count: int, suffices: bool) -> int:
        return count if suffices and packing == "packed" else -count

    pfs = nodes[min(nodes, key=node_rank)]
    return sorted(pfs[min(pfs, key=pf_rank)], key=lambda device: (places[device].index, device))[:wanted]


def _pfs_needed(sizes: Sequence[int], wanted: int) -> int:
    """Fewest PFs with these numbers of free devices that give `wanted`; 0 when all of them are too few."""
    given = accumulate(sorted(sizes, reverse=True))
    return next((count for count, total in enumerate(given, 1) if total >= wanted), 0)


def _grouped(devices: Sequence[str], key: Callable[[str], K]) -> dict[K, list[str]]:
    groups: dict[K, list[str]] = {}
    for device in devices:
        groups.setdefault(key(device), []).append(device)
    return groups
