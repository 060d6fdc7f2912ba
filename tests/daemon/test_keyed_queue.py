"""Work by key on a clock that jumps: order, coalescing, back-off."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.daemon import logs
from foundation.daemon.work import Backoff, KeyedQueue

STEADY = Backoff(initial=1, maximum=8, jitter=0)
Jumping = Callable[[Callable[[], Awaitable[Any]]], Any]


@dataclass
class Recorder:
    """A handler that takes `seconds`, fails as often as `failing` says, and writes down what happened."""

    seconds: float = 1.0
    failing: Counter[str] = field(default_factory=Counter)
    calls: list[tuple[str, float, float]] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    most: int = 0

    async def __call__(self, key: str) -> None:
        loop = asyncio.get_running_loop()
        assert key not in self.running, f"two calls for {key} at once"
        self.running.add(key)
        self.most = max(self.most, len(self.running))
        started = loop.time()
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.running.discard(key)
            self.calls.append((key, started, loop.time()))
        if self.failing[key]:
            self.failing[key] -= 1
            raise ValueError(f"no luck with {key}")

    def starts(self, key: str) -> list[float]:
        return [started for called, started, _ in self.calls if called == key]


async def during(queue: KeyedQueue[str], body: Callable[[], Awaitable[None]]) -> None:
    task = asyncio.create_task(queue.run())
    await body()
    assert not task.done(), "the queue must outlive whatever its handler does"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_many_adds_of_a_waiting_key_are_one_call(jumping: Jumping) -> None:
    recorder = Recorder()

    async def main() -> None:
        queue = KeyedQueue(recorder, workers=2, backoff=STEADY)
        for _ in range(5):
            queue.add("a")
        assert len(queue) == 1
        await during(queue, queue.idle)

    jumping(main)
    assert recorder.starts("a") == [0]


def test_adds_during_a_call_make_one_more_call_afterwards(jumping: Jumping) -> None:
    recorder = Recorder(seconds=2)

    async def main() -> None:
        queue = KeyedQueue(recorder, workers=4, backoff=STEADY)

        async def body() -> None:
            queue.add("a")
            await asyncio.sleep(1)
            for _ in range(3):
                queue.add("a")
            await queue.idle()

        await during(queue, body)

    jumping(main)
    assert recorder.starts("a") == [0, 2]


@pytest.mark.parametrize(("workers", "end"), [(1, 4), (2, 2), (4, 1), (9, 1)])
def test_different_keys_run_side_by_side_up_to_the_workers(jumping: Jumping, workers: int, end: float) -> None:
    recorder = Recorder()

    async def main() -> float:
        queue = KeyedQueue(recorder, workers=workers, backoff=STEADY)
        for key in "abcd":
            queue.add(key)
        await during(queue, queue.idle)
        return asyncio.get_running_loop().time()

    assert jumping(main) == end
    assert recorder.most == min(workers, 4)


def test_failure_is_repeated_after_growing_waits_and_forgotten_on_success(jumping: Jumping) -> None:
    recorder = Recorder(seconds=0.5, failing=Counter(a=3))
    seen: list[tuple[int, str]] = []

    async def main() -> None:
        queue = KeyedQueue(recorder, backoff=STEADY)

        async def body() -> None:
            queue.add("a")
            for wait in (1, 2, 2):
                await asyncio.sleep(wait)
                seen.append((queue.failures("a"), str(queue.errors.get("a"))))
            await asyncio.sleep(20)
            assert queue.errors == {}
            assert queue.failures("a") == 0

        await during(queue, body)

    jumping(main)
    # 0.5 s each call; waits of 1, 2, 4 s between.
    assert recorder.starts("a") == [0, 1.5, 4, 8.5]
    assert seen == [(1, "no luck with a"), (2, "no luck with a"), (3, "no luck with a")]


def test_one_key_s_failures_do_not_hold_up_another(jumping: Jumping) -> None:
    recorder = Recorder(failing=Counter(bad=99))

    async def main() -> None:
        queue = KeyedQueue(recorder, workers=1, backoff=Backoff(initial=1.5, jitter=0))

        async def body() -> None:
            queue.add("bad")
            queue.add("good")
            await queue.idle()
            assert asyncio.get_running_loop().time() == 2
            assert set(queue.errors) == {"bad"}

        await during(queue, body)

    jumping(main)
    assert recorder.starts("good") == [1]


def test_adding_a_key_ends_its_wait_but_not_its_count(jumping: Jumping) -> None:
    recorder = Recorder(seconds=0, failing=Counter(a=4))

    async def main() -> None:
        queue = KeyedQueue(recorder, backoff=STEADY)

        async def body() -> None:
            queue.add("a")
            await asyncio.sleep(0.25)
            queue.add("a")
            await asyncio.sleep(0.25)
            assert queue.failures("a") == 2
            await asyncio.sleep(30)

        await during(queue, body)

    jumping(main)
    # The second failure at 0.25 makes the wait 2 s, the third 4 s, the fourth 8 s.
    assert recorder.starts("a") == [0, 0.25, 2.25, 6.25, 14.25]


def test_delay_and_the_sooner_of_two_times(jumping: Jumping) -> None:
    recorder = Recorder(seconds=0)

    async def main() -> None:
        queue = KeyedQueue(recorder, backoff=STEADY)

        async def body() -> None:
            queue.add("a", delay=5)
            queue.add("a", delay=9)
            queue.add("b", delay=9)
            queue.add("b", delay=5)
            queue.add("c", delay=5)
            queue.add("c")
            await asyncio.sleep(20)

        await during(queue, body)

    jumping(main)
    assert {key: recorder.starts(key) for key in "abc"} == {"a": [5], "b": [5], "c": [0]}


def test_forgotten_key_is_not_tried_again(jumping: Jumping) -> None:
    recorder = Recorder(failing=Counter(a=9, b=9))

    async def main() -> None:
        queue = KeyedQueue(recorder, workers=1, backoff=STEADY)

        async def body() -> None:
            queue.add("a")
            await asyncio.sleep(1.5)
            assert queue.failures("a") == 1
            queue.forget("a")
            assert queue.failures("a") == 0
            assert queue.errors == {}
            queue.add("b")
            queue.forget("b")
            await queue.idle()
            queue.add("c")
            await queue.idle()

        await during(queue, body)

    jumping(main)
    assert [key for key, _, _ in recorder.calls] == ["a", "c"]


def test_call_over_the_deadline_is_a_failure(jumping: Jumping) -> None:
    recorder = Recorder(seconds=10)

    async def main() -> None:
        queue = KeyedQueue(recorder, backoff=STEADY, deadline=3)

        async def body() -> None:
            queue.add("a")
            await asyncio.sleep(3.5)
            assert isinstance(queue.errors["a"], TimeoutError)

        await during(queue, body)

    jumping(main)
    assert recorder.calls[0] == ("a", 0, 3)


def test_something_cancelled_inside_the_handler_does_not_end_a_worker(jumping: Jumping) -> None:
    handled: list[str] = []

    async def handler(key: str) -> None:
        if key == "odd" and not handled:
            inner = asyncio.get_running_loop().create_future()
            inner.cancel()
            handled.append("cancelled")
            await inner
        handled.append(key)

    async def main() -> None:
        queue = KeyedQueue(handler, workers=1, backoff=STEADY)

        async def body() -> None:
            queue.add("odd")
            queue.add("next")
            await queue.idle()
            assert queue.failures("odd") == 1
            await asyncio.sleep(5)

        await during(queue, body)

    jumping(main)
    assert handled == ["cancelled", "next", "odd"]


def test_key_is_on_the_log_lines_of_its_call(jumping: Jumping) -> None:
    seen: list[object] = []

    async def handler(key: str) -> None:
        seen.append(logs.context().get("key"))

    async def main() -> None:
        queue = KeyedQueue(handler, backoff=STEADY)
        queue.add("ns/a")
        await during(queue, queue.idle)

    jumping(main)
    assert seen == ["ns/a"]


def test_queue_without_workers_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one worker"):
        KeyedQueue(Recorder(), workers=0)


# The clock is a sum of waits.
ROUNDING = 1e-6

# Adds at quarter seconds, calls of 0.6 s: no two things fall on one instant.
adds = st.lists(
    st.tuples(st.integers(0, 40).map(lambda quarter: quarter * 0.25), st.sampled_from("abc"), st.booleans()),
    max_size=25,
)


@settings(max_examples=200, deadline=None)
@given(adds=adds, failing=st.dictionaries(st.sampled_from("abc"), st.integers(0, 4)), workers=st.integers(1, 4))
def test_whatever_is_added_is_handled_after_it_was_added(
    jumping: Jumping, adds: list[tuple[float, str, bool]], failing: dict[str, int], workers: int
) -> None:
    recorder = Recorder(seconds=0.6, failing=Counter(failing))
    backoff = Backoff(initial=0.7, maximum=5, jitter=0.5)

    async def main() -> None:
        queue = KeyedQueue(recorder, workers=workers, backoff=backoff)
        loop = asyncio.get_running_loop()
        for when, key, later in adds:
            loop.call_at(when, lambda key=key, later=later: queue.add(key, delay=0.3 if later else 0))

        async def body() -> None:
            await asyncio.sleep(200)
            assert queue.errors == {}
            assert len(queue) == 0

        await during(queue, body)

    jumping(main)
    assert recorder.most <= workers
    added = {key for _, key, _ in adds}
    assert {key for key, _, _ in recorder.calls} == added
    for key in added:
        last_add = max(when for when, k, _ in adds if k == key)
        starts = recorder.starts(key)
        assert starts[-1] >= last_add - ROUNDING
        of_key = [when for when, k, _ in adds if k == key]
        assert len(starts) <= len(of_key) + failing.get(key, 0)
        # Nothing is handled that nobody asked for: each start follows an add or a failure.
        assert starts[0] >= min(of_key) - ROUNDING
