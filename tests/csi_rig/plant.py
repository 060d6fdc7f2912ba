"""A whole storage plant for tests: API server, target, one or more DPUs, csi-controller and csi-node-host.

All in the test's own event loop but for the target; real sockets, real mTLS, real mounts.
"""

import contextlib
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio

from csi.controller import app as controller_app
from csi.controller.config import CsiControllerConfig, DpuConfig, GarbageConfig, TlsConfig
from csi.identity import DRIVER_NAME
from csi.node_host import app as node_host_app
from csi.node_host import mounts
from csi.node_host.config import CsiNodeHostConfig
from dpu_offload_stubs.csi import csi_pb2, csi_pb2_grpc
from foundation.daemon.running import Daemon
from foundation.daemon.serving import TlsFiles, dial
from foundation.kube.client import KubeClient
from foundation.kube.errors import AlreadyExists
from foundation.kube.resources import NODES, PERSISTENT_VOLUMES, VOLUME_ATTACHMENTS
from lab.apiserver.server import ApiServer
from lab.certificates import Authority, CertificateFiles
from tests.csi_rig.dpu import PHYSICAL, StandInDpu
from tests.csi_rig.target import Target, section

Mode = csi_pb2.VolumeCapability.AccessMode
GIB = 1 << 30
MIB = 1 << 20


def mount_capability(
    mode: Mode.Mode.ValueType = Mode.SINGLE_NODE_WRITER, *, fs_type: str = "", flags: Iterable[str] = ()
) -> csi_pb2.VolumeCapability:
    mount = csi_pb2.VolumeCapability.MountVolume(fs_type=fs_type, mount_flags=list(flags))
    return csi_pb2.VolumeCapability(access_mode=Mode(mode=mode), mount=mount)


def block_capability(mode: Mode.Mode.ValueType = Mode.SINGLE_NODE_WRITER) -> csi_pb2.VolumeCapability:
    return csi_pb2.VolumeCapability(access_mode=Mode(mode=mode), block=csi_pb2.VolumeCapability.BlockVolume())


def files(given: CertificateFiles) -> TlsFiles:
    return TlsFiles(ca=str(given.ca), certificate=str(given.certificate), key=str(given.key))


