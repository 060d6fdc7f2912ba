"""The storage half beside its floors: the suite's own daemons as processes, against bare calls on the same SPDK.

Goals: CreateVolume p50 <= 1.5 x floor, publish p50 <= 1.3 x floor, 100 claims at once <= 3 s, csi-controller <= 80 MiB.
The floor of each step is the least sequence of calls that does the same, one after another on open connections.
Needs root (loop devices, mounts).
"""

import asyncio
import contextlib
import functools
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc.aio

from benchmarks import report
from benchmarks.storage.floor import Floor
from benchmarks.storage.stack import MIB, Stack, until
from csi.node_host import mounts
from dpu_offload_stubs.csi import csi_pb2, csi_pb2_grpc
from foundation.daemon.serving import dial
from foundation.kube.client import KubeClient
from foundation.kube.resources import NODES
from foundation.spdk.client import SpdkClient
from lab.hardware import loops
from lab.hardware.card import Card
from lab.hardware.sysfs import SysfsTree
from lab.layout import DPU_NODE, HOST_NODE

SERIAL = 40
CROWD = 100
STAGED = 8
CAPABILITY = csi_pb2.VolumeCapability(
    access_mode=csi_pb2.VolumeCapability.AccessMode(mode=csi_pb2.VolumeCapability.AccessMode.SINGLE_NODE_WRITER),
    mount=csi_pb2.VolumeCapability.MountVolume(fs_type="ext4"),
)
Work = Callable[[int], Awaitable[Any]]


async def p50(work: Work, count: int) -> float:
    """Median seconds of `work(0)`, `work(1)`, … one after another."""
    seconds = []
    for index in range(count):
        started = time.perf_counter()
        await work(index)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


async def together(work: Work, count: int) -> float:
    started = time.perf_counter()
    await asyncio.gather(*(work(index) for index in range(count)))
    return time.perf_counter() - started


class Suite:
    """The same through csi-controller and csi-node-host, as side-cars and kubelet call them."""

    def __init__(self, stack: Stack, controller: grpc.aio.Channel, host: grpc.aio.Channel) -> None:
        self.stack = stack
        self.controller = csi_pb2_grpc.ControllerStub(controller)
        self.identity = csi_pb2_grpc.IdentityStub(controller)
        self.node = csi_pb2_grpc.NodeStub(host)
        self.volumes: dict[int, csi_pb2.Volume] = {}
        self.contexts: dict[int, dict[str, str]] = {}

    async def create(self, index: int) -> None:
        request = csi_pb2.CreateVolumeRequest(
            name=f"pvc-{index}",
            capacity_range=csi_pb2.CapacityRange(required_bytes=64 * MIB),
            volume_capabilities=[CAPABILITY],
        )
        self.volumes[index] = (await self.controller.CreateVolume(request, timeout=30)).volume

    async def publish(self, index: int) -> None:
        request = csi_pb2.ControllerPublishVolumeRequest(
            volume_id=self.volumes[index].volume_id,
            node_id=HOST_NODE,
            volume_capability=CAPABILITY,
            volume_context=self.volumes[index].volume_context,
        )
        answer = await self.controller.ControllerPublishVolume(request, timeout=60)
        self.contexts[index] = dict(answer.publish_context)

    async def stage(self, index: int) -> None:
        request = csi_pb2.NodeStageVolumeRequest(
            volume_id=self.volumes[index].volume_id,
            publish_context=self.contexts[index],
            staging_target_path=self.path(index),
            volume_capability=CAPABILITY,
        )
        await self.node.NodeStageVolume(request, timeout=60)

    async def unstage(self, index: int) -> None:
        request = csi_pb2.NodeUnstageVolumeRequest(
            volume_id=self.volumes[index].volume_id, staging_target_path=self.path(index)
        )
        await self.node.NodeUnstageVolume(request, timeout=60)

    async def unpublish(self, index: int) -> None:
        request = csi_pb2.ControllerUnpublishVolumeRequest(volume_id=self.volumes[index].volume_id, node_id=HOST_NODE)
        await self.controller.ControllerUnpublishVolume(request, timeout=60)

    async def delete(self, index: int) -> None:
        request = csi_pb2.DeleteVolumeRequest(volume_id=self.volumes.pop(index).volume_id)
        await self.controller.DeleteVolume(request, timeout=30)

    def path(self, index: int) -> str:
        return str(self.stack.layout.run / "staging" / str(index))

    async def bare_unstage(self, index: int) -> None:
        mounts.unmount(self.path(index))

    async def shown(self, index: int) -> bool:
        return self.node_of(index) is not None

    def node_of(self, index: int) -> Path | None:
        """The disk's node on the host, once the lab's card has made it."""
        wanted = self.contexts[index]["namespaceUuid"]
        for uuid in self.stack.layout.sysfs(HOST_NODE).glob("block/*/uuid"):
            with contextlib.suppress(OSError):
                if uuid.read_text().strip() == wanted:
                    return self.stack.layout.devices / uuid.parent.name
        return None


