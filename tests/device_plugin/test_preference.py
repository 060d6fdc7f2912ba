"""Which devices are preferred: NUMA first, then fewest PFs, then the packing rule."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.device_plugin.config import Packing
from cni.device_plugin.errors import BadRequest
from cni.device_plugin.preference import Place, prefer

# name: (NUMA node, PF, index)
MACHINE = {
    name: Place(numa, pf, index)
    for name, numa, pf, index in [
        ("a0", 0, "A", 0),
        ("a1", 0, "A", 1),
        ("b0", 0, "B", 0),
        ("b1", 0, "B", 1),
        ("b2", 0, "B", 10),
        ("b3", 0, "B", 9),
        ("c0", 1, "C", 0),
        ("c1", 1, "C", 1),
        ("c2", 1, "C", 2),
        ("x0", -1, "X", 0),
    ]
}
ALL = list(MACHINE)


@pytest.mark.parametrize(
    ("available", "must", "size", "packing", "expected"),
    [
        (ALL, [], 0, "packed", []),
        (ALL, [], 1, "packed", ["x0"]),  # the node with the fewest free
        (ALL, [], 1, "spread", ["b0"]),
        (["a0", "a1", "b0"], [], 1, "packed", ["b0"]),
        (["a0", "a1", "b0"], [], 1, "spread", ["a0"]),
        (ALL, [], 2, "packed", ["c0", "c1"]),  # one node, one PF; node 1 has fewer free than node 0
        (ALL, [], 3, "spread", ["b0", "b1", "b3"]),  # by index, not by name
        (ALL, [], 4, "packed", ["b0", "b1", "b3", "b2"]),
        (ALL, [], 5, "packed", ["b0", "b1", "b3", "b2", "a0"]),
        (["a0", "a1", "b0", "c0", "c1", "c2"], [], 3, "packed", ["c0", "c1", "c2"]),  # three of one PF, not 2 + 1
        (ALL, ["a1"], 2, "packed", ["a1", "a0"]),
        (ALL, ["c1"], 2, "spread", ["c1", "c0"]),
        (ALL, ["a0"], 4, "packed", ["a0", "a1", "b0", "b1"]),
        (["a0"], ["a0"], 1, "packed", ["a0"]),
        (ALL, [], 7, "packed", ["b0", "b1", "b3", "b2", "a0", "a1", "x0"]),
    ],
)
def test_preferred(available: list[str], must: list[str], size: int, packing: Packing, expected: list[str]) -> None:
    assert prefer(available, must, size, places=MACHINE, packing=packing) == expected


@pytest.mark.parametrize(("must", "size"), [([], 11), (["a0", "a1"], 1), ([], -1)])
def test_contradictions_are_refused(must: list[str], size: int) -> None:
    with pytest.raises(BadRequest, match="devices are asked for"):
        prefer(ALL, must, size, places=MACHINE, packing="packed")


def test_devices_that_have_gone_come_last_and_fail_nobody() -> None:
    assert prefer(["0", "a0", "zz"], [], 1, places=MACHINE, packing="packed") == ["a0"]
    assert prefer(["0", "a0", "zz"], ["yy"], 3, places=MACHINE, packing="packed") == ["yy", "a0", "0"]


places = st.builds(Place, st.integers(-1, 2), st.sampled_from("ABCD"), st.integers(0, 9)).map(
    lambda place: Place(place.numa_node, f"{place.pf}{place.numa_node}", place.index)  # a PF is on one node
)


@given(st.lists(places, min_size=1, max_size=9), st.data())
def test_no_choice_touches_fewer_nodes_or_pfs(found: list[Place], data: st.DataObject) -> None:
    machine = {f"d{number}": place for number, place in enumerate(found)}
    size = data.draw(st.integers(1, len(machine)))
    packing: Packing = data.draw(st.sampled_from(["packed", "spread"]))
    chosen = prefer(list(machine), [], size, places=machine, packing=packing)
    assert len(chosen) == len(set(chosen)) == size

    def cost(devices: tuple[str, ...]) -> tuple[int, int]:
        spots = [machine[device] for device in devices]
        return len({spot.numa_node for spot in spots}), len({spot.pf for spot in spots})

    best = min(map(cost, itertools.combinations(machine, size)))
    assert cost(tuple(chosen))[0] == best[0]
    if best[0] == 1:
        assert cost(tuple(chosen)) == best
