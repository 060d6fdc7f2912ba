"""A cluster without nodes for `benchmarks.controller`: API server, northbound database, the controller as a process."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cni.controller.model.annotations import POD_NETWORKS
from foundation.kube.client import KubeClient
from foundation.kube.errors import AlreadyExists, NotFound
from foundation.kube.models.core import Pod
from foundation.kube.reflector import Change, Reflector
from foundation.kube.resources import (
    ENDPOINT_SLICES,
    LEASES,
    NAMESPACES,
    NETWORK_POLICIES,
    NODES,
    PODS,
    SERVICE_ACCOUNTS,
    SERVICES,
    Resource,
)
from foundation.ovsdb import OvsdbSession

NAMESPACE = "bench"
NODE = "bench-node-"
CREATORS = 32
TICKS = os.sysconf("SC_CLK_TCK")
DAEMON = "from cni.controller.app import main; main()"


class Northbound:
    """An ovsdb-server with an empty northbound database."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="bc", dir="/tmp"))
        self.remote = f"unix:{self.directory}/s"
        database = self.directory / "db"
        subprocess.run(["ovsdb-tool", "create", database, "/usr/share/ovn/ovn-nb.ovsschema"], check=True)
        self.process = subprocess.Popen(
            ["ovsdb-server", f"--remote=p{self.remote}", "--unixctl=none", "-vconsole:off", database]
        )

    def stop(self) -> None:
        """Ends the server and removes its files."""
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.directory)


