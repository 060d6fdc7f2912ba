"""Random sequences of ADD, DEL, CHECK, GC and SIGKILL on several pods end clean, whatever their order."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from benchmarks import report
from tests.node.stage import DEFAULT, DPU, HOST, MODES, Pod, Stage, vf_address

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(400)]

SEQUENCES, STEPS, KILLS = 200, 3, 2
SLOTS = st.integers(0, 3)


class Machine(RuleBasedStateMachine):
    """Four pods: two plain ones, two with VFs. The model is which of them are attached."""

    stage: ClassVar[Stage]
    loop: ClassVar[asyncio.AbstractEventLoop]
    pods: ClassVar[list[Pod]]
    sequences: ClassVar[int] = 0
    clean: ClassVar[int] = 0
    kills: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.attached: set[int] = set()
        type(self).sequences += 1

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    @rule(slot=SLOTS)
    def add(self, slot: int) -> None:
        self.do(self.stage.add(self.pods[slot]))
        self.attached.add(slot)

    @rule(slot=SLOTS)
    def delete(self, slot: int) -> None:
        self.do(self.stage.delete(self.pods[slot]))
        self.attached.discard(slot)

    @rule(slot=SLOTS)
    def check(self, slot: int) -> None:
        pod = self.pods[slot]
        answer = self.do(self.stage.call("CHECK", pod, self.stage.conf(pod, prevResult=pod.result)))
        assert (answer.status == 0) == (slot in self.attached), answer

    @rule(keep=st.sets(SLOTS))
    def gc(self, keep: set[int]) -> None:
        for node, own in ((DEFAULT, {0, 1}), (HOST, {2, 3})):
            listed = [{"containerID": self.pods[slot].container, "ifname": "eth0"} for slot in sorted(keep & own)]
            conf = self.stage.conf() | {"cni.dev/valid-attachments": listed}
            answer = self.do(self.stage.call("GC", None, conf, node=node))
            assert answer.status == 0, answer
        self.attached &= keep

    @precondition(lambda self: self.kills < KILLS and self.attached)
    @rule(node=st.sampled_from((DEFAULT, HOST, DPU)))
    def kill(self, node: str) -> None:
        type(self).kills += 1
        self.stage.kill(node)
        self.do(self.stage.settled())

    def teardown(self) -> None:
        for slot in sorted(self.attached):
            self.do(self.stage.delete(self.pods[slot]))
        left = [name for node in MODES for name in self.stage.records(node)]
        assert left == []
        type(self).clean += 1


async def test_random_sequences_end_clean(stage: Stage) -> None:
    await stage.settled()
    Machine.stage, Machine.loop = stage, asyncio.get_running_loop()
    Machine.pods = [await stage.pod(DEFAULT), await stage.pod(DEFAULT)]
    Machine.pods += [await stage.pod(HOST, device=vf_address(index)) for index in range(2)]
    chosen = settings(
        max_examples=SEQUENCES,
        stateful_step_count=STEPS,
        deadline=None,
        derandomize=True,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    try:
        await asyncio.to_thread(run_state_machine_as_test, Machine, settings=chosen)
        await stage.clean(*Machine.pods)
    finally:
        figures = {"points": Machine.sequences, "clean": Machine.clean}
        report.merge("faults.json", {"random ADD, DEL, CHECK, GC, SIGKILL sequences": figures})
        await stage.forget(*Machine.pods)