async def measure(stack: Stack) -> None:
    layout = stack.layout
    async with (
        SpdkClient(f"unix:{layout.target_socket}") as target,
        SpdkClient(f"unix:{layout.dpu_spdk_socket}") as dpu,
        dial(f"unix:{layout.csi_controller_socket}", name="csi-controller", deadline=60) as controller,
        dial(f"unix:{layout.csi_host_socket}", name="csi-node-host", deadline=60) as host,
    ):
        floor, suite = Floor(stack, target, dpu), Suite(stack, controller, host)
        await until(lambda: _ready(suite))
        await until(lambda: _announced(layout.kubeconfig))
        for name, count in (("create", SERIAL), ("publish", SERIAL), ("unpublish", SERIAL), ("delete", SERIAL)):
            bare = await p50(getattr(floor, name), count)
            ours = await p50(getattr(suite, name), count)
            most = {"create": 1.5, "publish": 1.3}.get(name)
            goal = {"of": "ratio", "max": most} if most else None
            report.add(f"csi_{name}_p50", value=ours * 1000, unit="ms", floor=bare * 1000, goal=goal)
        for name in ("create", "publish", "unpublish", "delete"):
            bare = await together(getattr(floor, name), CROWD)
            ours = await together(getattr(suite, name), CROWD)
            goal = {"of": "value", "max": 3.0} if name == "create" else None
            report.add(f"csi_{name}_100_at_once", value=ours, unit="s", floor=bare, goal=goal)
        memory = stack.resident_mib("csi-controller")
        report.add("csi_controller_memory", value=memory, unit="MiB", goal={"of": "value", "max": 80})
        await _stage(stack, suite)


async def _stage(stack: Stack, suite: Suite) -> None:
    """Format, mount and their reverse, beside mkfs, mount and umount alone on a disk of the same kind."""
    card = Card(stack.layout.functions, SysfsTree(stack.layout.sysfs(HOST_NODE)), stack.layout.devices)
    task = asyncio.create_task(card.run())
    try:
        await _staged(suite)
    finally:
        task.cancel()
        await asyncio.wait([task])
        for device in await loops.below(stack.layout.run):
            await loops.detach(device)


async def _staged(suite: Suite) -> None:
    for index in range(2 * STAGED):
        await suite.create(index)
    for index in range(STAGED):
        await suite.publish(index)
        await until(functools.partial(suite.shown, index))
    bare = await p50(lambda index: _bare_stage(suite, index), STAGED)
    bare_reverse = await p50(suite.bare_unstage, STAGED)
    for index in range(STAGED):
        await suite.unpublish(index)
    for index in range(STAGED, 2 * STAGED):
        await suite.publish(index)
        await until(functools.partial(suite.shown, index))
    ours = await p50(lambda index: suite.stage(STAGED + index), STAGED)
    reverse = await p50(lambda index: suite.unstage(STAGED + index), STAGED)
    report.add("csi_stage_p50", value=ours * 1000, unit="ms", floor=bare * 1000)
    report.add("csi_unstage_p50", value=reverse * 1000, unit="ms", floor=bare_reverse * 1000)
    for index in range(STAGED, 2 * STAGED):
        await suite.unpublish(index)


async def _bare_stage(suite: Suite, index: int) -> None:
    node = suite.node_of(index)
    options = "nodiscard,lazy_itable_init=1,lazy_journal_init=1"
    process = await asyncio.create_subprocess_exec("mkfs.ext4", "-q", "-F", "-m", "0", "-E", options, str(node))
    await process.wait()
    os.makedirs(suite.path(index), exist_ok=True)
    mounts.mount(str(node), suite.path(index), "ext4", [])


async def _ready(suite: Suite) -> bool:
    try:
        return (await suite.identity.Probe(csi_pb2.ProbeRequest(), timeout=2)).ready.value
    except grpc.aio.AioRpcError:
        return False


async def _announced(kubeconfig: Path) -> bool:
    async with await KubeClient.connect(str(kubeconfig)) as kube:
        text = (await kube.get(NODES, DPU_NODE)).metadata.annotations.get("dpu-offload.io/storage", "{}")
    return bool(json.loads(text).get("functions", {}).get("total"))


async def run() -> None:
    directory = Path(tempfile.mkdtemp(prefix="cb-", dir="/tmp"))
    stack = Stack(directory)
    try:
        await stack.up()
        await measure(stack)
    finally:
        await stack.down()
        shutil.rmtree(directory, ignore_errors=True)


def main() -> None:
    if os.geteuid() != 0:
        raise SystemExit("benchmarks.csi needs root: it makes loop devices and mounts")
    asyncio.run(run())


if __name__ == "__main__":
    main()
