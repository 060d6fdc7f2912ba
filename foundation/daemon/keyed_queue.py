"""Work by key: the same key one after another, different keys side by side."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable, Mapping
from types import MappingProxyType
from typing import Generic, TypeVar

from foundation.daemon import logs, metrics
from foundation.daemon.backoff import Backoff

_log = logging.getLogger(__name__)

_HANDLED = metrics.counter("queue_handled", "Calls of a queue's handler.", ("queue", "outcome"))
_WAITING = metrics.gauge("queue_waiting", "Keys that are ready but not yet handled.", ("queue",))
_FAILING = metrics.gauge("queue_failing", "Keys whose last call failed.", ("queue",))

K = TypeVar("K", bound=Hashable)


class KeyedQueue(Generic[K]):
    """A set of keys waiting for `handler`, worked off by `workers` tasks once `run` is awaited.

    - Adding a key that waits already changes nothing: many changes become one call.
    - A key added while its call runs is handled once more afterwards.
    - A call that raises is repeated after the key's own back-off; its last error is kept in `errors` until a call
      succeeds.
      Adding the key anew ends its wait (something has changed), but its count of failures stands until a success.
    - `deadline` (seconds), if given, bounds each call; running over it counts as a failure.

    `name` stands for it in logs and metrics.
    """

    def __init__(
        self,
        handler: Callable[[K], Awaitable[None]],
        *,
        workers: int = 4,
        backoff: Backoff | None = None,
        deadline: float | None = None,
        name: str = "",
    ) -> None:
        if workers < 1:
            raise ValueError(f"a queue needs at least one worker, got {workers}")
        self._handler = handler
        self._workers = workers
        self._backoff = backoff or Backoff()
        self._deadline = deadline
        self._name = name or getattr(handler, "__qualname__", "queue")
        self._waiting = _WAITING.labels(queue=self._name)
        self._failing = _FAILING.labels(queue=self._name)
        self._ready: dict[K, None] = {}
        self._running: set[K] = set()
        self._again: set[K] = set()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}
        self._errors: dict[K, BaseException] = {}
        self._wake = asyncio.Semaphore(0)
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def errors(self) -> Mapping[K, BaseException]:
        """The last error of every key whose last call failed."""
        return MappingProxyType(self._errors)

    def failures(self, key: K) -> int:
        """How many calls for `key` have failed in a row."""
        return self._failures.get(key, 0)

    def __len__(self) -> int:
        """Keys that are ready or being handled; those waiting for their time are not counted."""
        return len(self._ready) + len(self._running)

    def add(self, key: K, *, delay: float = 0.0) -> None:
        """Have `key` handled: now, or after `delay` seconds unless it is added sooner."""
        if delay > 0:
            self._schedule(key, delay)
            return
        self._cancel_timer(key)
        if key in self._running:
            self._again.add(key)
        elif key not in self._ready:
            self._ready[key] = None
            self._waiting.set(len(self._ready))
            self._idle.clear()
            self._wake.release()

    def forget(self, key: K) -> None:
        """Drop a key that no longer exists: its wait, its error and its count. A call that runs is left to end."""
        self._cancel_timer(key)
        self._again.discard(key)
        self._failures.pop(key, None)
        self._errors.pop(key, None)
        # Its place in the semaphore stays; the worker that takes it finds nothing and goes on.
        self._ready.pop(key, None)
        self._waiting.set(len(self._ready))
        self._failing.set(len(self._errors))
        if not self._running and not self._ready:
            self._idle.set()

    async def run(self) -> None:
        """Handle keys until cancelled. Cancelling waits for the calls that run to be cancelled too."""
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(self._workers):
                    group.create_task(self._work(), name=f"{self._name}-{number}")
        finally:
            for key in list(self._timers):
                self._cancel_timer(key)

    async def idle(self) -> None:
        """Wait until nothing is ready or being handled. Keys in back-off do not count."""
        await self._idle.wait()

    def _schedule(self, key: K, delay: float) -> None:
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer is not None and timer.when() <= loop.time() + delay:
            return
        self._cancel_timer(key)
        self._timers[key] = loop.call_later(delay, self.add, key)

    def _cancel_timer(self, key: K) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()

    async def _work(self) -> None:
        while True:
            await self._wake.acquire()
            if not self._ready:
                continue
            key = next(iter(self._ready))
            del self._ready[key]
            self._waiting.set(len(self._ready))
            self._running.add(key)
            try:
                await self._handle(key)
            finally:
                self._running.discard(key)
                if key in self._again:
                    self._again.discard(key)
                    self.add(key)
                if not self._ready and not self._running:
                    self._idle.set()

    async def _handle(self, key: K) -> None:
        try:
            with logs.bound(key=str(key)):
                async with asyncio.timeout(self._deadline):
                    await self._handler(key)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Not us: something the handler waited for was cancelled. Passing it on would quietly end this worker.
            self._failed(key, error)
        except Exception as error:
            self._failed(key, error)
        else:
            self._failures.pop(key, None)
            self._errors.pop(key, None)
            self._count("ok")

    def _count(self, outcome: str) -> None:
        _HANDLED.labels(queue=self._name, outcome=outcome).inc()
        self._failing.set(len(self._errors))

    def _failed(self, key: K, error: BaseException) -> None:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        self._errors[key] = error
        self._count("error")
        delay = self._backoff.delay(failures)
        if key not in self._again:
            self._schedule(key, delay)
        extra = {"queue": self._name, "key": str(key), "failures": failures, "retry_seconds": round(delay, 3)}
        # The trace once a row of failures; after that the sentence is enough.
        trace = error if failures == 1 else None
        _log.warning(
            "%s failed for %s: %s", self._name, key, str(error) or type(error).__name__, extra=extra, exc_info=trace
        )
