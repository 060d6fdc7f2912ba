"""A fault, or a SIGKILL, at every step of ADD and DEL in each mode: the next call or start leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import pytest

from benchmarks import report
from lab.network.commands import ip
from tests.node.stage import DEFAULT, DPU, HOST, Pod, Stage, vf_address, vf_netdev

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(240)]

Point = tuple[str, int]
"""A point of tests/node/faulty_node.py, and at its how many-th passing in one call."""


@dataclass(frozen=True)
class Walk:
    """Pods of `node` are attached while `faulty` has the fault."""

    node: str
    faulty: str
    add: Sequence[Point]
    delete: Sequence[Point]


WALKS = {
    "default": Walk(
        DEFAULT,
        DEFAULT,
        [("write", 1), ("create_veth", 1), ("configure", 1), ("plug", 1), ("installed", 1), ("write", 2)],
        [("write", 1), ("delete", 1), ("unplug", 1), ("forget", 1)],
    ),
    "host": Walk(
        HOST,
        HOST,
        [("write", 1), ("remove_altnames", 1), ("move", 1), ("configure", 1), ("link_plug", 1), ("write", 2)],
        [("write", 1), ("move", 1), ("restore", 1), ("link_unplug", 1), ("forget", 1)],
    ),
    "dpu": Walk(
        HOST,
        DPU,
        [("permitted", 1), ("write", 1), ("plug", 1), ("installed", 1), ("write", 2)],
        [("write", 1), ("unplug", 1), ("forget", 1)],
    ),
}
MOMENTS = ("before", "after")
ALTNAME = "a-name-of-udev"
EACH = pytest.mark.parametrize("walk", sorted(WALKS))


@contextlib.asynccontextmanager
async def figures(stage: Stage, name: str, points: int) -> AsyncIterator[list[str]]:
    """The points that ended clean, into faults.json."""
    clean: list[str] = []
    try:
        yield clean
    finally:
        report.merge("faults.json", {name: {"points": points, "clean": len(clean)}})


@contextlib.asynccontextmanager
async def pod_of(stage: Stage, walk: Walk) -> AsyncIterator[Pod]:
    """A pod that in the end can be attached and detached as any other; its function has every step's work to do."""
    await stage.settled()
    pod = await stage.pod(walk.node, device=vf_address(2) if walk.node == HOST else "")
    altname = f"dev {vf_netdev(2)} altname {ALTNAME}"
    if walk.node == HOST:
        await ip(f"link property add {altname}", namespace=stage.network.namespace(HOST))
    try:
        yield pod
        stage.fault(walk.faulty, "")
        await stage.settled()
        await stage.add(pod)
        await stage.delete(pod)
        await stage.clean(pod)
    finally:
        stage.fault(walk.faulty, "")
        await stage.settled()
        await stage.forget(pod)
        if walk.node == HOST:
            # Which it has again after all of that.
            await ip(f"link property del {altname}", namespace=stage.network.namespace(HOST))


async def killed(stage: Stage, node: str) -> None:
    """It has met its end; a new one takes its place, which serves already while it still clears up."""
    assert await asyncio.to_thread(stage.processes.pop(node).wait, 20) == -9, f"cni-node on {node} was not killed"
    stage.fault(node, "")
    await stage.start(node)


@EACH
async def test_a_failing_step_of_add_undoes_all(stage: Stage, walk: str) -> None:
    chosen = WALKS[walk]
    async with pod_of(stage, chosen) as pod, figures(stage, f"ADD {walk}, failing step", len(chosen.add) * 2) as clean:
        for point, number in chosen.add:
            for moment in MOMENTS:
                stage.fault(chosen.faulty, f"fail {point} {moment} {number}")
                answer = await stage.call("ADD", pod)
                assert answer.status == 1, f"{point} {moment}: ADD did not fail"
                assert answer.code in (5, 11, 110, 111, 112), (point, moment, answer)
                stage.fault(chosen.faulty, "")
                await stage.clean(pod)
                clean.append(f"{point} {moment}")


@EACH
async def test_a_failing_step_of_del_is_made_good(stage: Stage, walk: str) -> None:
    """In the background where only the switch failed, else by the runtime's next DEL."""
    chosen = WALKS[walk]
    async with (
        pod_of(stage, chosen) as pod,
        figures(stage, f"DEL {walk}, failing step", len(chosen.delete) * 2) as clean,
    ):
        for point, number in chosen.delete:
            for moment in MOMENTS:
                await stage.add(pod)
                stage.fault(chosen.faulty, f"fail {point} {moment} {number}")
                answer = await stage.call("DEL", pod)
                assert answer.code in (0, 5, 11, 110), (point, moment, answer)
                stage.fault(chosen.faulty, "")
                if answer.status:
                    await stage.delete(pod)
                await stage.clean(pod)
                clean.append(f"{point} {moment}")


@EACH
async def test_a_kill_at_any_step_of_add_is_recovered(stage: Stage, walk: str) -> None:
    """Between any two steps, and after the last one."""
    chosen = WALKS[walk]
    moments = [*((*point, "before") for point in chosen.add), (*chosen.add[-1], "after")]
    async with pod_of(stage, chosen) as pod, figures(stage, f"ADD {walk}, SIGKILL", len(moments)) as clean:
        for point, number, moment in moments:
            stage.fault(chosen.faulty, f"kill {point} {moment} {number}")
            answer = await stage.call("ADD", pod)
            assert (answer.status, answer.code) == (1, 11), (point, moment, answer)
            await killed(stage, chosen.faulty)
            await stage.delete(pod)
            await stage.clean(pod)
            clean.append(f"{point} {moment}")


@pytest.mark.faults
@EACH
async def test_a_kill_at_any_step_of_del_is_recovered(stage: Stage, walk: str) -> None:
    """What was begun is finished at the next start, and the runtime's repeated DEL succeeds."""
    chosen = WALKS[walk]
    moments = [*((*point, "before") for point in chosen.delete), (*chosen.delete[-1], "after")]
    async with pod_of(stage, chosen) as pod, figures(stage, f"DEL {walk}, SIGKILL", len(moments)) as clean:
        for point, number, moment in moments:
            await stage.settled()
            await stage.add(pod)
            stage.fault(chosen.faulty, f"kill {point} {moment} {number}")
            answer = await stage.call("DEL", pod)
            # A host whose DPU dies finishes in the background.
            assert answer.code in ((0,) if walk == "dpu" else (11,)), (point, moment, answer)
            await killed(stage, chosen.faulty)
            await stage.delete(pod)
            await stage.clean(pod)
            clean.append(f"{point} {moment}")
