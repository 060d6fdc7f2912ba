"""csi-node-dpu between the API server's stand-in and a DPU rig."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import msgspec
import pytest

from csi.node_dpu.app import start
from csi.node_dpu.config import CsiNodeDpuConfig, TlsConfig
from csi.publication import PublishContext
from dpu_offload_stubs.attacher.v1 import attacher_pb2, attacher_pb2_grpc
from foundation.daemon.running import Daemon
from foundation.daemon.serving import TlsFiles, dial
from foundation.kube.client import KubeClient
from foundation.kube.resources import NODES, PERSISTENT_VOLUMES, PODS, VOLUME_ATTACHMENTS
from lab.apiserver.server import ApiServer
from lab.certificates import Authority
from lab.ports import free_port
from tests.dpu_rig.fixtures import every_request_is_valid, shared_pair
from tests.dpu_rig.rig import DpuRig, Pair, Volume

__all__ = ["every_request_is_valid", "shared_pair"]

DPU, HOST = "dpu-1", "host-1"
SERVER_NAME = f"{DPU}.csi-node-dpu.dpu-offload.io"


@dataclass
class NodeDpuRig:
    """`dpu` below, Kubernetes above, and csi-node-dpu between them as `daemon`."""

    directory: Path
    dpu: DpuRig
    api: ApiServer
    kube: KubeClient
    authority: Authority
    port: int = field(default_factory=free_port)
    daemon: Daemon | None = None

    def files(self, component: str, *, node: str = DPU) -> TlsFiles:
        issued = self.authority.issue(node=node, component=component)
        return TlsFiles(ca=str(issued.ca), certificate=str(issued.certificate), key=str(issued.key))

    async def start(self) -> None:
        self.daemon = Daemon("csi-node-dpu")
        await start(self.config(), self.daemon)

    def config(self) -> CsiNodeDpuConfig:
        tls = self.files("csi-node-dpu")
        return CsiNodeDpuConfig(
            node_name=DPU,
            listen=f"127.0.0.1:{self.port}",
            advertise=f"127.0.0.1:{self.port}",
            tls=TlsConfig(ca=tls.ca, certificate=tls.certificate, key=tls.key),
            kubeconfig=str(self.directory / "kubeconfig"),
            attacher=f"unix:{self.dpu.attacher_socket}",
            orphan_grace_seconds=0.5,
            announce_seconds=0.05,
            beat_seconds=1.0,
            http="",
        )

    async def stop(self) -> None:
        if self.daemon is not None:
            await self.daemon.aclose()
            self.daemon = None

    def dial(self, component: str = "csi-controller") -> grpc.aio.Channel:
        tls = self.files(component, node="master")
        return dial(f"127.0.0.1:{self.port}", tls=tls, server_name=SERVER_NAME, name="csi-node-dpu", deadline=30)

    def stub(self, channel: grpc.aio.Channel) -> Any:
        return attacher_pb2_grpc.VolumeAttacherStub(channel)

    # --- what Kubernetes says

    async def pod(self, name: str, *, claim: str) -> None:
        volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]
        containers = [{"name": "main", "image": "busybox"}]
        spec = {"nodeName": HOST, "volumes": volumes, "containers": containers}
        metadata = {"name": name, "namespace": "default"}
        await self.kube.create(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})

    async def persistent_volume(
        self, volume: Volume, name: str, *, claim: str = "", secret: str = "", **attributes: str
    ) -> None:
        portals = [
            {"transport": "tcp", "address": address, "port": port}
            for address, port in zip(volume.addresses, volume.ports, strict=True)
        ]
        attributes = {"portals": msgspec.json.encode(portals).decode(), **attributes}
        csi: dict[str, Any] = {
            "driver": "csi.dpu-offload.io",
            "volumeHandle": volume.id,
            "volumeAttributes": attributes,
        }
        if secret:
            csi["controllerPublishSecretRef"] = {"name": secret, "namespace": "default"}
        spec: dict[str, Any] = {"capacity": {"storage": "8Mi"}, "accessModes": ["ReadWriteOnce"], "csi": csi}
        if claim:
            reference = {"kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": "default", "name": claim}
            spec["claimRef"] = {**reference, "uid": "00000000-0000-4000-8000-00000000000c"}
        await self.kube.create(
            PERSISTENT_VOLUMES,
            {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec},
        )

    async def attachment(
        self,
        name: str,
        persistent_volume: str,
        *,
        attached: bool,
        node: str = HOST,
        dpu: str = DPU,
        told: attacher_pb2.Attachment | None = None,
    ) -> None:
        source = {"persistentVolumeName": persistent_volume}
        spec = {"attacher": "csi.dpu-offload.io", "nodeName": node, "source": source}
        body = {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "VolumeAttachment",
            "metadata": {"name": name},
            "spec": spec,
        }
        await self.kube.create(VOLUME_ATTACHMENTS, body)
        if attached:
            await self.confirm(name, dpu=dpu, told=told)

    async def confirm(self, name: str, *, dpu: str = DPU, told: attacher_pb2.Attachment | None = None) -> None:
        """As external-attacher does after ControllerPublishVolume; `told` is what the host learns from it."""
        metadata = {"dpuNode": dpu}
        if told is not None:
            metadata = PublishContext(
                dpu_node=dpu,
                vuid=told.function.vuid,
                port=told.function.port,
                pf=told.function.physical_function,
                vf=told.function.virtual_function,
                pci_address=told.function.pci_address,
                namespace_uuid=told.namespace_uuid,
                nsid=told.nsid,
                subsystem_nqn=told.subsystem_nqn,
                size_bytes=told.size_bytes,
            ).as_text()
        status = {"attached": True, "attachmentMetadata": metadata}
        await self.kube.merge_patch(VOLUME_ATTACHMENTS, name, "", {"status": status}, "status")

    async def attached(self) -> dict[str, attacher_pb2.Attachment]:
        listed = await self.dpu.stub.List(attacher_pb2.ListRequest())
        return {one.volume_id: one for one in listed.attachments}


@pytest.fixture
async def bare(tmp_path: Path, pair: Pair) -> AsyncIterator[NodeDpuRig]:
    """Two SPDKs and Kubernetes, and none of our daemons."""
    dpu = DpuRig(tmp_path, pair)
    async with ApiServer("127.0.0.1:0") as api:
        api.kubeconfig(tmp_path / "kubeconfig")
        async with await KubeClient.connect(str(tmp_path / "kubeconfig")) as kube:
            labels = {"dpu-offload.io/mode": "dpu", "dpu-offload.io/host-node": HOST}
            node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": DPU, "labels": labels}}
            await kube.create(NODES, node)
            await dpu.start_spdks()
            rig = NodeDpuRig(tmp_path, dpu, api, kube, Authority(tmp_path / "pki"))
            yield rig
            await rig.stop()
            await dpu.stop()


@pytest.fixture
async def rig(bare: NodeDpuRig) -> NodeDpuRig:
    """As `bare`, with the two daemons below csi-node-dpu."""
    await bare.dpu.start_daemons()
    return bare
