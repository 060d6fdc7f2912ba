"""Which NSID a volume gets on the shared controller."""

import pytest

from volume_attacher.actual import Actual, Parts, Shown
from volume_attacher.errors import FunctionTaken, NoFunction
from volume_attacher.functions import SHARED_NAMESPACES, Nsids
from volume_attacher.model import Place
from volume_attacher.naming import shared_id

PLACE = Place(0, 0, 1)


def _actual(*nsids: int) -> Actual:
    shown = tuple(Shown(nsid, "uuid", "volume") for nsid in nsids)
    return Actual(parts={shared_id(*PLACE.key): Parts(subsystem="nqn", namespaces=shown)})


def test_an_nsid_is_not_used_again_while_there_are_others() -> None:
    nsids = Nsids({})
    assert [nsids.take(PLACE, (), _actual(1)) for _ in range(3)] == [2, 3, 4]


def test_a_controller_that_never_goes_gives_the_longest_unused_nsids_again() -> None:
    nsids = Nsids({})
    taken = [nsids.take(PLACE, (), _actual(1, 700)) for _ in range(3 * SHARED_NAMESPACES)]
    assert not {1, 700} & set(taken)
    last: dict[int, int] = {}
    for turn, nsid in enumerate(taken):
        assert turn - last.get(nsid, -SHARED_NAMESPACES) >= SHARED_NAMESPACES - 2
        last[nsid] = turn


def test_it_is_full_only_when_all_are_in_use() -> None:
    every = range(1, SHARED_NAMESPACES + 1)
    nsids = Nsids({PLACE.key: 5})
    assert nsids.take(PLACE, (), _actual(*(n for n in every if n != 3))) == 3
    with pytest.raises(NoFunction):
        nsids.take(PLACE, (), _actual(*every))


def test_after_the_counter_was_lost_it_goes_on_above_what_is_in_use() -> None:
    assert Nsids({}).take(PLACE, (), _actual(2, 9)) == 10


def test_one_asked_for_is_given_unless_in_use() -> None:
    nsids = Nsids({PLACE.key: 5})
    assert nsids.take(PLACE, (), _actual(1), wanted=7) == 7
    assert nsids.take(PLACE, (), _actual(1, 7)) == 8
    with pytest.raises(FunctionTaken):
        nsids.take(PLACE, (), _actual(1, 7), wanted=7)
