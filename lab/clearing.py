"""Takes away all that a lab leaves: processes, mounts, loop devices, network namespaces, files. Nothing else."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from csi.node_host import mounts
from lab import processes, record
from lab.hardware import loops
from lab.kubelet.pods import load_record
from lab.layout import Layout
from lab.network import Network, namespaces

UNMOUNT_SECONDS = 10.0


class RunDirectoryTaken(RuntimeError):
    """A lab is running in this run directory."""


async def claim_run_directory(layout: Layout) -> None:
    """Clear what a crashed lab left. Raises RunDirectoryTaken when a living one is there."""
    known = record.load(layout.state)
    if known is not None and known.owner != record.this_process():
        if known.keep and any(process.alive() for process in known.processes.values()):
            raise RunDirectoryTaken(
                f"a lab is up in {layout.run}: end it with `dpu-lab down`, or choose another place with --run-dir"
            )
        if not known.keep and known.owner.alive():
            raise RunDirectoryTaken(
                f"another dpu-lab (pid {known.owner.pid}) works in {layout.run}: wait for it, or choose --run-dir"
            )
    if known is not None or layout.run.exists():
        await clear(layout)
    layout.run.mkdir(parents=True, exist_ok=True)


async def clear(layout: Layout) -> None:
    """Kubelet first, so that nobody makes new things; then what holds files; then the files."""
    known = record.load(layout.state)
    running = dict(known.processes) if known is not None else {}
    first = [process for name, process in running.items() if name.startswith(("kubelet", "cluster"))]
    await processes.stop(first)
    # Before the daemons: a mount whose disk is gone would hang its unmount.
    await unmount_below(layout.run)
    await processes.stop([process for process in running.values() if process not in first])
    for device in await loops.below(layout.run):
        await loops.detach(device)
    for sandbox in layout.run.glob("kubelet/*/pods/*/record.json"):
        for netns in _namespaces(sandbox):
            await namespaces.remove(Path(netns).name)
    await Network.remove(layout.network)
    await asyncio.to_thread(shutil.rmtree, layout.run, True)


def mounts_below(directory: Path) -> list[Path]:
    """Mount points below ``directory``, deepest first."""
    points = [Path(mount.point) for mount in mounts.table()]
    below = [point for point in points if point.is_relative_to(directory)]
    return sorted(below, key=lambda point: len(point.parts), reverse=True)


async def unmount_below(directory: Path) -> None:
    for point in mounts_below(directory):
        process = await asyncio.create_subprocess_exec("umount", "--lazy", str(point))
        await asyncio.wait_for(process.wait(), UNMOUNT_SECONDS)


def _namespaces(pod_record: Path) -> list[str]:
    pod = load_record(pod_record)
    return [pod.sandbox.netns] if pod is not None and pod.sandbox is not None else []
