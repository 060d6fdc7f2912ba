"""Two controllers as real processes: one is stopped, woken, killed, and the other goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from foundation.kube.client import KubeClient
from foundation.kube.models.coordination import Lease
from foundation.kube.reflector import Change, Reflector
from foundation.kube.resources import LEASES, NODES, PODS
from foundation.ovsdb import OvsdbSession
from lab.apiserver.server import ApiServer
from tests.controller.stage import Northbound
from tests.controller.test_daemon import node_object, pod_object, until_annotated

LEASE_SECONDS = 3.0
DAEMON = "from cni.controller.app import main; main()"


class Replicas:
    """Controllers by their identity, on one API server and one northbound database."""

    def __init__(self, kubeconfig: Path, northbound: Northbound) -> None:
        self._settings = {
            "kubeconfig": str(kubeconfig),
            "northbound.remotes": northbound.remote,
            "leader_election.namespace": "default",
            "leader_election.lease_seconds": str(LEASE_SECONDS),
            "log.level": "warning",
        }
        self.processes: dict[str, asyncio.subprocess.Process] = {}

    async def start(self, identity: str) -> None:
        settings = {**self._settings, "leader_election.identity": identity}
        arguments = [f"--set={key}={value}" for key, value in settings.items()]
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", DAEMON, *arguments)
        self.processes[identity] = process

    def signal(self, identity: str, number: signal.Signals) -> None:
        os.kill(self.processes[identity].pid, number)

    async def end(self) -> None:
        for process in self.processes.values():
            if process.returncode is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                await process.wait()


class Holder:
    """Follows who holds the lease."""

    def __init__(self, client: KubeClient) -> None:
        self._reflector: Reflector[Lease] = Reflector(client, LEASES, namespace="default")
        self._changed = asyncio.Event()
        self.name = ""
        self._reflector.subscribe(self._saw)
        self._task = asyncio.create_task(self._reflector.run())

    def _saw(self, change: Change[Lease]) -> None:
        if change.new is not None and change.new.spec.holder_identity:
            self.name = change.new.spec.holder_identity
            self._changed.set()

    async def other_than(self, name: str) -> str:
        async with asyncio.timeout(40):
            while self.name in ("", name):
                self._changed.clear()
                await self._changed.wait()
        return self.name

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})


@asynccontextmanager
async def stage(directory: Path) -> AsyncIterator[tuple[KubeClient, Replicas, Holder, OvsdbSession]]:
    northbound = Northbound()
    async with ApiServer() as server:
        server.kubeconfig(directory / "kubeconfig")
        async with await KubeClient.connect(str(directory / "kubeconfig")) as client:
            replicas, holder = Replicas(directory / "kubeconfig", northbound), Holder(client)
            session = OvsdbSession(northbound.remote, "OVN_Northbound")
            session.monitor({"Logical_Switch_Port": ["name"], "Logical_Switch": ["name"], "Logical_Router": ["name"]})
            await session.start()
            try:
                yield client, replicas, holder, session
            finally:
                await replicas.end()
                await holder.end()
                await session.stop()
    northbound.remove()


@pytest.mark.timeout(240)
async def test_a_leader_that_sleeps_or_dies_is_replaced_and_never_writes_again(tmp_path: Path) -> None:
    async with stage(tmp_path) as (client, replicas, holder, northbound):
        await client.create(NODES, node_object("n1", "10.1.0.0/24"))
        await replicas.start("a")
        first = await holder.other_than("")
        await replicas.start("b")
        await client.create(PODS, pod_object("before"))
        await until_annotated(client, "before")
        await northbound.until("Logical_Switch_Port", lambda row: row["name"] == "default_before", deadline=40)
        changes: list[str] = []
        for table in ("Logical_Switch_Port", "Logical_Switch", "Logical_Router"):
            northbound.subscribe(table, lambda change: changes.append((change.new or change.old)["name"]))

        replicas.signal(first, signal.SIGSTOP)
        await client.create(PODS, pod_object("while-asleep"))
        second = await holder.other_than(first)
        await until_annotated(client, "while-asleep")

        # The sleeper wakes up and believes for a moment that it leads still.
        replicas.signal(first, signal.SIGCONT)
        await client.create(PODS, pod_object("after-waking"))
        await until_annotated(client, "after-waking")
        assert holder.name == second

        replicas.signal(second, signal.SIGKILL)
        await client.create(PODS, pod_object("after-death"))
        assert await holder.other_than(second) == first
        await until_annotated(client, "after-death")
        await northbound.until("Logical_Switch_Port", lambda row: row["name"] == "default_after-death", deadline=40)

        # Each pod's port was written once, by one of the two; what was there has not been touched: no flow was lost.
        assert sorted(changes) == ["default_after-death", "default_after-waking", "default_while-asleep"]
        assert replicas.processes[first].returncode is None
