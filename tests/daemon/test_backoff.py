"""How long is waited after the n-th failure."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.daemon.work import Backoff, Pauses


@pytest.mark.parametrize(
    ("failures", "draw", "expected"),
    [(1, 0.0, 0.1), (2, 0.0, 0.2), (3, 0.0, 0.4), (4, 0.0, 0.8), (5, 0.0, 1.0), (500_000, 0.0, 1.0), (3, 0.5, 0.36)],
)
def test_delay_doubles_up_to_its_maximum(failures: int, draw: float, expected: float) -> None:
    backoff = Backoff(initial=0.1, maximum=1.0, jitter=0.2)
    assert backoff.delay(failures, uniform=lambda: draw) == pytest.approx(expected)


@given(
    initial=st.floats(0.001, 10),
    span=st.floats(1, 1000),
    jitter=st.floats(0, 1),
    factor=st.floats(1, 10),
    failures=st.integers(1, 10**9),
)
def test_delay_is_never_over_maximum_nor_under_the_jitter_s_share(
    initial: float, span: float, jitter: float, factor: float, failures: int
) -> None:
    backoff = Backoff(initial=initial, maximum=initial * span, jitter=jitter, factor=factor)
    delay = backoff.delay(failures)
    assert initial * (1 - jitter) <= delay * (1 + 1e-9)
    assert delay <= backoff.maximum


def test_jitter_spreads_the_waiters() -> None:
    assert len({Backoff().delay(5) for _ in range(50)}) > 40


def test_iteration_gives_the_delays_in_order() -> None:
    assert list(itertools.islice(Backoff(1, 8, 0), 6)) == [1, 2, 4, 8, 8, 8]


@pytest.mark.parametrize(
    "arguments",
    [{"initial": 0}, {"initial": 2, "maximum": 1}, {"jitter": -0.1}, {"jitter": 1.1}, {"factor": 0.5}],
)
def test_senseless_back_off_is_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="back-off"):
        Backoff(**arguments)


def test_delay_needs_a_failure() -> None:
    with pytest.raises(ValueError, match="at least one failure"):
        Backoff().delay(0)


def test_pauses_grow_in_a_row_of_failures_and_start_over_after_a_success() -> None:
    pauses = Pauses(Backoff(1, 8, 0))
    assert [pauses.next() for _ in range(3)] == [1, 2, 4]
    assert pauses.failures == 3
    assert pauses.next(at_least=30) == 30
    assert pauses.next(at_least=3) == 8
    pauses.reset()
    assert pauses.failures == 0
    assert pauses.next() == 1


def test_pause_is_waited_for(jumping: Callable[[Callable[[], Awaitable[Any]]], Any]) -> None:
    async def main() -> float:
        pauses = Pauses(Backoff(1, 8, 0))
        await pauses.wait()
        await pauses.wait(at_least=5)
        return asyncio.get_running_loop().time()

    assert jumping(main) == 6
