"""Names, and what a step's timer writes down."""

from __future__ import annotations

import asyncio

import pytest

from foundation.daemon import metrics


def count(name: str, **labels: str) -> float | None:
    return metrics.REGISTRY.get_sample_value(f"dpu_offload_{name}_count", labels)


def test_step_timer_tells_success_error_and_cancellation_apart() -> None:
    steps = metrics.steps("metrics_test_seconds", "Steps.", ("mode",))
    with metrics.step_timer(steps, step="wire", mode="dpu"):
        pass
    for error in (ValueError(), KeyError()):
        with pytest.raises(type(error)), metrics.step_timer(steps, step="wire", mode="dpu"):
            raise error
    with pytest.raises(asyncio.CancelledError), metrics.step_timer(steps, step="wait", mode="dpu"):
        raise asyncio.CancelledError
    name = "metrics_test_seconds"
    assert count(name, mode="dpu", step="wire", outcome="ok") == 1
    assert count(name, mode="dpu", step="wire", outcome="error") == 2
    assert count(name, mode="dpu", step="wait", outcome="cancelled") == 1
    assert count(name, mode="dpu", step="wait", outcome="error") is None


def test_step_timer_measures_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = metrics.steps("metrics_measure_seconds", "Steps.")
    clock = iter([10.0, 10.25])
    monkeypatch.setattr("foundation.daemon.metrics.time.perf_counter", lambda: next(clock))
    with metrics.step_timer(steps, step="one"):
        pass
    labels = {"step": "one", "outcome": "ok"}
    assert metrics.REGISTRY.get_sample_value("dpu_offload_metrics_measure_seconds_sum", labels) == 0.25


def test_names_get_the_prefix_once() -> None:
    metrics.gauge("metrics_test_one", "x").set(1)
    metrics.gauge("dpu_offload_metrics_test_two", "x").set(2)
    assert metrics.REGISTRY.get_sample_value("dpu_offload_metrics_test_one") == 1
    assert metrics.REGISTRY.get_sample_value("dpu_offload_metrics_test_two") == 2