@dataclass
class Plant:
    directory: Path
    target: Target
    api: ApiServer
    kube: KubeClient
    kubeconfig: Path
    authority: Authority
    dpus: dict[str, StandInDpu] = field(default_factory=dict)
    stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)
    controller: csi_pb2_grpc.ControllerStub = field(init=False)
    groups: csi_pb2_grpc.GroupControllerStub = field(init=False)
    identity: csi_pb2_grpc.IdentityStub = field(init=False)
    nodes: dict[str, csi_pb2_grpc.NodeStub] = field(default_factory=dict)

    async def add_host(self, host: str) -> StandInDpu:
        """A host with its DPU, announced in Kubernetes."""
        node = f"{host}-dpu"
        dpu = StandInDpu(node=node, host=host, directory=self.directory / host, target=self.target)
        await dpu.start(files(self.authority.issue(node=node, component="csi-node-dpu")))
        self.stack.push_async_callback(dpu.clear)
        self.stack.push_async_callback(dpu.stop)
        self.dpus[host] = dpu
        await self.kube.create(NODES, {"metadata": {"name": host}, **_kind()})
        annotations = {"dpu-offload.io/storage": json.dumps(dpu.annotation)}
        labels = {"dpu-offload.io/host-node": host}
        meta = {"name": node, "labels": labels, "annotations": annotations}
        await self.kube.create(NODES, {"metadata": meta, **_kind()})
        return dpu

    def controller_config(self, **more: Any) -> CsiControllerConfig:
        tls = self.authority.issue(node="master", component="csi-controller")
        settings: dict[str, Any] = {
            "http": "",
            "socket": str(self.directory / "controller.sock"),
            "kubeconfig": str(self.kubeconfig),
            "tls": TlsConfig(ca=str(tls.ca), certificate=str(tls.certificate), key=str(tls.key)),
            "backends": {"spdk": section(self.target)},
            "dpu": DpuConfig(attach_seconds=20, detach_seconds=1, list_seconds=10),
            "garbage": GarbageConfig(every_seconds=3600),
        }
        return CsiControllerConfig(**{**settings, **more})

    def node_config(self, host: str, **more: Any) -> CsiNodeHostConfig:
        settings: dict[str, Any] = {
            "http": "",
            "socket": str(self.directory / f"{host}.sock"),
            "node_name": host,
            "kubeconfig": str(self.kubeconfig),
            "sysfs_root": str(self.directory / host / "sys"),
            "dev_root": str(self.directory / host / "dev"),
            "state_directory": str(self.directory / host / "state"),
            "physical_functions": {"0": PHYSICAL},
            "disk_seconds": 20.0,
            "rescan_seconds": 0.2,
        }
        return CsiNodeHostConfig(**{**settings, **more})

    async def start_controller(self, **more: Any) -> None:
        config = self.controller_config(**more)
        daemon = await self.stack.enter_async_context(Daemon("csi-controller"))
        await controller_app.start(config, daemon)
        channel = dial(f"unix:{config.socket}", name="csi-controller")
        self.stack.push_async_callback(channel.close)
        self.take(channel)
        await self.ready()

    async def start_node(self, host: str, **more: Any) -> None:
        config = self.node_config(host, **more)
        daemon = await self.stack.enter_async_context(Daemon("csi-node-host"))
        await node_host_app.start(config, daemon)
        channel = dial(f"unix:{config.socket}", name="csi-node-host", deadline=30)
        self.stack.push_async_callback(channel.close)
        self.nodes[host] = csi_pb2_grpc.NodeStub(channel)

    async def ready(self) -> None:
        """As the side-cars do: Probe until it says so."""
        for _ in range(500):
            if (await self.identity.Probe(csi_pb2.ProbeRequest())).ready.value:
                return
        raise AssertionError("csi-controller does not become ready")

    def take(self, channel: grpc.aio.Channel) -> None:
        self.controller = csi_pb2_grpc.ControllerStub(channel)
        self.groups = csi_pb2_grpc.GroupControllerStub(channel)
        self.identity = csi_pb2_grpc.IdentityStub(channel)

    # --- the calls of the side-cars and of kubelet ------------------------------------------------------------------

    async def create(
        self,
        name: str = "pvc-1",
        *,
        size: int = 64 * MIB,
        capability: csi_pb2.VolumeCapability | None = None,
        parameters: Mapping[str, str] | None = None,
        **more: Any,
    ) -> csi_pb2.Volume:
        request = csi_pb2.CreateVolumeRequest(
            name=name,
            capacity_range=csi_pb2.CapacityRange(required_bytes=size),
            volume_capabilities=[capability or mount_capability()],
            parameters=parameters or {},
            **more,
        )
        return (await self.controller.CreateVolume(request)).volume

    async def publish(
        self, volume: csi_pb2.Volume, host: str, capability: csi_pb2.VolumeCapability | None = None, **more: Any
    ) -> dict[str, str]:
        request = csi_pb2.ControllerPublishVolumeRequest(
            volume_id=volume.volume_id,
            node_id=host,
            volume_capability=capability or mount_capability(),
            volume_context=volume.volume_context,
            **more,
        )
        return dict((await self.controller.ControllerPublishVolume(request)).publish_context)

    async def unpublish(self, volume: csi_pb2.Volume, host: str) -> None:
        request = csi_pb2.ControllerUnpublishVolumeRequest(volume_id=volume.volume_id, node_id=host)
        await self.controller.ControllerUnpublishVolume(request)

    async def delete(self, volume: csi_pb2.Volume) -> None:
        await self.controller.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id=volume.volume_id))

    async def attachment(
        self, volume: csi_pb2.Volume, host: str, context: Mapping[str, str], *, limits: str = "", name: str = ""
    ) -> None:
        """The objects which Kubernetes has of an attached volume."""
        name, attachment = name or persistent_name(volume), self.attachment_name(volume, host)
        spec: dict[str, Any] = {
            "capacity": {"storage": str(volume.capacity_bytes)},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Delete",
            "storageClassName": "fast",
            "csi": {
                "driver": DRIVER_NAME,
                "volumeHandle": volume.volume_id,
                "volumeAttributes": dict(volume.volume_context),
            },
        }
        if limits:
            spec["volumeAttributesClassName"] = limits
        meta = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}}
        with contextlib.suppress(AlreadyExists):
            await self.kube.create(PERSISTENT_VOLUMES, {**meta, "spec": spec})
        attached = {"attacher": DRIVER_NAME, "nodeName": host, "source": {"persistentVolumeName": name}}
        meta = {"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": {"name": attachment}}
        await self.kube.create(VOLUME_ATTACHMENTS, {**meta, "spec": attached})
        status = {"status": {"attached": True, "attachmentMetadata": dict(context)}}
        await self.kube.merge_patch(VOLUME_ATTACHMENTS, attachment, "", status, subresource="status")

    def attachment_name(self, volume: csi_pb2.Volume, host: str) -> str:
        return f"{persistent_name(volume)}.{host}"

    def staging(self, host: str, volume: csi_pb2.Volume) -> str:
        return str(self.directory / host / "staging" / volume.volume_id.partition(":")[2])

    def pod(self, host: str, volume: csi_pb2.Volume, name: str = "pod") -> str:
        return str(self.directory / host / "pods" / name / volume.volume_id.partition(":")[2])

    async def stage(
        self,
        volume: csi_pb2.Volume,
        host: str,
        context: Mapping[str, str],
        capability: csi_pb2.VolumeCapability | None = None,
        **more: Any,
    ) -> str:
        path = self.staging(host, volume)
        Path(path).mkdir(parents=True, exist_ok=True)
        request = csi_pb2.NodeStageVolumeRequest(
            volume_id=volume.volume_id,
            publish_context=context,
            staging_target_path=path,
            volume_capability=capability or mount_capability(),
            volume_context=volume.volume_context,
            **more,
        )
        await self.nodes[host].NodeStageVolume(request)
        return path

    async def mount(
        self,
        volume: csi_pb2.Volume,
        host: str,
        capability: csi_pb2.VolumeCapability | None = None,
        *,
        pod: str = "pod",
        readonly: bool = False,
    ) -> str:
        path = self.pod(host, volume, pod)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        request = csi_pb2.NodePublishVolumeRequest(
            volume_id=volume.volume_id,
            staging_target_path=self.staging(host, volume),
            target_path=path,
            volume_capability=capability or mount_capability(),
            readonly=readonly,
        )
        await self.nodes[host].NodePublishVolume(request)
        return path

    async def unmount(self, volume: csi_pb2.Volume, host: str, pod: str = "pod") -> None:
        request = csi_pb2.NodeUnpublishVolumeRequest(
            volume_id=volume.volume_id, target_path=self.pod(host, volume, pod)
        )
        await self.nodes[host].NodeUnpublishVolume(request)

    async def unstage(self, volume: csi_pb2.Volume, host: str) -> None:
        request = csi_pb2.NodeUnstageVolumeRequest(
            volume_id=volume.volume_id, staging_target_path=self.staging(host, volume)
        )
        await self.nodes[host].NodeUnstageVolume(request)


def persistent_name(volume: csi_pb2.Volume) -> str:
    return f"pv-{volume.volume_id.rpartition('.')[2]}"


def _kind() -> dict[str, str]:
    return {"apiVersion": "v1", "kind": "Node"}


@contextlib.asynccontextmanager
async def plant(directory: Path, target: Target, authority: Authority) -> AsyncIterator[Plant]:
    async with contextlib.AsyncExitStack() as stack:
        api = await stack.enter_async_context(ApiServer("127.0.0.1:0"))
        kubeconfig = api.kubeconfig(directory / "kubeconfig")
        kube = await stack.enter_async_context(await KubeClient.connect(str(kubeconfig)))
        built = Plant(directory, target, api, kube, kubeconfig, authority)
        try:
            async with built.stack:
                yield built
        finally:
            for mount in reversed(mounts.table()):
                if mount.point.startswith(f"{directory}/"):
                    mounts.unmount(mount.point, dead=True)
