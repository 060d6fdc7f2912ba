"""cni-controller from Kubernetes' objects to northbound rows: latency, bursts, restarts, CPU, memory.

Runs on the API server stand-in, or on the one that KUBECONFIG names. The figures to beat are ovn-kubernetes' on two
such cores with a real API server; each of ours stands beside its floor, the same work sent raw in the same run.
"""

from __future__ import annotations

import asyncio
import gc
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.controller_lab import (
    NAMESPACE,
    Controller,
    Northbound,
    Watcher,
    clear,
    create_nodes,
    create_pods,
    prepare,
    remove_all,
    rows,
)
from benchmarks.controller_rows import through_core, written_raw
from foundation.kube.client import KubeClient
from foundation.kube.resources import ENDPOINT_SLICES, NETWORK_POLICIES, PODS, SERVICES
from foundation.ovsdb import OvsdbSession, Row

NODES = 20
PACED, PACE = 200, 10.0
MANY = int(os.environ.get("BENCH_PODS", "10000"))


@asynccontextmanager
async def api_server() -> AsyncIterator[str]:
    """Path of a kubeconfig: the one given, or of a stand-in in a process of its own."""
    given = os.environ.get("KUBECONFIG", "")
    if given:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="ba") as directory:
        path = Path(directory) / "kubeconfig"
        command = [sys.executable, "-m", "lab.apiserver", "--kubeconfig", str(path)]
        process = await asyncio.to_thread(subprocess.Popen, command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        await asyncio.to_thread(process.stdout.readline)
        yield str(path)
        process.terminate()
        process.wait()


def figure(
    name: str, *, value: float, unit: str, floor: float | None = None, goal: dict[str, Any] | None = None
) -> None:
    """Reports one figure, under a name that says on which kind of API server it was measured."""
    real = " on a real API server" if os.environ.get("KUBECONFIG") else ""
    report.add(f"controller {name}{real}", value=value, unit=unit, floor=floor, goal=goal)


def at_most(number: float) -> dict[str, Any]:
    return {"of": "value", "max": number}


def percentile(sorted_values: list[float], share: float) -> float:
    """By nearest rank: the least value that at least `share` of all do not exceed."""
    return sorted_values[math.ceil(len(sorted_values) * share) - 1]


async def pods(client: KubeClient, kubeconfig: str, northbound: Northbound) -> list[str]:
    """Paced creation, bursts; returns the nodes."""
    nodes = await create_nodes(client, NODES)
    floor_watch = Watcher(client)
    await floor_watch.start()
    # The floor first: pods that are annotated by hand need nothing from the controller afterwards.
    floors = {}
    for count in (500, 2000):
        names = [f"floor-{count}-{index}" for index in range(count)]
        floor_watch.expect(names)
        started = time.perf_counter()
        await create_pods(client, names, nodes, floor_watch.created, annotate=True)
        await floor_watch.all()
        floors[count] = time.perf_counter() - started
    single = []
    for index in range(100):
        name = f"floor-one-{index}"
        floor_watch.expect([name])
        await create_pods(client, [name], nodes, floor_watch.created, annotate=True)
        await floor_watch.all()
        single += floor_watch.latencies([name])
    await floor_watch.stop()
    await remove_all(client, PODS, NAMESPACE)

    controller = Controller(kubeconfig, northbound)
    await controller.ready()
    watcher = Watcher(client)
    await watcher.start()
    names = [f"paced-{index}" for index in range(PACED)]
    watcher.expect(names)
    begin = time.perf_counter()
    creating = []
    for index, name in enumerate(names):
        await asyncio.sleep(max(0.0, begin + index / PACE - time.perf_counter()))
        creating.append(asyncio.create_task(create_pods(client, [name], nodes, watcher.created)))
    await asyncio.gather(*creating)
    await watcher.all()
    seconds = watcher.latencies(names)
    single.sort()
    for label, share, goal in (("p50", 0.5, 9.0), ("p99", 0.99, 14.0)):
        figure(
            f"paced pod to annotation {label}",
            value=percentile(seconds, share) * 1000,
            unit="ms",
            floor=percentile(single, share) * 1000,
            goal=at_most(goal),
        )
    session = await rows(northbound.remote)
    before = controller.cpu()
    for count, goal in ((500, 1.8), (2000, 7.8)):
        names = [f"burst-{count}-{index}" for index in range(count)]
        watcher.expect(names)
        started = time.perf_counter()
        await create_pods(client, names, nodes, watcher.created)
        await watcher.all()
        is_last = partial(_is_named, f"{NAMESPACE}_{names[-1]}")
        await session.until("Logical_Switch_Port", is_last, deadline=30)
        figure(
            f"burst of {count} pods",
            value=time.perf_counter() - started,
            unit="s",
            floor=floors[count],
            goal=at_most(goal),
        )
    figure("CPU a pod", value=(controller.cpu() - before) / 2500 * 1000, unit="ms", goal=at_most(1.7))
    figure("peak memory with 2,600 pods", value=controller.peak(), unit="MiB", goal=at_most(235))
    await policies_and_services(client, session)
    await session.stop()
    await watcher.stop()
    controller.stop()
    return nodes


def _is_named(name: str, row: Row) -> bool:
    return bool(row["name"] == name)


async def policies_and_services(client: KubeClient, session: OvsdbSession) -> None:
    """100 NetworkPolicies; 100 Services with 10 endpoints each; until the last is in the database."""
    started = time.perf_counter()
    policies = [
        {
            "metadata": {"name": f"p{index}", "namespace": NAMESPACE},
            "spec": {
                "podSelector": {"matchLabels": {"app": f"app-{index}"}},
                "policyTypes": ["Ingress"],
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"tier": "front"}}}], "ports": [{"port": 8080}]}],
            },
        }
        for index in range(100)
    ]
    await asyncio.gather(*(client.create(NETWORK_POLICIES, each) for each in policies))
    created = time.perf_counter() - started
    await _count(session, "ACL", 200)
    seconds = time.perf_counter() - started
    figure("100 policies in the database", value=seconds, unit="s", floor=created, goal=at_most(0.35))
    started = time.perf_counter()

    async def service(index: int) -> None:
        name = f"s{index}"
        await client.create(
            SERVICES, {"metadata": {"name": name, "namespace": NAMESPACE}, "spec": {"ports": [{"port": 80}]}}
        )
        slice_ = {
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [f"10.9.{index}.{each}"]} for each in range(1, 11)],
            "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        }
        await client.create(ENDPOINT_SLICES, slice_)

    await asyncio.gather(*(service(index) for index in range(100)))
    created = time.perf_counter() - started
    await _count(session, "Load_Balancer", 100, full=True)
    figure(
        "100 services of 10 endpoints in the database",
        value=time.perf_counter() - started,
        unit="s",
        floor=created,
        goal=at_most(0.7),
    )


