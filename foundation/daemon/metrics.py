"""Metrics under the name `dpu_offload_*`, in one registry a process."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from foundation.tracing import spans

PREFIX = "dpu_offload_"
# Seconds; from a cached lookup to a slow attach.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotations
REGISTRY = CollectorRegistry()
ProcessCollector(namespace=PREFIX.rstrip("_"), registry=REGISTRY)

M = TypeVar("M", Counter, Gauge, Histogram)


def _name(name: str) -> str:
    return name if name.startswith(PREFIX) else PREFIX + name


def counter(name: str, documentation: str, labels: Sequence[str] = ()) -> Counter:
    """A counter; `dpu_offload_` is put before the name and `_total` after it."""
    return Counter(_name(name), documentation, labels, registry=REGISTRY)


def gauge(name: str, documentation: str, labels: Sequence[str] = ()) -> Gauge:
    """A gauge; `dpu_offload_` is put before the name."""
    return Gauge(_name(name), documentation, labels, registry=REGISTRY)


def histogram(
    name: str, documentation: str, labels: Sequence[str] = (), *, buckets: Sequence[float] = BUCKETS
) -> Histogram:
    """A histogram in seconds unless its name says otherwise; `dpu_offload_` is put before the name."""
    return Histogram(_name(name), documentation, labels, registry=REGISTRY, buckets=buckets)


def steps(name: str, documentation: str, labels: Sequence[str] = ()) -> Histogram:
    """A histogram for `step_timer`: `labels`, then `step` and `outcome`."""
    return histogram(name, documentation, (*labels, "step", "outcome"))


@contextlib.contextmanager
def step_timer(steps: Histogram, *, step: str, **labels: str) -> Iterator[None]:
    """Measure the block as one step, which is a span of a trace too; `outcome` becomes ok, error or cancelled."""
    started = time.perf_counter()
    outcome = "error"
    try:
        with spans.span(step, **labels):
            yield
        outcome = "ok"
    except asyncio.CancelledError:
        outcome = "cancelled"
        raise
    finally:
        steps.labels(**labels, step=step, outcome=outcome).observe(time.perf_counter() - started)


def exposition() -> tuple[str, bytes]:
    """Content type and text of all metrics."""
    return CONTENT_TYPE_LATEST, generate_latest(REGISTRY)
