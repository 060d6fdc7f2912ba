"""Never two leaders, and soon another one."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from foundation.kube.client import KubeClient
from foundation.kube.errors import Unavailable
from foundation.kube.leader import LeaderElection, microtime
from foundation.kube.resources import LEASES
from lab.apiserver.faults import Rule
from lab.apiserver.server import ApiServer

STEADY = {"lease_seconds": 60.0, "renew_seconds": 40.0, "retry_seconds": 0.05}
"""Renews often and has the time to be late, on a machine under any load."""
SHORT = {"lease_seconds": 1.0, "renew_seconds": 0.6, "retry_seconds": 0.1}
"""Runs out soon."""


RUNNING: list[LeaderElection] = []


class Cut(KubeClient):
    """A client whose network can be unplugged."""

    plugged = True

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        content_type: str = "application/json",
        repeatable: bool | None = None,
    ) -> bytes:
        if not self.plugged:
            raise Unavailable("unplugged")
        return await super().request(
            method, path, query=query, body=body, content_type=content_type, repeatable=repeatable
        )


class Candidate(LeaderElection):
    """A candidate that notes what happens to it."""

    def __init__(self, client: KubeClient, identity: str, **settings: object) -> None:
        self.log: list[str] = []
        self.ended_at = 0.0
        super().__init__(
            client,
            namespace="default",
            name="test",
            identity=identity,
            on_started=self._start,
            on_stopped=self._stop,
            **{**STEADY, **settings},  # type: ignore[arg-type]  # keyword arguments of several types
        )

    async def _start(self) -> None:
        self.log.append("started")
        try:
            await asyncio.Event().wait()
        finally:
            self.log.append("cancelled")

    async def _stop(self) -> None:
        self.log.append("stopped")
        self.ended_at = time.monotonic()


@asynccontextmanager
async def running(*candidates: LeaderElection) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Run candidates, and fail if two of those that run now lead at the same time."""
    tasks = [asyncio.create_task(candidate.run()) for candidate in candidates]
    RUNNING.extend(candidates)
    watch = asyncio.create_task(_never_two())
    try:
        yield tasks
    finally:
        watch.cancel()
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(watch, *tasks, return_exceptions=True)
        for candidate in candidates:
            RUNNING.remove(candidate)
        assert not [each for each in results if isinstance(each, AssertionError)]


async def _never_two() -> None:
    while True:
        assert sum(candidate.is_leader for candidate in RUNNING) <= 1
        await asyncio.sleep(0.002)


async def until(condition: Callable[[], bool], *, seconds: float = 30.0) -> float:
    """Wait; returns how long it took."""
    start = time.monotonic()
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)
    return time.monotonic() - start


async def test_one_of_two_leads_and_the_other_follows_at_once(client: KubeClient) -> None:
    one, two = Candidate(client, "one"), Candidate(client, "two")
    async with running(one) as (task,):
        await until(lambda: one.is_leader)
        async with running(two):
            await asyncio.sleep(0.3)
            assert not two.is_leader
            assert two.holder == "one"
            task.cancel()
            took = await until(lambda: two.is_leader)
            assert took < STEADY["lease_seconds"] / 2, "a lease that is released need not expire"
            assert one.log == ["started", "cancelled", "stopped"]
            lease = await client.get(LEASES, "test", "default")
            assert lease.spec.holder_identity == "two"
            assert lease.spec.lease_transitions == 1


async def test_a_leader_without_network_ends_before_another_begins(client: KubeClient) -> None:
    cut = Cut(client.settings)
    one, two = Candidate(cut, "one", **SHORT), Candidate(client, "two")
    async with running(one):
        await until(lambda: one.is_leader)
        async with running(two):
            await until(lambda: two.holder == "one")
            cut.plugged = False
            await until(lambda: two.is_leader)
            assert one.log[-3:] == ["started", "cancelled", "stopped"]
            cut.plugged = True
            await asyncio.sleep(0.3)
            assert two.is_leader
            assert not one.is_leader
    await cut.close()


async def test_a_leader_survives_a_short_outage(client: KubeClient, server: ApiServer) -> None:
    one = Candidate(client, "one")
    async with running(one):
        await until(lambda: one.is_leader)
        server.faults.add(Rule(method="PATCH", code=500, times=3))
        await asyncio.sleep(0.5)
        assert one.is_leader
        assert one.log == ["started"]


async def test_an_answer_that_got_lost_is_found_out(client: KubeClient, server: ApiServer) -> None:
    one = Candidate(client, "one")
    async with running(one):
        await until(lambda: one.is_leader)
        server.faults.add(Rule(method="PATCH", code=-2, times=1))
        await asyncio.sleep(0.7)
        assert one.is_leader
        assert one.log == ["started"]


async def test_a_slow_server_makes_a_leader_step_down_in_time(client: KubeClient, server: ApiServer) -> None:
    one = Candidate(client, "one", **SHORT)
    async with running(one):
        await until(lambda: one.is_leader)
        server.faults.add(Rule(method="PATCH", latency=60.0))
        await until(lambda: not one.is_leader)
        await until(lambda: "stopped" in one.log)
        server.faults.clear()


