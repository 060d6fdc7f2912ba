"""Retried calls join running work; others are turned away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.daemon.work import Conflict, Joining, StillRunning

Jumping = Callable[[Callable[[], Awaitable[Any]]], Any]


def work(seconds: float, result: object = "done", started: list[float] | None = None) -> Callable[[], Awaitable[Any]]:
    async def start() -> Any:
        if started is not None:
            started.append(asyncio.get_running_loop().time())
        await asyncio.sleep(seconds)
        if isinstance(result, Exception):
            raise result
        return result

    return start


def test_equal_calls_share_one_piece_of_work(jumping: Jumping) -> None:
    started: list[float] = []

    async def main() -> list[Any]:
        joining: Joining[str, str] = Joining(name="volume")
        calls = [joining.run("v", ("size", 1), work(2, "made", started), deadline=5) for _ in range(3)]
        return await asyncio.gather(*calls)

    assert jumping(main) == ["made"] * 3
    assert started == [0]


def test_other_parameters_are_a_conflict_and_other_keys_are_not(jumping: Jumping) -> None:
    async def main() -> None:
        joining: Joining[str, str] = Joining(name="volume")
        first = asyncio.create_task(joining.run("v", "8 GiB", work(2), deadline=5))
        await asyncio.sleep(0)
        assert joining.running("v")
        with pytest.raises(Conflict, match=r"^volume v: a call with other parameters is still running; retry when"):
            await joining.run("v", "9 GiB", work(0), deadline=5)
        assert await joining.run("w", "9 GiB", work(1, "other"), deadline=5) == "other"
        assert await first == "done"
        assert not joining.running("v")
        assert await joining.run("v", "9 GiB", work(1, "anew"), deadline=5) == "anew"

    jumping(main)


def test_a_caller_waits_for_the_end_of_work_that_nobody_asked_for(jumping: Jumping) -> None:
    async def main() -> list[str]:
        joining: Joining[str, str] = Joining(name="volume")
        repair = asyncio.create_task(
            joining.run("v", "as it was", work(2, ValueError("gone")), deadline=9, background=True)
        )
        await asyncio.sleep(0)
        with pytest.raises(StillRunning, match=r"^volume v: still running after 1 s; retry to join it$"):
            await joining.run("v", "detach", work(0), deadline=1)
        calls = [joining.run("v", wanted, work(3, wanted), deadline=9) for wanted in ("detach", "detach", "as it was")]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert asyncio.get_running_loop().time() == 5
        with pytest.raises(ValueError, match="gone"):
            await repair
        return [str(answer) for answer in answers]

    assert jumping(main) == ["detach", "detach", "gone"]


def test_callers_who_want_different_things_after_a_repair_do_not_wait_for_one_another(jumping: Jumping) -> None:
    async def main() -> list[str]:
        joining: Joining[str, str] = Joining(name="volume")
        repair = asyncio.create_task(joining.run("v", "as it was", work(2), deadline=9, background=True))
        await asyncio.sleep(0)
        calls = [joining.run("v", wanted, work(3, wanted), deadline=9) for wanted in ("detach", "attach")]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        await repair
        return [type(answer).__name__ for answer in answers]

    assert jumping(main) == ["str", "Conflict"]


def test_work_outlives_its_caller_s_deadline_and_a_retry_joins_it(jumping: Jumping) -> None:
    started: list[float] = []

    async def main() -> None:
        joining: Joining[str, str] = Joining(name="volume")
        for _ in range(2):
            with pytest.raises(StillRunning, match=r"^volume v: still running after 2 s; retry to join it$"):
                await joining.run("v", 1, work(5, "late", started), deadline=2)
        assert await joining.run("v", 1, work(5, "never started", started), deadline=2) == "late"
        assert asyncio.get_running_loop().time() == 5

    jumping(main)
    assert started == [0]


def test_work_outlives_a_cancelled_caller(jumping: Jumping) -> None:
    async def main() -> None:
        joining: Joining[str, str] = Joining()
        caller = asyncio.create_task(joining.run("v", 1, work(5, "late"), deadline=9))
        await asyncio.sleep(1)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert joining.running("v")
        assert await joining.run("v", 1, work(0, "wrong"), deadline=9) == "late"

    jumping(main)


def test_failure_reaches_all_who_wait_and_the_next_call_starts_anew(jumping: Jumping) -> None:
    async def main() -> None:
        joining: Joining[str, str] = Joining()
        failing = work(2, OSError("no space"))
        calls = [joining.run("v", 1, failing, deadline=5) for _ in range(2)]
        assert [str(error) for error in await asyncio.gather(*calls, return_exceptions=True)] == ["no space"] * 2
        assert await joining.run("v", 1, work(1, "second try"), deadline=5) == "second try"

    jumping(main)


def test_failure_nobody_waits_for_is_not_reported_as_lost(jumping: Jumping) -> None:
    complaints: list[Any] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        joining: Joining[str, str] = Joining()
        with pytest.raises(StillRunning):
            await joining.run("v", 1, work(2, OSError("x")), deadline=1)
        await asyncio.sleep(5)
        assert not joining.running("v")

    jumping(main)
    assert complaints == []


@pytest.mark.parametrize("deadline", [0, -3])
def test_a_deadline_that_has_passed_still_starts_the_work(jumping: Jumping, deadline: float) -> None:
    async def main() -> None:
        joining: Joining[str, str] = Joining()
        with pytest.raises(StillRunning):
            await joining.run("v", 1, work(3, "made"), deadline=deadline)
        assert await joining.run("v", 1, work(0, "wrong"), deadline=9) == "made"

    jumping(main)


def test_stop_ends_all_work_and_tells_the_callers_to_retry(jumping: Jumping) -> None:
    undone: list[str] = []

    async def careful() -> str:
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(1)
            undone.append("cleaned up")
        return "never"

    async def main() -> None:
        joining: Joining[str, str] = Joining(name="volume")
        caller = asyncio.create_task(joining.run("v", 1, careful, deadline=50))
        await asyncio.sleep(1)
        await joining.stop()
        assert undone == ["cleaned up"]
        with pytest.raises(StillRunning, match="stopped before it ended; retry"):
            await caller
        await joining.stop()

    jumping(main)


@dataclass(frozen=True)
class Call:
    at: int
    key: str
    fingerprint: int
    deadline: float
    seconds: float
    fails: bool


calls = st.lists(
    st.builds(
        Call,
        at=st.integers(0, 30),
        key=st.sampled_from("ab"),
        fingerprint=st.integers(0, 1),
        # Ends fall on quarters, deadlines on halves, calls on whole seconds: no two on one instant.
        deadline=st.integers(0, 8).map(lambda seconds: seconds + 0.5),
        seconds=st.integers(0, 12).map(lambda seconds: seconds + 0.25),
        fails=st.booleans(),
    ),
    max_size=20,
    unique_by=lambda call: (call.at, call.key),
)


def foretold(calls: list[Call]) -> list[str]:
    """What each call must come to, worked out on paper."""
    running: dict[str, tuple[float, Call]] = {}
    answers = {}
    for call in sorted(calls, key=lambda call: call.at):
        end, owner = running.get(call.key, (-1.0, call))
        if end < call.at:
            end, owner = call.at + call.seconds, call
            running[call.key] = (end, owner)
        if owner.fingerprint != call.fingerprint:
            answers[call] = "conflict"
        elif end > call.at + call.deadline:
            answers[call] = "still running"
        else:
            answers[call] = f"{'failed' if owner.fails else 'done'} by {owner.at}"
    return [answers[call] for call in calls]


@settings(max_examples=200, deadline=None)
@given(calls=calls)
def test_every_call_gets_the_answer_worked_out_on_paper(jumping: Jumping, calls: list[Call]) -> None:
    async def main() -> list[str]:
        joining: Joining[str, str] = Joining()

        async def one(call: Call) -> str:
            await asyncio.sleep(call.at)
            mark = f"by {call.at}"
            outcome: object = ValueError(f"failed {mark}") if call.fails else f"done {mark}"
            start = work(call.seconds, outcome)
            try:
                return await joining.run(call.key, call.fingerprint, start, deadline=call.deadline)
            except Conflict:
                return "conflict"
            except StillRunning:
                return "still running"
            except ValueError as error:
                return str(error)

        answers = await asyncio.gather(*map(one, calls))
        await joining.stop()
        return answers

    assert jumping(main) == foretold(calls)
