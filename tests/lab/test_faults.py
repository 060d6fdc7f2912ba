"""Daemons die and the API server goes away in the middle of a walk: the walk ends all the same, and nothing is left.

Each point is a daemon, killed with SIGKILL so many seconds after the walk began and started again at once, once on
the way up and once on the way down.
"""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable

import pytest

from benchmarks import report
from foundation.kube import resources
from lab import objects
from lab.demo import disks_walk, inventory, pods_walk
from lab.demo.observer import Observer
from lab.layout import DEFAULT_NODE, HOST_NODE

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

PODS_SECONDS = 40.0
CLEAN: dict[str, dict[str, int]] = {}

POD_POINTS = [
    (daemon, node, delay)
    for daemon, node in (
        ("cni-controller", DEFAULT_NODE),
        ("cni-node-default", DEFAULT_NODE),
        ("cni-node-host", HOST_NODE),
        ("cni-node-dpu", HOST_NODE),
        ("sriov-device-plugin", HOST_NODE),
    )
    for delay in (0.0, 0.12)
]
CLAIM_POINTS = [
    (daemon, delay)
    for daemon in ("csi-controller", "csi-node-dpu", "volume-attacher", "opi-bridge", "csi-node-host", "spdk-dpu")
    for delay in (0.1, 0.5)
]


def count(walk: str, *, clean: bool) -> None:
    """Add a point to faults.json; one that is not clean fails its test as well."""
    figures = CLEAN.setdefault(walk, {"points": 0, "clean": 0})
    figures["points"] += 1
    figures["clean"] += clean
    report.merge("faults.json", {walk: figures})


async def killed_meanwhile(lab, daemon: str, delay: float, walk: Callable[[], Awaitable[object]]) -> None:
    """Run ``walk``; ``delay`` seconds into it kill the daemon and start it again."""

    async def strike() -> None:
        await asyncio.sleep(delay)
        await lab.suite.kill(daemon)
        if daemon == "spdk-dpu":
            lab.suite.start_spdk(daemon)
            await lab.suite.spdk_answers(daemon)  # what is left on it is compared next
        else:
            lab.suite.start_daemon(daemon)

    async with asyncio.TaskGroup() as group:
        group.create_task(strike())
        group.create_task(walk())


@pytest.mark.parametrize(("daemon", "node", "delay"), POD_POINTS)
async def test_a_pod_comes_and_goes_though_a_daemon_is_killed(
    running_lab, daemon: str, node: str, delay: float
) -> None:
    lab, observer = running_lab, running_lab.observer
    before = await inventory.take(lab.layout, lab.network)
    name = f"pod-{daemon}-{int(delay * 100)}"
    clean = False
    try:

        async def up() -> None:
            await observer.client.create(resources.PODS, objects.pod(name, node_name=node))
            await phase(observer, name, "Running")

        async def down() -> None:
            await observer.client.delete(resources.PODS, name, objects.NAMESPACE)
            await gone(observer, name)

        await killed_meanwhile(lab, daemon, delay, up)
        await killed_meanwhile(lab, daemon, delay, down)
        await inventory.same_again(before, lab.layout, lab.network)
        clean = True
    finally:
        count("pod", clean=clean)


@pytest.mark.parametrize(("daemon", "delay"), CLAIM_POINTS)
async def test_a_claim_comes_and_goes_though_a_daemon_is_killed(running_lab, daemon: str, delay: float) -> None:
    lab, observer = running_lab, running_lab.observer
    before = await inventory.take(lab.layout, lab.network)
    name = f"disk-{daemon}-{int(delay * 100)}"
    clean = False
    try:

        async def up() -> None:
            await observer.client.create(resources.PERSISTENT_VOLUME_CLAIMS, objects.claim(name))
            body = objects.pod(name, node_name=HOST_NODE, claim_name=name)
            created = await observer.client.create(resources.PODS, body)
            await phase(observer, name, "Running")
            record = await pods_walk.running(observer, lab.layout, created.metadata.uid, name, HOST_NODE)
            marker = await asyncio.to_thread(disks_walk.write_marker, disks_walk.mount_point(record))
            await asyncio.to_thread(disks_walk.find_bytes, lab.layout.target_file.parent, marker)

        async def down() -> None:
            await observer.client.delete(resources.PODS, name, objects.NAMESPACE)
            await observer.client.delete(resources.PERSISTENT_VOLUME_CLAIMS, name, objects.NAMESPACE)
            await gone(observer, name)
            await observer.until_true(
                lambda: not observer.store(resources.PERSISTENT_VOLUMES),
                seconds=PODS_SECONDS,
                what=f"the volume of {name} is deleted",
            )

        await killed_meanwhile(lab, daemon, delay, up)
        await killed_meanwhile(lab, daemon, delay, down)
        await inventory.same_again(before, lab.layout, lab.network)
        clean = True
    finally:
        count("claim", clean=clean)


async def test_ten_seconds_without_an_api_server(running_lab) -> None:
    """A running pod and its traffic don't care; what was asked for meanwhile happens when the server is back."""
    lab, observer = running_lab, running_lab.observer
    before = await inventory.take(lab.layout, lab.network)
    clean = False
    try:
        first = await pods_walk.create(observer, lab.layout, "before", DEFAULT_NODE)
        server = lab.suite.process("apiserver")
        os.kill(server.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(10)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        second = await pods_walk.create(observer, lab.layout, "after", HOST_NODE)
        for record in (first, second):
            await pods_walk.delete(observer, record)
        await inventory.same_again(before, lab.layout, lab.network)
        clean = True
    finally:
        count("api-server-away", clean=clean)


async def phase(observer: Observer, name: str, wanted: str) -> None:
    await observer.until(
        resources.PODS,
        f"{objects.NAMESPACE}/{name}",
        lambda pod: pod is not None and pod.status.phase == wanted,
        seconds=PODS_SECONDS,
        what=f"pod {name} is {wanted}",
    )


async def gone(observer: Observer, name: str) -> None:
    await observer.until(
        resources.PODS,
        f"{objects.NAMESPACE}/{name}",
        lambda pod: pod is None,
        seconds=PODS_SECONDS,
        what=f"pod {name} is gone",
    )
