"""A fault, or a SIGKILL, at every step of ADD and DEL in each mode: the next call or start leaves nothing behind."""

from __future__ import annotations

import pytest

from benchmarks import report
from tests.node.stage import DEFAULT, DPU, HOST, Pod, Stage, vf_address

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(180)]

# (point, n-th passing in one ADD); both moments, before and after, are tried.
VETH = [("write", 1), ("create_veth", 1), ("configure", 1), ("plug", 1), ("installed", 1), ("write", 2)]
VF = [("write", 1), ("remove_altnames", 1), ("move", 1), ("configure", 1), ("link_plug", 1), ("write", 2)]
ON_DPU = [("permitted", 1), ("write", 1), ("plug", 1), ("installed", 1), ("write", 2)]
WALKS = {"default": (DEFAULT, DEFAULT, VETH), "host": (HOST, HOST, VF), "dpu": (HOST, DPU, ON_DPU)}
MOMENTS = ("before", "after")


async def _pod(stage: Stage, node: str) -> Pod:
    return await stage.pod(node, device=vf_address(2) if node == HOST else "")


@pytest.mark.parametrize("walk", sorted(WALKS))
async def test_a_failing_step_of_add_undoes_all(stage: Stage, walk: str) -> None:
    node, faulty, points = WALKS[walk]
    pod = await _pod(stage, node)
    clean = []
    try:
        for point, number in points:
            for moment in MOMENTS:
                stage.fault(faulty, f"fail {point} {moment} {number}")
                answer = await stage.call("ADD", pod)
                assert answer.status == 1, f"{point} {moment}: ADD did not fail"
                assert answer.code in (5, 11, 110, 111, 112), (point, moment, answer)
                stage.fault(faulty, "")
                await stage.clean(pod)
                clean.append(f"{point} {moment}")
        await stage.add(pod)
        await stage.delete(pod)
        await stage.clean(pod)
    finally:
        stage.fault(faulty, "")
        report.merge("faults.json", {f"ADD {walk}, failing step": {"points": len(points) * 2, "clean": len(clean)}})
        await stage.forget(pod)


@pytest.mark.parametrize("walk", sorted(WALKS))
async def test_a_kill_at_any_step_of_add_is_recovered(stage: Stage, walk: str) -> None:
    """Between any two steps, and after the last one."""
    node, faulty, points = WALKS[walk]
    pod = await _pod(stage, node)
    moments = [*((point, "before", number) for point, number in points), (points[-1][0], "after", points[-1][1])]
    clean = []
    try:
        for point, moment, number in moments:
            stage.fault(faulty, f"kill {point} {moment} {number}")
            answer = await stage.call("ADD", pod)
            assert (answer.status, answer.code) == (1, 11), (point, moment, answer)
            assert stage.processes.pop(faulty).wait(20) == -9, f"{point} {moment} did not kill"
            stage.fault(faulty, "")
            await stage.start(faulty)
            await stage.delete(pod)
            await stage.clean(pod)
            clean.append(f"{point} {moment}")
        await stage.settled()
        await stage.add(pod)
        await stage.delete(pod)
        await stage.clean(pod)
    finally:
        stage.fault(faulty, "")
        await stage.settled()
        report.merge("faults.json", {f"ADD {walk}, SIGKILL": {"points": len(moments), "clean": len(clean)}})
        await stage.forget(pod)
