"""What dpu-lab's commands do: build, walk, show, take down; each returns an exit code."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from foundation.kube import resources
from foundation.kube.client import KubeClient
from foundation.kube.models.core import Node
from lab import clearing, record, setting
from lab.demo import disks_walk, pods_walk
from lab.demo.observer import Observer
from lab.demo.steps import Recorder, StepFailed
from lab.layout import DEFAULT_NODE, DPU_NODE, DRIVER, HOST_NODE, VF_RESOURCE, Layout
from lab.suite import Options, Suite

REGISTERED_SECONDS = 20.0
STORAGE_ANNOTATION = "dpu-offload.io/storage"
FAILED = 1
NO_LAB = 3


async def demo(layout: Layout, *, kubeconfig: Path | None, spdk_tgt: Path | None, report: Path | None) -> int:
    """0 only if every step held."""
    steps = Recorder()
    suite = Suite(Options(layout=layout, kubeconfig=kubeconfig, spdk_tgt=spdk_tgt))
    try:
        async with _taken_down(suite, steps):
            await _bring_up(suite, steps)
            async with _observer(suite) as observer:
                network = suite.network
                assert network is not None
                await _registered(observer, steps)
                # A failed step is in the record; the other walks are still worth seeing.
                with contextlib.suppress(StepFailed):
                    await pods_walk.walk(steps, observer, layout, network)
                with contextlib.suppress(StepFailed):
                    await disks_walk.walk(steps, observer, suite, network)
                with contextlib.suppress(StepFailed):
                    await disks_walk.crash_walk(steps, observer, suite, network)
                await setting.remove_objects(observer.client)
    except clearing.RunDirectoryTaken as error:
        print(f"dpu-lab: {error}", file=sys.stderr)
        return FAILED
    except StepFailed:
        pass
    steps.table()
    if report is not None:
        steps.write(report)
    return 0 if steps.held else FAILED


async def up(layout: Layout, *, kubeconfig: Path | None, spdk_tgt: Path | None) -> int:
    steps = Recorder()
    suite = Suite(Options(layout=layout, kubeconfig=kubeconfig, spdk_tgt=spdk_tgt, keep=True))
    try:
        await _bring_up(suite, steps)
        async with _observer(suite) as observer:
            await _registered(observer, steps)
    except clearing.RunDirectoryTaken as error:
        print(f"dpu-lab: {error}", file=sys.stderr)
        return FAILED
    except (StepFailed, asyncio.CancelledError) as error:
        await suite.down()
        print(f"dpu-lab: {error or 'interrupted'}", file=sys.stderr)
        return FAILED
    steps.table()
    print(f"\nexport KUBECONFIG={suite.kubeconfig}\nend it with: dpu-lab down")
    return 0


def status(layout: Layout, *, as_json: bool) -> int:
    known = record.load(layout.state)
    alive = {name: process.alive() for name, process in known.processes.items()} if known is not None else {}
    if as_json:
        print(json.dumps({"run": str(layout.run), "processes": alive}))
    elif known is None:
        print(f"no lab in {layout.run}: `dpu-lab up` starts one")
    else:
        for name, process in known.processes.items():
            print(f"{name:22} {'running' if alive[name] else 'DEAD':8} pid {process.pid}")
        print(f"\nkubeconfig  {known.kubeconfig or layout.kubeconfig}")
        print(f"logs        {layout.logs}\nconfig      {layout.config}")
    if known is None:
        return NO_LAB
    return 0 if all(alive.values()) else FAILED


async def down(layout: Layout) -> int:
    known = record.load(layout.state)
    if known is not None and known.kubeconfig:
        async with await KubeClient.connect(kubeconfig=known.kubeconfig) as client:
            await setting.remove_objects(client)
    await clearing.clear(layout)
    return 0


async def _bring_up(suite: Suite, steps: Recorder) -> None:
    # Not a step: a lab that is in use is refused before anything is shown.
    await clearing.claim_run_directory(suite.layout)
    await suite.up(steps)


async def _registered(observer: Observer, steps: Recorder) -> None:
    """Kubelet knows the CSI driver and the VFs, the DPU has published what it can take, and the nodes are Ready."""
    async with steps.step("kubelet knows the CSI driver and the VFs, the cluster the DPU's functions") as notes:
        await observer.until(
            resources.CSI_NODES,
            HOST_NODE,
            lambda entry: entry is not None and any(driver.name == DRIVER for driver in entry.spec.drivers or ()),
            seconds=REGISTERED_SECONDS,
            what=f"{DRIVER} is in CSINode {HOST_NODE}",
        )
        host = await observer.until(
            resources.NODES,
            HOST_NODE,
            lambda node: node is not None and str((node.status.allocatable or {}).get(VF_RESOURCE, "0")) != "0",
            seconds=REGISTERED_SECONDS,
            what=f"node {HOST_NODE} offers {VF_RESOURCE}",
        )
        await observer.until(
            resources.NODES,
            DPU_NODE,
            lambda node: node is not None and STORAGE_ANNOTATION in (node.metadata.annotations or {}),
            seconds=REGISTERED_SECONDS,
            what=f"node {DPU_NODE} has the annotation {STORAGE_ANNOTATION}",
        )
        for name in (DEFAULT_NODE, HOST_NODE):
            await observer.until(
                resources.NODES, name, _is_ready, seconds=REGISTERED_SECONDS, what=f"node {name} is Ready"
            )
        if host is not None:
            notes.text = f"{(host.status.allocatable or {})[VF_RESOURCE]} VFs"


def _is_ready(node: Node | None) -> bool:
    conditions = node.status.conditions or () if node is not None else ()
    return any(one.type == "Ready" and one.status == "True" for one in conditions)


@contextlib.asynccontextmanager
async def _taken_down(suite: Suite, steps: Recorder) -> AsyncIterator[None]:
    try:
        yield
    except clearing.RunDirectoryTaken:
        raise
    except BaseException:
        await suite.down()
        raise
    else:
        steps.section("The end")
        async with steps.step("everything taken down"):
            await suite.down()


@contextlib.asynccontextmanager
async def _observer(suite: Suite) -> AsyncIterator[Observer]:
    async with await KubeClient.connect(kubeconfig=str(suite.kubeconfig)) as client:
        observer = Observer(client)
        await observer.start()
        try:
            yield observer
        finally:
            await observer.stop()
