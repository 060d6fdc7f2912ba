"""Hosts with a DPU each, every daemon of the disks' path a process, and those who call them: side-cars and kubelet."""

import asyncio
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import grpc.aio
import msgspec

from csi.identity import DRIVER_NAME
from dpu_offload_stubs.csi import csi_pb2, csi_pb2_grpc
from foundation.daemon.configuration import DaemonConfig
from foundation.daemon.serving import dial
from foundation.kube.errors import AlreadyExists, NotFound
from foundation.kube.resources import NODES, PERSISTENT_VOLUMES, VOLUME_ATTACHMENTS
from tests.csi_rig.card_host import CardHost
from tests.csi_rig.plant import Mode, Plant, block_capability, persistent_name
from tests.dpu_rig.rig import Pair

R = TypeVar("R")
SHARED = block_capability(Mode.MULTI_NODE_MULTI_WRITER)
CONTROLLER = "csi-controller"
DPU_DAEMONS = ("opi-bridge", "volume-attacher", "csi-node-dpu")
HOST_DAEMONS = (*DPU_DAEMONS, "csi-node-host")
_FINALIZER = f"external-attacher/{DRIVER_NAME.replace('.', '-')}"
_PATIENCE_SECONDS = 60.0


@contextlib.contextmanager
def nursery() -> Iterator[subprocess.Popen[bytes]]:
    """The process that bears all of them."""
    command = [sys.executable, "-m", "tests.csi_rig.nursery", CONTROLLER, *HOST_DAEMONS]
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait(20)
        process.stdout.close()


