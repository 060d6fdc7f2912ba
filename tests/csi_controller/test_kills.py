"""SIGKILL of real processes at each step of a claim's life: whoever retries finds afterwards what Kubernetes says.

csi-controller and the target die before or after each call between them, csi-node-host before or after each change
that it makes to its machine. Judged by looking at the target, the DPU and the mount table themselves.
"""

import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from benchmarks import report
from tests.csi_rig.life import Life
from tests.csi_rig.mortals import Deeds, mortals, nursery
from tests.csi_rig.plant import Plant

pytestmark = [pytest.mark.root, pytest.mark.faults, pytest.mark.timeout(600)]
VICTIMS = ("csi-controller", "csi-node-host", "target")
SEQUENCES = 200
KILLS: list[int] = []
Step = Callable[[Life], Awaitable[None]]


@pytest.fixture(scope="module")
def borne(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[bytes], Deeds]]:
    with nursery(tmp_path_factory.mktemp("nursery")) as found:
        yield found


@pytest.fixture
async def life(bare: Plant, borne: tuple[subprocess.Popen[bytes], Deeds]) -> AsyncIterator[Life]:
    async with mortals(bare, *borne) as built:
        yield Life(built)


# Each step, with what undoes it so that it can be tried again; in the order in which a claim lives through them.
STEPS: list[tuple[str, Step, Step | None]] = [
    ("create", lambda life: life.create("a"), lambda life: life.delete("a")),
    ("snapshot", lambda life: life.snapshot("s", "a"), lambda life: life.delete_snapshot("s")),
    ("restore", lambda life: life.create("b", snapshot="s"), lambda life: life.delete("b")),
    ("clone", lambda life: life.create("c", volume="a"), lambda life: life.delete("c")),
    ("publish", lambda life: life.publish("a"), lambda life: life.unpublish("a")),
    ("stage", lambda life: life.stage("a"), lambda life: life.unstage("a")),
    ("mount", lambda life: life.mount("a"), lambda life: life.unmount("a")),
    ("expand", lambda life: life.expand("a"), None),
    ("unmount", lambda life: life.unmount("a"), lambda life: life.mount("a")),
    ("unstage", lambda life: life.unstage("a"), lambda life: life.stage("a")),
    ("unpublish", lambda life: life.unpublish("a"), lambda life: life.publish("a")),
    ("delete snapshot", lambda life: life.delete_snapshot("s"), lambda life: life.snapshot("s", "a")),
    ("delete", lambda life: life.delete("c"), lambda life: life.create("c", volume="a")),
]
ON_THE_HOST = ("stage", "mount", "unmount", "unstage")


class AtTheTarget:
    """Kills `csi-controller` or the target at a call between the two."""

    def __init__(self, life: Life, victim: str) -> None:
        self._wire, self._mortals, self._victim = life.mortals.wire, life.mortals, victim

    def arm(self, left: int, *, after: bool) -> None:
        self._wire.arm(left, after=after, kill=self._kill)

    def disarm(self) -> None:
        self._wire.disarm()

    @property
    def kills(self) -> int:
        return self._wire.kills

    async def _kill(self) -> None:
        if self._victim == "target":
            await self._mortals.plant.target.restart()
        else:
            await self._mortals.kill(self._victim)


class AtADeed:
    """Kills csi-node-host at a change that it makes to its machine."""

    def __init__(self, life: Life) -> None:
        self._mortals = life.mortals

    def arm(self, left: int, *, after: bool) -> None:
        self._mortals.deeds.arm(self._mortals.pids["csi-node-host"], left, after=after)

    def disarm(self) -> None:
        self._mortals.deeds.disarm()

    @property
    def kills(self) -> int:
        return self._mortals.kills


def executioner(life: Life, victim: str) -> AtTheTarget | AtADeed:
    return AtADeed(life) if victim == "csi-node-host" else AtTheTarget(life, victim)


@pytest.mark.parametrize("victim", VICTIMS)
async def test_a_kill_at_each_step(life: Life, victim: str) -> None:
    executed = executioner(life, victim)
    points: dict[str, int] = {}
    for name, step, undo in STEPS:
        if (name in ON_THE_HOST) == (victim == "csi-node-host") or name == "expand":
            points[name] = await _each_point(life, executed, step, undo)
        else:
            await step(life)
        if name == "mount":
            life.write("a")
    await life.end()
    assert await life.leftovers() == []
    report.merge(
        "faults.json",
        {f"SIGKILL of {victim}: {name}": {"points": each, "clean": each} for name, each in points.items() if each},
    )
    assert sum(points.values()) >= 20


async def _each_point(life: Life, executed: AtTheTarget | AtADeed, step: Step, undo: Step | None) -> int:
    """Until the step makes fewer calls or changes than the kill waits for: then every one has been tried.

    Before a call is after the one before it, for all that lasts; only a program may have begun and not ended.
    """
    points = 0
    for left in range(60):
        for after in (False, True) if left == 0 or isinstance(executed, AtADeed) else (True,):
            before = executed.kills
            executed.arm(left, after=after)
            await step(life)
            executed.disarm()
            await life.check()
            if executed.kills == before:
                return points
            points += executed.kills - before
            if undo is not None:
                await undo(life)
    raise AssertionError("the step has more calls than expected")


# Ends of a claim's life are drawn too: each sequence is undone by whoever has to, and then nothing may be left.
OPERATIONS = ("snapshot", "restore", "clone", "publish", "mount", "expand", "unmount", "unpublish", "delete", "create")
operation = st.tuples(
    st.sampled_from(OPERATIONS),
    st.sampled_from(VICTIMS),
    st.integers(0, 4),
    st.booleans(),
)


async def _operate(life: Life, what: str) -> None:
    """What a cluster could ask for next; nothing where Kubernetes would not."""
    published, mounted = "a" in life.contexts, "a" in life.mounted
    if what == "create" and "a" not in life.volumes:
        await life.create("a")
    elif "a" not in life.volumes:
        return
    elif what == "snapshot" and not life.snapshots:
        await life.snapshot("s", "a")
    elif what == "restore" and life.snapshots and "b" not in life.volumes:
        await life.create("b", snapshot="s")
    elif what == "clone" and "c" not in life.volumes:
        await life.create("c", volume="a")
    elif what == "publish" and not published:
        await life.publish("a")
    elif what == "mount" and published and not mounted:
        await life.stage("a")
        await life.mount("a")
        life.write("a")
    elif what == "expand":
        await life.expand("a")
    elif what == "unmount" and mounted:
        await life.unmount("a")
        await life.unstage("a")
    elif what == "unpublish" and published and not mounted:
        await life.unpublish("a")
    elif what == "delete" and not published:
        await life.delete("a")


@settings(
    max_examples=SEQUENCES,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
    database=None,
    derandomize=True,
)
@given(sequence=st.lists(operation, min_size=3, max_size=5))
async def test_any_sequence_with_any_kill(life: Life, sequence: list[tuple[str, str, int, bool]]) -> None:
    await life.create("a")
    for what, victim, left, after in sequence:
        executed = executioner(life, victim)
        before = executed.kills
        executed.arm(left, after=after)
        await _operate(life, what)
        executed.disarm()
        KILLS.append(executed.kills - before)
    await life.check()
    await life.end()
    assert await life.leftovers() == []


def test_the_sequences_killed_enough() -> None:
    kills = sum(KILLS)
    report.merge("faults.json", {f"SIGKILL in {SEQUENCES} sequences": {"points": kills, "clean": kills}})
    assert kills >= SEQUENCES // 2