class Controller:
    """The daemon, started by its own configuration. `identity`: it is one of several replicas, of which one leads."""

    def __init__(self, kubeconfig: str, northbound: Northbound, *, identity: str = "") -> None:
        self.http = northbound.directory / f"http{identity}"
        settings = {
            "kubeconfig": kubeconfig,
            "http": f"unix:{self.http}",
            "northbound.remotes": northbound.remote,
            "leader_election.enabled": "true" if identity else "false",
            "leader_election.namespace": NAMESPACE,
            "leader_election.identity": identity,
            "log.level": "warning",
        }
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-c", DAEMON, *(f"--set={key}={value}" for key, value in settings.items())]
        )

    async def ready(self) -> float:
        """Seconds from the start of the process until it has compared everything."""
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(str(self.http))
                writer.write(b"GET /readyz HTTP/1.0\r\n\r\n")
                answer = await reader.read()
                writer.close()
                if b" 200 " in answer.split(b"\r\n", 1)[0]:
                    return time.perf_counter() - self.started
            except OSError:
                pass
            if self.process.poll() is not None:
                raise RuntimeError(f"the controller ended with {self.process.returncode}")
            await asyncio.sleep(0.005)  # /readyz has no event to wait for; 5 ms is what this costs in precision

    def cpu(self) -> float:
        """Seconds of CPU used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def peak(self) -> float:
        """Peak resident memory in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    def stop(self) -> None:
        """As systemd would."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)

    def kill(self) -> None:
        """As a machine that fails would."""
        self.process.kill()
        self.process.wait()


class Watcher:
    """Follows all pods as nodes do: when each was created by us, when its annotation was seen."""

    def __init__(self, client: KubeClient) -> None:
        self._reflector: Reflector[Pod] = Reflector(client, PODS, namespace=NAMESPACE)
        self._reflector.subscribe(self._changed)
        self.created: dict[str, float] = {}
        self.annotated: dict[str, float] = {}
        self._left: set[str] = set()
        self._done = asyncio.Event()
        self._task = asyncio.create_task(self._reflector.run())

    def _changed(self, change: Change[Pod]) -> None:
        if change.new is None or POD_NETWORKS not in change.new.metadata.annotations:
            return
        name = change.new.metadata.name
        if name not in self.annotated:
            self.annotated[name] = time.perf_counter()
            self._left.discard(name)
            if not self._left:
                self._done.set()

    async def start(self) -> None:
        """Returns when it follows."""
        await self._reflector.synced()

    def expect(self, names: Iterable[str]) -> None:
        """Names that will come."""
        self._left = {name for name in names if name not in self.annotated}
        self._done.clear()

    async def all(self, deadline: float = 120.0) -> None:
        """Returns when all expected are annotated."""
        if self._left:
            await asyncio.wait_for(self._done.wait(), deadline)

    def latencies(self, names: Iterable[str]) -> list[float]:
        """Seconds from sending the create to seeing the annotation, sorted."""
        return sorted(self.annotated[name] - self.created[name] for name in names)

    async def stop(self) -> None:
        """Ends following."""
        self._task.cancel()
        await asyncio.wait({self._task})


def pod(name: str, node: str) -> dict[str, Any]:
    """A pod as a deployment makes it."""
    container = {"name": "c", "image": "registry.example/app:1", "ports": [{"name": "http", "containerPort": 8080}]}
    return {
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": "web", "tier": "front"}},
        "spec": {"nodeName": node, "containers": [container]},
    }


async def prepare(client: KubeClient) -> None:
    """A namespace of our own, with the account that pods need on a real API server, and nothing else in it."""
    account = {"metadata": {"name": "default", "namespace": NAMESPACE}}
    for resource, made in ((NAMESPACES, {"metadata": {"name": NAMESPACE}}), (SERVICE_ACCOUNTS, account)):
        with suppress(AlreadyExists):
            await client.create(resource, made)
    await clear(client)


async def clear(client: KubeClient) -> None:
    """Removes all that this benchmark has made."""
    for resource in (PODS, SERVICES, ENDPOINT_SLICES, NETWORK_POLICIES, LEASES):
        await remove_all(client, resource, NAMESPACE)
    await remove_all(client, NODES, "")


async def remove_all(client: KubeClient, resource: Resource[Any], namespace: str) -> None:
    """Removes a namespace's objects of a kind, or the cluster's as far as they are ours."""
    names = [each.metadata.name for each in await client.list(resource, namespace=namespace)]
    waiting = [name for name in names if namespace or name.startswith(NODE)]

    async def work() -> None:
        while waiting:
            with suppress(NotFound):
                await client.delete(resource, waiting.pop(), namespace, grace_seconds=0)

    await asyncio.gather(*(work() for _ in range(CREATORS)))


async def create_nodes(client: KubeClient, count: int) -> list[str]:
    """Nodes with a /20 each."""
    names = [f"{NODE}{index}" for index in range(count)]
    for index, name in enumerate(names):
        cidr = f"10.{index // 16}.{index % 16 * 16}.0/20"
        await client.create(NODES, {"metadata": {"name": name}, "spec": {"podCIDR": cidr, "podCIDRs": [cidr]}})
    return names


async def create_pods(
    client: KubeClient, names: Iterable[str], nodes: list[str], created: dict[str, float], *, annotate: bool = False
) -> None:
    """Many at once. `annotate`: patch each as soon as it is there, as a controller without any work would."""
    queue = list(names)[::-1]
    patch: Mapping[str, Any] = {"metadata": {"annotations": {POD_NETWORKS: '{"default":{"ips":["10.0.0.1/20"]}}'}}}

    async def work() -> None:
        while queue:
            name = queue.pop()
            created[name] = time.perf_counter()
            await client.create(PODS, pod(name, nodes[len(queue) % len(nodes)]))
            if annotate:
                await client.merge_patch(PODS, name, NAMESPACE, patch)

    await asyncio.gather(*(work() for _ in range(CREATORS)))


async def rows(remote: str) -> OvsdbSession:
    """A session that follows what the benchmarks count."""
    session = OvsdbSession(remote, "OVN_Northbound")
    session.monitor({"ACL": ["external_ids"], "Load_Balancer": ["name", "vips"], "Logical_Switch_Port": ["name"]})
    await session.start()
    return session
