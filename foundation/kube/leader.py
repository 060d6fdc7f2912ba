"""Leader election by a Lease: at most one of several candidates leads at any time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from foundation.kube.client import KubeClient
from foundation.kube.errors import AlreadyExists, Conflict, KubeError, NotFound
from foundation.kube.models.coordination import Lease, LeaseSpec
from foundation.kube.models.meta import ObjectMeta
from foundation.kube.reflector import Reflector
from foundation.kube.resources import LEASES

logger = logging.getLogger(__name__)

JITTER = 1.2


def microtime(moment: float) -> str:
    """A Unix time in seconds as meta/v1 MicroTime, `2026-11-21T10:00:00.123456Z`."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass(frozen=True, slots=True)
class Observation:
    """A lease as it was seen, and when: `seen_at` is this machine's monotonic clock, in seconds."""

    lease: Lease
    seen_at: float

    def free_at(self) -> float:
        """The local moment from which the lease may be taken over; 0 for one that was released.

        Only the local clock counts: a renewal is a *change of the record* that we saw, whatever time its holder's
        clock wrote into it. So clocks that disagree can't make two leaders; clocks that run at different speeds can
        only if they drift by a third (lease 15 s against renew 10 s).
        """
        if not self.lease.spec.holder_identity:
            return 0.0
        return self.seen_at + float(self.lease.spec.lease_duration_seconds or 0)


