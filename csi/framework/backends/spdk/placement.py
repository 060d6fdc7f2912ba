"""Which pool gets a new volume: reachable from where it is wanted, then the one with most free space."""

from collections.abc import Iterable, Sequence

import msgspec

from csi.errors import OutOfRange, ResourceExhausted
from csi.framework.backend import Capacity, Segments, SizeRange
from csi.framework.sizes import MIB, rounded


class PoolState(msgspec.Struct, frozen=True, kw_only=True):
    """A pool that answers, as seen now; sizes in clusters of `cluster` bytes."""

    name: str
    topology: dict[str, str]
    cluster: int
    total: int
    free: int


def reaches(topology: Segments, term: Segments) -> bool:
    """Whether a node with segments `term` reaches a pool with `topology`."""
    return all(term.get(key) == value for key, value in topology.items())


def choose(
    pools: Sequence[PoolState],
    size: SizeRange,
    *,
    thick: bool,
    default: int,
    requisite: Iterable[Segments] = (),
    preferred: Iterable[Segments] = (),
) -> tuple[PoolState, int]:
    """The pool and the volume's bytes. `pools` are those which the StorageClass allows and which answer.

    Raises OutOfRange when the size can never be had, ResourceExhausted when there is no space or no reachable pool.
    """
    required = list(requisite)
    reachable = [pool for pool in pools if not required or any(reaches(pool.topology, term) for term in required)]
    if not reachable:
        raise ResourceExhausted(
            f"no storage pool is reachable from the topology asked for ({len(pools)} pools looked at)"
        )
    sized = [(pool, rounded(size, cluster=pool.cluster, default=default)) for pool in reachable]
    possible = [(pool, total) for pool, total in sized if total <= pool.total * pool.cluster]
    if not possible:
        raise OutOfRange(
            f"a volume of {size.required} bytes is larger than every pool "
            f"(largest: {max(pool.total * pool.cluster for pool in reachable)} bytes)"
        )
    fitting = [
        (pool, total) for pool, total in possible if pool.free * pool.cluster >= (total if thick else pool.cluster)
    ]
    if not fitting:
        raise ResourceExhausted(
            f"no pool has room for {size.required} bytes: most free is "
            f"{max(pool.free * pool.cluster for pool, _ in possible)} bytes"
        )
    for term in preferred:
        near = [candidate for candidate in fitting if reaches(candidate[0].topology, term)]
        if near:
            fitting = near
            break
    return max(fitting, key=lambda candidate: (candidate[0].free * candidate[0].cluster, candidate[0].name))


def refuse_oversized(pool: PoolState, size: int) -> None:
    if size > pool.total * pool.cluster:
        raise OutOfRange(f"{size} bytes are more than pool {pool.name} has in all ({pool.total * pool.cluster})")


def refuse_overfull(pool: PoolState, more: int) -> None:
    if more > pool.free * pool.cluster:
        raise ResourceExhausted(f"pool {pool.name} has {pool.free * pool.cluster} bytes free, {more} are wanted")


def room(pools: Sequence[PoolState], topology: Segments | None, *, thick: bool) -> Capacity:
    """Free bytes of the pools that nodes with these segments reach. A thin volume may be as large as its pool."""
    near = [pool for pool in pools if topology is None or reaches(pool.topology, topology)]
    sizes = [(pool.free if thick or not pool.free else pool.total) * pool.cluster for pool in near]
    return Capacity(
        available=sum(pool.free * pool.cluster for pool in near),
        largest=max(sizes, default=0),
        smallest=min((max(pool.cluster, MIB) for pool in near), default=MIB),
    )
