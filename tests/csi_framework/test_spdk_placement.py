"""Placement and sizes of SPDK volumes, as tables with properties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi.errors import CsiError, InvalidArgument, OutOfRange, ResourceExhausted
from csi.framework.backend import SizeRange
from csi.framework.backends.spdk.placement import PoolState, choose, room
from csi.framework.sizes import MIB, rounded

GIB = 1 << 30


def pool(name: str, *, free: int, total: int = 1000, cluster: int = 4 * MIB, **topology: str) -> PoolState:
    return PoolState(name=name, topology=dict(topology), cluster=cluster, total=total, free=free)


@pytest.mark.parametrize(
    ("size", "cluster", "expected"),
    [
        (SizeRange(), 4 * MIB, GIB),
        (SizeRange(1), 4 * MIB, 4 * MIB),
        (SizeRange(4 * MIB), 4 * MIB, 4 * MIB),
        (SizeRange(4 * MIB + 1), 4 * MIB, 8 * MIB),
        (SizeRange(0, 10 * MIB), 4 * MIB, 8 * MIB),
        (SizeRange(1, 0), 64 * 1024, MIB),
        (SizeRange(5 * MIB, 9 * MIB), 4 * MIB, 8 * MIB),
    ],
)
def test_sizes_are_whole_clusters(size: SizeRange, cluster: int, expected: int) -> None:
    assert rounded(size, cluster=cluster, default=GIB) == expected


@pytest.mark.parametrize(
    ("size", "error"),
    [
        (SizeRange(5 * MIB, 5 * MIB), OutOfRange),
        (SizeRange(0, MIB), OutOfRange),
        (SizeRange(2, 1), InvalidArgument),
        (SizeRange(-1), InvalidArgument),
        (SizeRange(0, -5), InvalidArgument),
    ],
)
def test_impossible_ranges(size: SizeRange, error: type[CsiError]) -> None:
    with pytest.raises(error):
        rounded(size, cluster=4 * MIB, default=GIB)


@given(st.integers(0, 1 << 45), st.integers(0, 1 << 45), st.sampled_from([MIB, 4 * MIB, 3 * MIB, 65536]))
def test_a_size_is_always_within_what_was_asked(required: int, limit: int, cluster: int) -> None:
    try:
        size = rounded(SizeRange(required, limit), cluster=cluster, default=GIB)
    except (OutOfRange, InvalidArgument):
        return
    assert size >= max(required, 1)
    assert not limit or size <= limit
    assert size % MIB == 0


def test_most_free_space_wins() -> None:
    chosen, size = choose([pool("a", free=5), pool("b", free=9)], SizeRange(MIB), thick=True, default=GIB)
    assert (chosen.name, size) == ("b", 4 * MIB)


def test_preferred_topology_wins_over_space_and_requisite_is_binding() -> None:
    pools = [pool("a", free=900, zone="1"), pool("b", free=10, zone="2"), pool("c", free=5, zone="3")]
    terms = [{"zone": "2", "rack": "x"}, {"zone": "3"}]
    chosen, _ = choose(pools, SizeRange(MIB), thick=True, default=GIB, requisite=terms, preferred=[{"zone": "3"}])
    assert chosen.name == "c"
    chosen, _ = choose(pools, SizeRange(MIB), thick=True, default=GIB, requisite=terms)
    assert chosen.name == "b"


@pytest.mark.parametrize(
    ("pools", "thick", "requisite", "error"),
    [
        ([pool("a", free=9, zone="1")], True, [{"zone": "2"}], ResourceExhausted),
        ([pool("a", free=9, total=10)], False, [], OutOfRange),
        ([pool("a", free=9)], True, [], ResourceExhausted),
        ([pool("a", free=0)], False, [], ResourceExhausted),
        ([], False, [], ResourceExhausted),
    ],
)
def test_no_place(pools: list[PoolState], thick: bool, requisite: list[dict[str, str]], error: type[CsiError]) -> None:
    with pytest.raises(error):
        choose(pools, SizeRange(50 * 4 * MIB), thick=thick, default=GIB, requisite=requisite)


def test_room() -> None:
    pools = [pool("a", free=5, zone="1"), pool("b", free=7)]
    thick = room(pools, {"zone": "2"}, thick=True)
    assert (thick.available, thick.largest, thick.smallest) == (28 * MIB, 28 * MIB, 4 * MIB)
    assert room(pools, None, thick=False).largest == 4000 * MIB
    assert room([], None, thick=True).available == 0
