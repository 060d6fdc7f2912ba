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
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import yaml

from benchmarks import report
from csi import identity
from csi.node_host import mounts
from dpu_offload_stubs.csi import csi_pb2, csi_pb2_grpc
from foundation.daemon.serving import dial
from foundation.kube.client import KubeClient
from foundation.kube.resources import NODES
from foundation.spdk.client import SpdkClient
from lab import processes
from lab.certificates import Authority
from lab.hardware import loops, plan
from lab.hardware.card import Card
from lab.hardware.sysfs import NVME_CLASS, PciEntry, SysfsTree
from lab.layout import DPU_NODE, HOST_NODE, Layout
from lab.ports import free_port

MIB = 1 << 20
SERIAL = 40
CROWD = 100
FUNCTIONS = 128
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


class Stack:
    """All processes, below one short directory."""

    def __init__(self, directory: Path) -> None:
        self.layout = Layout(run=directory)
        self.running: dict[str, processes.ProcessRecord] = {}
        self.port = free_port()
        self.portal = {"transport": "tcp", "address": "127.0.0.1", "port": free_port()}

    def start(self, name: str, *command: str | Path) -> None:
        self.running[name] = processes.start(name, command, logs=self.layout.logs)

    def daemon(self, name: str, **settings: object) -> None:
        path = self.layout.config / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump({"http": "", **settings}))
        self.start(name, Path(sys.executable).parent / name, "--config", path)

    async def up(self) -> None:
        layout, run = self.layout, self.layout.run
        tree = SysfsTree(layout.sysfs(HOST_NODE))
        addresses = [plan.storage_function(number) for number in range(1, FUNCTIONS + 1)]
        for address in (plan.STORAGE_PF, *addresses):
            tree.add_function(PciEntry(address, vendor="0x15b3", device="0x6001", class_code=NVME_CLASS))
        tree.add_virtual_functions(plan.STORAGE_PF, addresses)
        for path in (layout.functions, layout.devices, layout.target_file.parent):
            path.mkdir(parents=True, exist_ok=True)
        with layout.target_file.open("wb") as file:
            file.truncate(64 << 30)
        self.start("target", sys.executable, "-m", "lab.spdk", "--socket", layout.target_socket, "--mode", "target")
        self.start("dpu", sys.executable, "-m", "lab.spdk", "--socket", layout.dpu_spdk_socket, "--mode", "dpu")
        api = ("-m", "lab.apiserver", "--kubeconfig", layout.kubeconfig)
        self.start("apiserver", sys.executable, *api)
        async with SpdkClient(f"unix:{layout.target_socket}") as client:
            await client.connect(deadline=20)
            disk = {"name": "disk", "filename": str(layout.target_file), "block_size": 4096}
            await client.call("bdev_aio_create", disk)
            store = {"bdev_name": "disk", "lvs_name": "lvs0", "clear_method": "none", "cluster_sz": MIB}
            await client.call("bdev_lvol_create_lvstore", store)
            await client.call("nvmf_create_transport", {"trtype": "TCP"})
        await _until(lambda: asyncio.to_thread(layout.kubeconfig.exists))
        async with await KubeClient.connect(str(layout.kubeconfig)) as kube:
            for name, labels in ((HOST_NODE, {}), (DPU_NODE, {"dpu-offload.io/host-node": HOST_NODE})):
                meta = {"name": name, "labels": labels}
                await kube.create(NODES, {"apiVersion": "v1", "kind": "Node", "metadata": meta})
        authority = Authority(layout.pki)
        self.daemon(
            "opi-bridge",
            socket=str(layout.opi_socket),
            spdk=f"unix:{layout.dpu_spdk_socket}",
            card={
                "kind": "spdk_vfiouser",
                "directory": str(layout.functions),
                "functions": [{"physical_function": 0, "virtual_functions": FUNCTIONS}],
            },
        )
        self.daemon(
            "volume-attacher",
            socket=str(layout.attacher_socket),
            bridge=f"unix:{layout.opi_socket}",
            state_directory=str(run / "attacher"),
            host_nqn=identity.host_nqn(DPU_NODE),
        )
        address = f"127.0.0.1:{self.port}"
        self.daemon(
            "csi-node-dpu",
            node_name=DPU_NODE,
            listen=address,
            advertise=address,
            tls=_tls(authority, DPU_NODE, "csi-node-dpu"),
            kubeconfig=str(layout.kubeconfig),
            attacher=f"unix:{layout.attacher_socket}",
            # No VolumeAttachments here: the calls of the side-cars are made without Kubernetes' objects.
            orphan_grace_seconds=3600,
        )
        pool = {"address": f"unix:{layout.target_socket}", "lvstore": "lvs0", "portals": [self.portal]}
        settings = {"socket": str(layout.csi_controller_socket), "kubeconfig": str(layout.kubeconfig)}
        tls = _tls(authority, "lab", "csi-controller")
        self.daemon("csi-controller", tls=tls, backends={"spdk": {"pools": {"p0": pool}}}, **settings)
        host = {"sysfs_root": str(layout.sysfs(HOST_NODE)), "dev_root": str(layout.devices)}
        host |= {"socket": str(layout.csi_host_socket), "node_name": HOST_NODE, "state_directory": str(run / "host")}
        self.daemon("csi-node-host", kubeconfig=str(layout.kubeconfig), **host)

    async def down(self) -> None:
        for mount in reversed(mounts.table()):
            if mount.point.startswith(f"{self.layout.run}/"):
                mounts.unmount(mount.point, dead=True)
        await processes.stop(list(self.running.values()))

    def resident_mib(self, name: str) -> float:
        status = Path(f"/proc/{self.running[name].pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024


class Floor:
    """The bare calls, each waiting for the one before."""

    def __init__(self, stack: Stack, target: SpdkClient, dpu: SpdkClient) -> None:
        self.stack, self.target, self.dpu = stack, target, dpu

    def nqn(self, index: int) -> str:
        return f"nqn.2016-06.io.floor:v{index}"

    def address(self) -> dict[str, str]:
        portal = self.stack.portal
        return {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": str(portal["port"])}

    async def create(self, index: int) -> None:
        volume = {"lvs_name": "lvs0", "lvol_name": f"f{index}", "size_in_mib": 64, "thin_provision": True}
        await self.target.call("bdev_lvol_create", volume)
        await self.target.call("nvmf_create_subsystem", {"nqn": self.nqn(index), "max_namespaces": 1})
        space = {"bdev_name": f"lvs0/f{index}", "nsid": 1}
        await self.target.call("nvmf_subsystem_add_ns", {"nqn": self.nqn(index), "namespace": space})
        listener = {"nqn": self.nqn(index), "listen_address": self.address()}
        await self.target.call("nvmf_subsystem_add_listener", listener)

    async def publish(self, index: int) -> None:
        host = {"nqn": self.nqn(index), "host": identity.host_nqn("floor")}
        await self.target.call("nvmf_subsystem_add_host", host)
        path = {"name": f"f{index}", "subnqn": self.nqn(index), "hostnqn": host["host"], **self.address()}
        await self.dpu.call("bdev_nvme_attach_controller", path)
        await self.dpu.call("nvmf_create_subsystem", {"nqn": self.nqn(index), "allow_any_host": True})
        space = {"bdev_name": f"f{index}n1", "nsid": 1}
        await self.dpu.call("nvmf_subsystem_add_ns", {"nqn": self.nqn(index), "namespace": space})
        directory = self.stack.layout.run / "floor" / str(index)
        directory.mkdir(parents=True, exist_ok=True)
        listener = {"trtype": "VFIOUSER", "traddr": str(directory), "trsvcid": "0"}
        await self.dpu.call("nvmf_subsystem_add_listener", {"nqn": self.nqn(index), "listen_address": listener})

    async def unpublish(self, index: int) -> None:
        host = {"nqn": self.nqn(index), "host": identity.host_nqn("floor")}
        await self.target.call("nvmf_subsystem_remove_host", host)
        await self.dpu.call("nvmf_subsystem_remove_ns", {"nqn": self.nqn(index), "nsid": 1})
        await self.dpu.call("nvmf_delete_subsystem", {"nqn": self.nqn(index)})
        await self.dpu.call("bdev_nvme_detach_controller", {"name": f"f{index}"})

    async def delete(self, index: int) -> None:
        await self.target.call("nvmf_delete_subsystem", {"nqn": self.nqn(index)})
        await self.target.call("bdev_lvol_delete", {"name": f"lvs0/f{index}"})


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
        await _until(lambda: _ready(suite))
        await _until(lambda: _announced(layout.kubeconfig))
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
        await _until(functools.partial(suite.shown, index))
    bare = await p50(lambda index: _bare_stage(suite, index), STAGED)
    bare_reverse = await p50(suite.bare_unstage, STAGED)
    for index in range(STAGED):
        await suite.unpublish(index)
    for index in range(STAGED, 2 * STAGED):
        await suite.publish(index)
        await _until(functools.partial(suite.shown, index))
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


async def _until(look: Callable[[], Awaitable[Any]], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not await look():
        if time.monotonic() > end:
            raise TimeoutError("the stack of daemons does not become ready; see its logs")
        await asyncio.sleep(0.01)


def _tls(authority: Authority, node: str, component: str) -> dict[str, str]:
    files = authority.issue(node=node, component=component)
    return {"ca": str(files.ca), "certificate": str(files.certificate), "key": str(files.key)}


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