async def test_clocks_that_disagree_do_not_matter(client: KubeClient) -> None:
    one = Candidate(client, "one", wall=lambda: time.time() - 86400)
    two = Candidate(client, "two", wall=lambda: time.time() + 86400)
    async with running(one):
        await until(lambda: one.is_leader)
        async with running(two):
            await asyncio.sleep(0.3)
            assert one.is_leader
            assert one.log == ["started"]


async def test_a_lease_of_somebody_who_died_is_taken_after_it_was_watched_for_its_time(client: KubeClient) -> None:
    spec = {"holderIdentity": "dead", "leaseDurationSeconds": 1, "renewTime": microtime(0)}
    await client.create(LEASES, {"metadata": {"name": "test"}, "spec": spec}, "default")
    one = Candidate(client, "one")
    async with running(one):
        took = await until(lambda: one.is_leader)
    assert took > 0.95, "an old time in the record proves nothing: its clock may be wrong"


async def test_a_restarted_leader_goes_on(client: KubeClient) -> None:
    spec = {"holderIdentity": "one", "leaseDurationSeconds": 600, "renewTime": microtime(time.time())}
    await client.create(LEASES, {"metadata": {"name": "test"}, "spec": spec}, "default")
    one = Candidate(client, "one")
    async with running(one):
        await until(lambda: one.is_leader)


async def test_a_lease_that_is_deleted_is_made_again(client: KubeClient) -> None:
    one = Candidate(client, "one")
    async with running(one):
        await until(lambda: one.is_leader)
        await client.delete(LEASES, "test", "default")
        await asyncio.sleep(0.5)
        assert one.is_leader
        assert (await client.get(LEASES, "test", "default")).spec.holder_identity == "one"


async def test_a_lease_that_was_stolen_is_not_fought_for(client: KubeClient) -> None:
    one = Candidate(client, "one")
    async with running(one):
        await until(lambda: one.is_leader)
        await client.merge_patch(
            LEASES, "test", "default", {"spec": {"holderIdentity": "thief", "leaseDurationSeconds": 60}}
        )
        await until(lambda: "stopped" in one.log)
        assert not one.is_leader
        assert one.holder == "thief"


async def test_work_that_fails_ends_leadership_and_is_heard(client: KubeClient) -> None:
    async def fail() -> None:
        raise RuntimeError("a bug")

    one = LeaderElection(client, namespace="default", name="test", identity="one", on_started=fail)
    with pytest.raises(RuntimeError, match="a bug"):
        async with asyncio.timeout(5):
            await one.run()
    assert (await client.get(LEASES, "test", "default")).spec.holder_identity == ""


async def test_a_jump_of_the_clock_ends_leadership_at_once(client: KubeClient) -> None:
    shift = 0.0
    one = Candidate(client, "one", clock=lambda: time.monotonic() + shift)
    async with running(one):
        await until(lambda: one.is_leader)
        shift = 100.0
        assert not one.is_leader, "before any task has run"


def test_times_must_be_in_order(tmp_path: Path) -> None:
    for times in ((10.0, 10.0, 2.0), (15.0, 2.0, 2.0), (15.0, 10.0, 0.0)):
        with pytest.raises(ValueError, match="lease > renew"):
            LeaderElection(
                None,  # type: ignore[arg-type]  # refused before it is used
                namespace="n",
                name="n",
                identity="i",
                lease_seconds=times[0],
                renew_seconds=times[1],
                retry_seconds=times[2],
            )


PAUSED = """
import asyncio, sys, time
from foundation.kube.client import KubeClient
from foundation.kube.leader import LeaderElection

async def main():
    client = await KubeClient.connect(sys.argv[1])
    one = LeaderElection(client, namespace="default", name="test", identity="paused",
                         lease_seconds=1.0, renew_seconds=0.6, retry_seconds=0.1)
    task = asyncio.create_task(one.run())
    while True:
        print(f"{time.monotonic():.4f} {int(one.is_leader)}", flush=True)
        await asyncio.sleep(0.005)

asyncio.run(main())
"""


async def test_a_process_that_was_stopped_wakes_up_as_no_leader(
    client: KubeClient, server: ApiServer, tmp_path: Path
) -> None:
    kubeconfig = server.kubeconfig(tmp_path / "kubeconfig")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PAUSED, str(kubeconfig), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            while not (await process.stdout.readline()).endswith(b" 1\n"):
                pass
            two = Candidate(client, "two")
            async with running(two):
                await until(lambda: two.holder == "paused")
                process.send_signal(signal.SIGSTOP)
                await until(lambda: two.is_leader)
                since = time.monotonic()
                process.send_signal(signal.SIGCONT)
                seen = 0
                while seen < 20:
                    moment, leads = (await process.stdout.readline()).split()
                    if float(moment) > since:
                        assert leads == b"0"
                        seen += 1
                assert two.is_leader
    finally:
        process.kill()
        await process.wait()