async def _count(session: OvsdbSession, table: str, wanted: int, *, full: bool = False) -> None:
    enough = asyncio.Event()

    def look(_: object = None) -> None:
        found = [
            row
            for row in session.rows(table).values()
            if not full or all(v.count(",") == 9 for v in row["vips"].values())
        ]
        if len(found) >= wanted:
            enough.set()

    unsubscribe = session.subscribe(table, look)
    look()
    await asyncio.wait_for(enough.wait(), 60)
    unsubscribe()


async def restart(kubeconfig: str, northbound: Northbound, label: str, goals: tuple[float, float, float]) -> None:
    """A new process on what is there: seconds, CPU, memory, and rows touched (none may be)."""
    session = await rows(northbound.remote)
    touched: list[object] = []
    for table in ("ACL", "Load_Balancer", "Logical_Switch_Port"):
        session.subscribe(table, touched.append)
    controller = Controller(kubeconfig, northbound)
    seconds = await controller.ready()
    floor = await _empty_python()
    wall, cpu, memory = goals
    figure(f"restart with {label}", value=seconds, unit="s", floor=floor, goal=at_most(wall))
    figure(f"restart CPU with {label}", value=controller.cpu(), unit="s", goal=at_most(cpu))
    figure(f"restart memory with {label}", value=controller.peak(), unit="MiB", goal=at_most(memory))
    figure(f"restart rows touched with {label}", value=len(touched), unit="rows", goal=at_most(0))
    controller.stop()
    await session.stop()


async def _empty_python() -> float:
    """Seconds that importing the daemon's packages takes: no restart can be shorter."""
    started = time.perf_counter()
    command = [sys.executable, "-c", "import cni.controller.app"]
    await asyncio.to_thread(subprocess.run, command, check=True)
    return time.perf_counter() - started


async def northbound_rate() -> None:
    """Ports a second into the database through the core's committer, beside the same rows sent raw."""
    ours = Northbound()
    rate, made = await through_core(ours.remote)
    ours.stop()
    raw = Northbound()
    floor = await written_raw(raw.remote, made)
    raw.stop()
    figure("northbound ports a second", value=rate, unit="1/s", floor=floor, goal={"of": "ratio", "min": 0.25})


async def run() -> None:
    """All parts, in order."""
    await northbound_rate()
    async with api_server() as kubeconfig, await KubeClient.connect(kubeconfig) as client:
        await prepare(client)
        northbound = Northbound()
        nodes = await pods(client, kubeconfig, northbound)
        await restart(kubeconfig, northbound, "2,600 pods", (1.4, 1.5, 235))
        if MANY > 2600:
            controller = Controller(kubeconfig, northbound)
            watcher = Watcher(client)
            await controller.ready()
            names = [f"many-{index}" for index in range(MANY - 2600)]
            watcher.expect(names)
            await create_pods(client, names, nodes, watcher.created)
            await watcher.all(300)
            await watcher.stop()
            controller.stop()
            await restart(kubeconfig, northbound, f"{MANY:,} pods", (5.0, 5.0, 150))
        await failover(client, kubeconfig, northbound, nodes)
        northbound.stop()
        await clear(client)


async def failover(client: KubeClient, kubeconfig: str, northbound: Northbound, nodes: list[str]) -> None:
    """From the death of the leader, with settings as shipped, until another replica has served a new pod."""
    leader = Controller(kubeconfig, northbound, identity="a")
    await leader.ready()
    standby = Controller(kubeconfig, northbound, identity="b")
    await standby.ready()
    watcher = Watcher(client)
    await watcher.start()
    names = [f"failover-{index}" for index in range(2)]
    watcher.expect(names[:1])
    await create_pods(client, names[:1], nodes, watcher.created)
    await watcher.all()
    watcher.expect(names)
    started = time.perf_counter()
    leader.kill()
    await create_pods(client, names[1:], nodes, watcher.created)
    await watcher.all()
    figure("failover after the leader's death", value=time.perf_counter() - started, unit="s", goal=at_most(15))
    await watcher.stop()
    standby.stop()


def main() -> None:
    """Entry point of `python -m benchmarks.controller`."""
    gc.disable()  # a pause of the clock's own process is nobody's latency
    asyncio.run(run())


if __name__ == "__main__":
    main()
