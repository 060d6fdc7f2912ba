"""Calls that join work already running for the same object, as a retried CSI call must."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

_log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)
R = TypeVar("R")


class Conflict(Exception):
    """Other work is under way for the same object."""


class StillRunning(Exception):
    """The caller's deadline has passed; the work goes on and a retry will join it."""


@dataclass(frozen=True)
class _Work(Generic[R]):
    fingerprint: object
    task: asyncio.Task[R]
    background: bool


async def _awaited(start: Callable[[], Awaitable[R]]) -> R:
    return await start()


class Joining(Generic[K, R]):
    """At most one piece of work a key; it outlives the callers that wait for it."""

    def __init__(self, *, name: str = "work") -> None:
        self._name = name
        self._running: dict[K, _Work[R]] = {}

    def running(self, key: K) -> bool:
        """Whether work for `key` is under way."""
        return key in self._running

    async def run(
        self,
        key: K,
        fingerprint: object,
        start: Callable[[], Awaitable[R]],
        *,
        deadline: float,
        background: bool = False,
    ) -> R:
        """Start the work for `key`, or join it when what runs has an equal `fingerprint`; return its result.

        `deadline` is in seconds. All callers waiting when the work ends get its result or its exception. A call after
        that starts anew, so `start` must be idempotent. `background` marks work that no caller asked for, such as a
        repair: a caller who wants something else waits for its end instead of being refused.

        :raises Conflict: work with another fingerprint, asked for by another caller, runs for this key.
        :raises StillRunning: `deadline` passed; the work goes on.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + max(deadline, 0)
        while (work := self._running.get(key)) is not None and work.fingerprint != fingerprint:
            if not work.background:
                raise Conflict(
                    f"{self._name} {key}: a call with other parameters is still running; retry when it has ended"
                )
            await self._wait(key, work, until, deadline)
        if work is None:
            task = loop.create_task(_awaited(start), name=f"{self._name} {key}")
            work = self._running[key] = _Work(fingerprint, task, background)
            task.add_done_callback(lambda done: self._ended(key, done))
        await self._wait(key, work, until, deadline)
        if work.task.cancelled():
            raise StillRunning(f"{self._name} {key}: stopped before it ended; retry")
        return work.task.result()

    async def _wait(self, key: K, work: _Work[R], until: float, deadline: float) -> None:
        # wait, unlike wait_for, leaves the task alone when the caller is cancelled or its time is up.
        done, _ = await asyncio.wait({work.task}, timeout=max(until - asyncio.get_running_loop().time(), 0))
        if not done:
            raise StillRunning(f"{self._name} {key}: still running after {deadline:g} s; retry to join it")

    async def stop(self) -> None:
        """Cancel all work and wait until it has ended."""
        tasks = [work.task for work in self._running.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _ended(self, key: K, task: asyncio.Task[R]) -> None:
        del self._running[key]
        # Looking at the exception also keeps asyncio from reporting it as lost when no caller waits any more.
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.debug("%s %s ended with %s", self._name, key, type(error).__name__, exc_info=error)