class Estate:
    """Daemons are called `csi-controller` and `<host>/<daemon>`."""

    def __init__(self, plant: Plant, process: subprocess.Popen[bytes]) -> None:
        self.plant = plant
        self.hosts: dict[str, CardHost] = {}
        self._nursery = process
        self._pids: dict[str, int] = {}
        self._configs: dict[str, DaemonConfig] = {CONTROLLER: plant.controller_config()}
        self._channels: list[grpc.aio.Channel] = []

    async def add_host(self, host: str, pair: Pair) -> None:
        """Named in Kubernetes, with hardware that runs; its daemons are started by `start`."""
        directory = self.plant.directory / host
        directory.mkdir()
        added = CardHost(host, directory, pair, self.plant.authority, self.plant.kubeconfig)
        await self.plant.stack.enter_async_context(added.running())
        self.hosts[host] = added
        for name, config in {**added.configs(), "csi-node-host": self.plant.node_config(host)}.items():
            self._configs[f"{host}/{name}"] = config
        kind = {"apiVersion": "v1", "kind": "Node"}
        labels = {"dpu-offload.io/mode": "dpu", "dpu-offload.io/host-node": host}
        await self.plant.kube.create(NODES, {**kind, "metadata": {"name": host}})
        await self.plant.kube.create(NODES, {**kind, "metadata": {"name": added.node, "labels": labels}})

    # --- daemons ----------------------------------------------------------------------------------------------------

    @property
    def daemons(self) -> list[str]:
        return list(self._configs)

    async def start(self, *names: str) -> None:
        """Returns when they are born; who calls them tries until they answer."""
        for name in names:
            stem = self.plant.directory / name.replace("/", "-")
            config = stem.with_suffix(".yaml")
            config.write_bytes(msgspec.yaml.encode(self._configs[name]))
            order = {"daemon": name.rpartition("/")[2], "config": str(config), "log": str(stem.with_suffix(".log"))}
            self._pids[name] = await asyncio.to_thread(self._bear, order)
            if name == CONTROLLER or name.endswith("/csi-node-host"):
                await self._dial(name)

    def _bear(self, order: dict[str, str]) -> int:
        assert self._nursery.stdin is not None
        assert self._nursery.stdout is not None
        self._nursery.stdin.write(json.dumps(order).encode() + b"\n")
        self._nursery.stdin.flush()
        return int(self._nursery.stdout.readline())

    async def _dial(self, name: str) -> None:
        """A new channel, when somebody listens: an old one would wait for its back-off."""
        socket: str = self._configs[name].socket  # type: ignore[attr-defined]  # both kinds have one
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_unix_connection(socket)
                    writer.close()
                    break
                await asyncio.sleep(0.01)
        channel = dial(f"unix:{socket}", name=name, deadline=10)
        # The one before has calls that must fail by themselves.
        self._channels.append(channel)
        if name == CONTROLLER:
            self.plant.take(channel)
        else:
            self.plant.nodes[name.partition("/")[0]] = csi_pb2_grpc.NodeStub(channel)

    async def kill(self, *names: str) -> None:
        """SIGKILL; returns when all are dead."""
        for name in names:
            descriptor = os.pidfd_open(self._pids[name])
            try:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                await asyncio.to_thread(select.select, [descriptor], [], [], _PATIENCE_SECONDS)
            finally:
                os.close(descriptor)
            del self._pids[name]

    def signal(self, number: int, *names: str) -> None:
        for name in names:
            os.kill(self._pids[name], number)

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()
        await self.kill(*self._pids)

    # --- those who call them ----------------------------------------------------------------------------------------

    async def retried(self, call: Callable[[], Awaitable[R]]) -> R:
        """As side-cars and kubelet: until it succeeds."""
        end = asyncio.get_running_loop().time() + _PATIENCE_SECONDS
        while True:
            try:
                return await call()
            except grpc.aio.AioRpcError:
                if asyncio.get_running_loop().time() > end:
                    raise
                await asyncio.sleep(0.02)

    async def create(self, name: str = "disk", **more: Any) -> csi_pb2.Volume:
        """With its PersistentVolume."""
        volume = await self.retried(lambda: self.plant.create(name, capability=SHARED, **more))
        source = {
            "driver": DRIVER_NAME,
            "volumeHandle": volume.volume_id,
            "volumeAttributes": dict(volume.volume_context),
        }
        spec = {
            "capacity": {"storage": str(volume.capacity_bytes)},
            "accessModes": ["ReadWriteMany"],
            "volumeMode": "Block",
            "csi": source,
        }
        meta = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": persistent_name(volume)}}
        await self.plant.kube.create(PERSISTENT_VOLUMES, {**meta, "spec": spec})
        return volume

    async def publish(self, volume: csi_pb2.Volume, host: str) -> dict[str, str]:
        """external-attacher with a new VolumeAttachment."""
        name = self.plant.attachment_name(volume, host)
        meta = {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "VolumeAttachment",
            "metadata": {"name": name, "finalizers": [_FINALIZER]},
        }
        source = {"persistentVolumeName": persistent_name(volume)}
        spec = {"attacher": DRIVER_NAME, "nodeName": host, "source": source}
        with contextlib.suppress(AlreadyExists):
            await self.plant.kube.create(VOLUME_ATTACHMENTS, {**meta, "spec": spec})
        context = await self.retried(lambda: self.plant.publish(volume, host, SHARED))
        status = {"status": {"attached": True, "attachmentMetadata": context}}
        await self.plant.kube.merge_patch(VOLUME_ATTACHMENTS, name, "", status, subresource="status")
        return context

    async def unpublish(self, volume: csi_pb2.Volume, host: str) -> None:
        """external-attacher with a VolumeAttachment that somebody deletes."""
        name = self.plant.attachment_name(volume, host)
        with contextlib.suppress(NotFound):
            await self.plant.kube.delete(VOLUME_ATTACHMENTS, name)
        await self.retried(lambda: self.plant.unpublish(volume, host))
        with contextlib.suppress(NotFound):
            status = {"status": {"attached": False, "attachmentMetadata": None}}
            await self.plant.kube.merge_patch(VOLUME_ATTACHMENTS, name, "", status, subresource="status")
            free = {"metadata": {"finalizers": None}}
            await self.plant.kube.merge_patch(VOLUME_ATTACHMENTS, name, "", free)

    async def mount(self, volume: csi_pb2.Volume, host: str, context: dict[str, str]) -> str:
        """kubelet for a virt-launcher that starts: returns the device in its pod."""
        await self.retried(lambda: self.plant.stage(volume, host, context, SHARED))
        return await self.retried(lambda: self.plant.mount(volume, host, SHARED))

    async def unmount(self, volume: csi_pb2.Volume, host: str) -> None:
        """kubelet for a virt-launcher that has ended."""
        await self.retried(lambda: self.plant.unmount(volume, host))
        await self.retried(lambda: self.plant.unstage(volume, host))

    async def expand(self, volume: csi_pb2.Volume, size: int) -> None:
        """external-resizer: at the storage."""
        request = csi_pb2.ControllerExpandVolumeRequest(
            volume_id=volume.volume_id,
            capacity_range=csi_pb2.CapacityRange(required_bytes=size),
            volume_capability=SHARED,
        )
        await self.retried(lambda: self.plant.controller.ControllerExpandVolume(request))

    async def grown(self, volume: csi_pb2.Volume, host: str, size: int) -> int:
        """kubelet, afterwards: returns the size that the host has."""
        request = csi_pb2.NodeExpandVolumeRequest(
            volume_id=volume.volume_id,
            volume_path=self.plant.pod(host, volume),
            staging_target_path=self.plant.staging(host, volume),
            capacity_range=csi_pb2.CapacityRange(required_bytes=size),
            volume_capability=SHARED,
        )
        answer = await self.retried(lambda: self.plant.nodes[host].NodeExpandVolume(request))
        return answer.capacity_bytes

    async def attach(self, volume: csi_pb2.Volume, host: str) -> str:
        return await self.mount(volume, host, await self.publish(volume, host))

    async def detach(self, volume: csi_pb2.Volume, host: str) -> None:
        await self.unmount(volume, host)
        await self.unpublish(volume, host)


@contextlib.asynccontextmanager
async def estate(
    plant: Plant, process: subprocess.Popen[bytes], pairs: Sequence[tuple[str, Pair]]
) -> AsyncIterator[Estate]:
    """With everything running."""
    built = Estate(plant, process)
    for host, pair in pairs:
        await built.add_host(host, pair)
    try:
        await built.start(*built.daemons)
        yield built
    finally:
        await built.close()
