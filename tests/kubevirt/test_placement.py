"""Where a guest is, and where it may turn up next."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.controller.model.vm import Progress
from cni.controller.translate.placement import Launcher, Placement, place
from cni.controller.translate.vm import chassis

RUNNING, READY, FAILED = Progress.RUNNING, Progress.READY, Progress.FAILED
SOURCE = Launcher("ns/a", "n1", "2026-01-01T00:00:01Z")
TARGET = Launcher("ns/b", "n2", "2026-01-01T00:00:02Z", job="j1")
NEXT = Launcher("ns/c", "n1", "2026-01-01T00:00:03Z", job="j2")


def like(launcher: Launcher, **more: object) -> Launcher:
    fields = {name: getattr(launcher, name) for name in ("key", "node", "created", "leaving", "job", "ready")}
    return Launcher(**{**fields, **more})


ROWS = {
    "nothing runs": ([], {}, "", None),
    "one pod": ([SOURCE], {}, "n1", Placement(SOURCE)),
    "a target that is seen before its migration": ([SOURCE, TARGET], {}, "n1", Placement(SOURCE, TARGET)),
    "a migration runs": ([SOURCE, TARGET], {"j1": RUNNING}, "n1", Placement(SOURCE, TARGET)),
    "the guest runs on the target": ([SOURCE, TARGET], {"j1": READY}, "n1", Placement(TARGET)),
    "virt-handler noted it on the pod first": (
        [SOURCE, like(TARGET, ready=True)],
        {"j1": RUNNING},
        "n1",
        Placement(like(TARGET, ready=True)),
    ),
    "the migration failed": ([SOURCE, TARGET], {"j1": FAILED}, "n1", Placement(SOURCE)),
    "it failed after the guest was seen there": (
        [SOURCE, like(TARGET, ready=True)],
        {"j1": FAILED},
        "n1",
        Placement(SOURCE),
    ),
    "the target is being deleted": ([SOURCE, like(TARGET, leaving=True)], {"j1": RUNNING}, "n1", Placement(SOURCE)),
    "the source is being evicted": (
        [like(SOURCE, leaving=True), TARGET],
        {"j1": RUNNING},
        "n1",
        Placement(like(SOURCE, leaving=True), TARGET),
    ),
    "the target is lost": ([SOURCE], {"j1": RUNNING}, "n1", Placement(SOURCE)),
    "the source is lost before the guest moved": ([TARGET], {"j1": RUNNING}, "n1", Placement(TARGET)),
    "migrated, the source gone": ([TARGET], {"j1": READY}, "n2", Placement(TARGET)),
    "migrated, the migration's object gone": ([TARGET], {}, "n2", Placement(TARGET)),
    "back again": ([TARGET, NEXT], {"j1": READY, "j2": RUNNING}, "n2", Placement(TARGET, NEXT)),
    "back again, the first migration forgotten": ([TARGET, NEXT], {"j2": RUNNING}, "n2", Placement(TARGET, NEXT)),
    "back again, done": ([TARGET, NEXT], {"j1": READY, "j2": READY}, "n2", Placement(NEXT)),
    "another try while the failed target lingers": (
        [SOURCE, TARGET, NEXT],
        {"j1": FAILED, "j2": RUNNING},
        "n1",
        Placement(SOURCE, NEXT),
    ),
    "a restart while the old pod lingers": (
        [like(SOURCE, leaving=True), like(NEXT, job="")],
        {},
        "n1",
        Placement(like(NEXT, job="")),
    ),
    "only failed targets": ([TARGET, NEXT], {"j1": FAILED, "j2": FAILED}, "", Placement(NEXT)),
}


@pytest.mark.parametrize("case", ROWS)
def test_every_situation_of_the_table(case: str) -> None:
    launchers, migrations, runs_on, expected = ROWS[case]
    for order in itertools.permutations(launchers):
        assert place(order, migrations=migrations, runs_on=runs_on) == expected


@pytest.mark.parametrize("case", ROWS)
def test_pods_of_one_second_are_told_apart_whatever_their_names(case: str) -> None:
    launchers, migrations, runs_on, expected = ROWS[case]
    latest = next((each.job for each in reversed(launchers) if each.job in migrations), "")
    for names in itertools.permutations("abc", len(launchers)):
        renamed = {
            each.key: like(each, key=name, created=SOURCE.created) for each, name in zip(launchers, names, strict=True)
        }
        now = expected and Placement(renamed[expected.holder.key], expected.target and renamed[expected.target.key])
        found = place(renamed.values(), migrations=migrations, runs_on=runs_on, latest=latest)
        assert found == now


@given(
    st.lists(
        st.builds(
            Launcher,
            key=st.sampled_from("abcd"),
            node=st.sampled_from(["n1", "n2", "n3"]),
            created=st.sampled_from(["1", "2", "3"]),
            leaving=st.booleans(),
            job=st.sampled_from(["", "j1", "j2", "j3"]),
            ready=st.booleans(),
        ),
        unique_by=lambda each: each.key,
    ),
    st.dictionaries(st.sampled_from(["j1", "j2", "j3"]), st.sampled_from(Progress)),
    st.sampled_from(["", "n1", "n2"]),
)
def test_a_guest_is_always_in_exactly_one_of_its_pods(
    launchers: list[Launcher], migrations: dict[str, Progress], runs_on: str
) -> None:
    found = place(launchers, migrations=migrations, runs_on=runs_on)
    assert (found is None) == (not launchers)
    if found is None:
        return
    assert found.holder in launchers
    if found.target is not None:
        assert found.target in launchers
        assert found.target != found.holder
        assert found.target.job
        assert not found.target.leaving
        assert migrations.get(found.target.job) is not Progress.FAILED
    assert place(reversed(launchers), migrations=migrations, runs_on=runs_on) == found


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("a", "b", {"requested-chassis": "a,b", "activation-strategy": "rarp"}),
        ("a", "", {"requested-chassis": "a"}),
        ("a", "a", {"requested-chassis": "a"}),
        ("", "b", {}),
        ("", "", {}),
    ],
)
def test_options_of_a_port(source: str, target: str, expected: dict[str, str]) -> None:
    assert chassis(source, target) == expected