class LeaderElection:
    """One candidate. `run()` campaigns for ever; leadership may come and go many times.

    While it leads, `on_started()` runs as a task, and is cancelled when leadership ends; `on_stopped()` is called after
    it has ended. Leadership ends `renew_seconds` after the start of the last renewal that succeeded, which is
    `lease_seconds - renew_seconds` before anybody else may take the lease: that is the time the work has for ending.
    A caller that writes should ask `is_leader` just before: it is false from that moment on even in a process that
    was stopped for a while and has not had the time to cancel anything.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        namespace: str,
        name: str,
        identity: str,
        on_started: Callable[[], Awaitable[None]] | None = None,
        on_stopped: Callable[[], Awaitable[None]] | None = None,
        lease_seconds: float = 15.0,
        renew_seconds: float = 10.0,
        retry_seconds: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`identity` must be unique among the candidates. Raises ValueError unless lease > renew > 1.2 x retry > 0."""
        if not (lease_seconds > renew_seconds > retry_seconds * JITTER > 0):
            raise ValueError(
                f"leader election needs lease > renew > {JITTER} x retry > 0, "
                f"not {lease_seconds:g} > {renew_seconds:g} > {JITTER} x {retry_seconds:g}"
            )
        if not identity:
            raise ValueError("leader election needs an identity")
        self._client = client
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._on_started = on_started
        self._on_stopped = on_stopped
        self._lease_seconds = lease_seconds
        self._renew_seconds = renew_seconds
        self._retry_seconds = retry_seconds
        self._clock = clock
        self._wall = wall
        self._observed: Observation | None = None
        self._leading = False
        self._good_until = 0.0
        self._work: asyncio.Task[None] | None = None

    @property
    def is_leader(self) -> bool:
        """True while nobody else can hold the lease, by this machine's clock."""
        return self._leading and self._clock() < self._good_until

    @property
    def holder(self) -> str:
        """The identity seen last in the lease ("" if none)."""
        return (self._observed.lease.spec.holder_identity or "") if self._observed else ""

    async def run(self) -> None:
        """Campaign, lead, campaign again. On cancellation the work is ended and the lease released.

        An exception of `on_started` ends leadership, releases the lease and is raised here.
        """
        try:
            while True:
                await self._campaign()
                try:
                    await self._lead()
                finally:
                    await self._step_down()
        finally:
            if self._observed and self.holder == self._identity:
                await self._release()

    async def _campaign(self) -> None:
        changed = asyncio.Event()
        watch = Reflector(self._client, LEASES, namespace=self._namespace, field_selector=f"metadata.name={self._name}")
        watch.subscribe(lambda change: self._saw(change.new, changed))
        watching = asyncio.create_task(watch.run(), name=f"candidate for {self._name}")
        try:
            while not await self._attempt():
                # The watch tells of renewals and of a release at once. If it is cut we only see less, and the write
                # of an attempt carries the version that it is based on: it can't succeed on old knowledge.
                left = self._observed.free_at() - self._clock() if self._observed else 0.0
                if left <= 0:
                    left = self._retry_seconds * random.uniform(0.5, JITTER)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await changed.wait()
                changed.clear()
        finally:
            watching.cancel()
            await asyncio.wait({watching})
        logger.info("%s leads (lease %s/%s)", self._identity, self._namespace, self._name)

    async def _lead(self) -> None:
        self._leading = True
        self._work = asyncio.create_task(self._started(), name=f"leading {self._name}")
        while True:
            left = self._good_until - self._clock()
            if left <= 0:
                logger.error("%s could not renew lease %s in time: no longer leader", self._identity, self._name)
                return
            done, _ = await asyncio.wait({self._work}, timeout=min(self._retry_seconds, left))
            if done and (self._work.cancelled() or self._work.exception() is not None):
                await self._work
            left = self._good_until - self._clock()
            try:
                async with asyncio.timeout(max(left, 0.0)):
                    renewed = await self._attempt()
            except TimeoutError:
                renewed = False
            if not renewed and self.holder != self._identity:
                logger.error("%s lost lease %s to %r", self._identity, self._name, self.holder)
                return

    async def _started(self) -> None:
        if self._on_started is not None:
            await self._on_started()
        await asyncio.Event().wait()

    async def _step_down(self) -> None:
        if not self._leading:
            return
        self._leading = False
        work, self._work = self._work, None
        if work is not None and not work.done():
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({work}, timeout=self._lease_seconds - self._renew_seconds)
            if not work.done():
                logger.critical("%s: the leader's work did not end in time", self._name)
        if self._on_stopped is not None:
            await self._on_stopped()

    async def _attempt(self) -> bool:
        """Take or renew the lease; True if it is ours afterwards. Never raises KubeError."""
        start = self._clock()
        try:
            if self._observed is None or self._observed.lease.spec.holder_identity != self._identity:
                await self._look()
            if self._observed is None:
                written = await self._client.create(LEASES, self._first(), self._namespace)
            else:
                now = self._clock()
                mine = self._observed.lease.spec.holder_identity == self._identity
                if not mine and now < self._observed.free_at():
                    return False
                start = now
                written = await self._write(self._observed.lease, mine=mine)
        except (Conflict, AlreadyExists):
            await self._look_again()
            return False
        except NotFound:
            self._observed = None
            return False
        except KubeError as error:
            logger.warning("lease %s/%s: %s", self._namespace, self._name, error)
            return False
        self._observed = Observation(written, self._clock())
        # counted from before the request: the server may have written at once and answered late
        self._good_until = start + self._renew_seconds
        return True

    async def _look(self) -> None:
        try:
            lease = await self._client.get(LEASES, self._name, self._namespace)
        except NotFound:
            self._observed = None
            return
        self._see(lease)

    def _see(self, lease: Lease) -> None:
        seen = self._observed
        if seen is None or seen.lease.metadata.resource_version != lease.metadata.resource_version:
            self._observed = Observation(lease, self._clock())

    def _saw(self, lease: Lease | None, changed: asyncio.Event) -> None:
        if lease is None:
            self._observed = None
        else:
            self._see(lease)
        if lease is None or not lease.spec.holder_identity:
            changed.set()

    async def _look_again(self) -> None:
        with contextlib.suppress(KubeError):
            await self._look()

    def _first(self) -> Lease:
        now = microtime(self._wall())
        return Lease(
            metadata=ObjectMeta(name=self._name, namespace=self._namespace),
            spec=LeaseSpec(
                holder_identity=self._identity,
                lease_duration_seconds=self._whole_seconds(),
                acquire_time=now,
                renew_time=now,
                lease_transitions=0,
            ),
        )

    async def _write(self, lease: Lease, *, mine: bool) -> Lease:
        now = microtime(self._wall())
        spec: dict[str, object] = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": self._whole_seconds(),
            "renewTime": now,
        }
        if not mine:
            spec |= {"acquireTime": now, "leaseTransitions": (lease.spec.lease_transitions or 0) + 1}
        return await self._patch(lease, spec)

    async def _release(self) -> None:
        assert self._observed is not None
        spec = {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": microtime(self._wall())}
        try:
            async with asyncio.timeout(2.0):
                await self._patch(self._observed.lease, spec)
        except (KubeError, TimeoutError) as error:
            logger.warning("lease %s/%s was not released (it will expire): %s", self._namespace, self._name, error)
        self._observed = None

    async def _patch(self, lease: Lease, spec: dict[str, object]) -> Lease:
        body = {"metadata": {"resourceVersion": lease.metadata.resource_version}, "spec": spec}
        return await self._client.merge_patch(LEASES, self._name, self._namespace, body)

    def _whole_seconds(self) -> int:
        return max(1, math.ceil(self._lease_seconds))
