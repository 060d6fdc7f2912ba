"""SIGKILL of real processes at each step of a claim's life: whoever retries finds afterwards what Kubernetes says.

csi-controller and the target die before or after each call between them, csi-node-host before or after each change
that it makes to its machine. Judged by looking at the target, the DPU and the mount table themselves.
"""

import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from benchmarks import report
from tests.csi_rig.life import Life
from tests.csi_rig.mortals import Deeds, mortals, nursery
from tests.csi_rig.plant import Plant

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]
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


@pytest.mark.parametrize("victim", ["csi-controller", "csi-node-host", "target"])
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
    for volume in list(life.volumes):
        await life.delete(volume)
    await life.check()
    assert await life.leftovers() == []
    report.merge(
        "faults.json",
        {f"SIGKILL of {victim}: {name}": {"points": each, "clean": each} for name, each in points.items() if each},
    )
    assert sum(points.values()) >= 20


async def _each_point(life: Life, executed: AtTheTarget | AtADeed, step: Step, undo: Step | None) -> int:
    """Until the step makes fewer calls or changes than the kill waits for: then every one has been tried."""
    points = 0
    for left in range(60):
        for after in (False, True):
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
