"""What the healthy installation has in Kubernetes, with the changes that tests make to it."""

from __future__ import annotations

import contextlib
import datetime
import json
from typing import Any

from dpuctl.suite import SUITE_PODS
from foundation.kube import resources
from foundation.kube.client import KubeClient
from foundation.kube.errors import NotFound
from lab import objects
from lab.layout import DPU_NODE, HOST_NODE

NAMESPACE = "dpu-offload"
VOLUME = "main:p0.vaaaaaaaaaaaaaaaaaaaa"
POD = "web"
ATTACHMENT = "0123456789abcdef"
VF, PF = "0000:03:00.2", "0000:03:00.0"
REPRESENTOR = "pf0vf0"
VERSION = "0.1.0"
DAEMONS_OF = {
    DPU_NODE: ("cni-node", "csi-node-dpu", "volume-attacher", "opi-bridge"),
    HOST_NODE: ("cni-node", "csi-node-host"),
    "node-default": ("cni-controller", "csi-controller"),
}
SIDECARS = {
    "csi-controller": ("csi-provisioner", "csi-attacher", "csi-resizer"),
    "csi-node-host": ("node-driver-registrar",),
}


def now(offset: float = 0.0) -> str:
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=offset)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class ClusterObjects:
    """`ports` of what the DPU serves, by component, and its `host_nqn` are known before objects are made."""

    client: KubeClient
    ports: dict[str, int]
    host_nqn: str

    async def make_objects(self) -> None:
        client = self.client
        for node in objects.POD_CIDRS:
            await self.node_ready(node, "True")
        await self.annotate_dpu()
        driver = {"name": "csi.dpu-offload.io", "nodeID": HOST_NODE, "topologyKeys": None}
        body: dict[str, Any] = {"apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": {"name": HOST_NODE}}
        await client.create(resources.CSI_NODES, {**body, "spec": {"drivers": [driver]}})
        for namespace in (NAMESPACE, "abandoned"):
            await client.create(resources.NAMESPACES, objects.namespace(namespace))
        await self.lease()
        for node, names in DAEMONS_OF.items():
            for name in names:
                await self.suite_pod(name, node=node)
        await self.pod(POD, address="10.244.1.10")
        await self._volume()

    async def node_ready(self, node: str, status: str) -> None:
        condition = [{"type": "Ready", "status": status, "message": "fine"}]
        body = {"status": {"conditions": condition}}
        await self.client.merge_patch(resources.NODES, node, "", body, subresource="status")

    async def silence_dpu(self) -> None:
        annotations = {"dpu-offload.io/storage": None, "dpu-offload.io/link": None}
        await self.client.merge_patch(resources.NODES, DPU_NODE, "", {"metadata": {"annotations": annotations}})

    async def annotate_dpu(self, **changed: Any) -> None:
        storage = {
            "endpoint": f"127.0.0.1:{self.ports['csi-node-dpu']}",
            "serverName": f"{DPU_NODE}.csi-node-dpu.dpu-offload.io",
            "hostNqn": self.host_nqn,
            "functions": {"total": 8, "free": 7},
        }
        link = {
            "endpoint": f"127.0.0.1:{self.ports['cni-node']}",
            "serverName": f"{DPU_NODE}.cni-node.dpu-offload.io",
        }
        annotations = {
            "dpu-offload.io/storage": json.dumps(storage | changed.get("storage", {})),
            "dpu-offload.io/link": json.dumps(link | changed.get("link", {})),
        }
        await self.client.merge_patch(resources.NODES, DPU_NODE, "", {"metadata": {"annotations": annotations}})

    async def label_dpu(self, host: str | None) -> None:
        await self.client.merge_patch(
            resources.NODES, DPU_NODE, "", {"metadata": {"labels": {"dpu-offload.io/host-node": host}}}
        )

    async def lease(self, *, namespace: str = NAMESPACE, offset: float = 0.0, name: str = "cni-controller") -> None:
        spec = {"holderIdentity": f"one-{namespace}", "leaseDurationSeconds": 3600, "renewTime": now(offset)}
        body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": name, "namespace": namespace},
            "spec": spec,
        }
        await self.client.apply(resources.LEASES, body, "test", force=True)

    async def suite_pod(self, daemon: str, *, node: str, version: str = VERSION, sidecars: bool = True) -> None:
        """A pod of the suite's, ready; replaces an earlier one."""
        names = (daemon, *(SIDECARS.get(daemon, ()) if sidecars else ()))
        name = f"{daemon}-{node}"
        with contextlib.suppress(NotFound):
            await self.client.delete(resources.PODS, name, NAMESPACE, grace_seconds=0)
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": NAMESPACE,
                "labels": {"app.kubernetes.io/part-of": "dpu-offload", "app.kubernetes.io/version": version},
            },
            "spec": {
                "nodeName": node,
                "hostNetwork": True,
                "containers": [{"name": each, "image": f"registry.example/{each}:1"} for each in names],
            },
        }
        await self.client.create(SUITE_PODS, body)
        await self.suite_pod_status(name)

    async def suite_pod_status(self, name: str, *, waiting: str = "") -> None:
        state = {"waiting": {"reason": waiting}} if waiting else {"running": {}}
        container = {
            "name": name,
            "ready": not waiting,
            "restartCount": 7,
            "state": state,
            "image": "i",
            "imageID": "i",
        }
        status = {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "False" if waiting else "True"}],
            "containerStatuses": [container],
        }
        await self.client.merge_patch(resources.PODS, name, NAMESPACE, {"status": status}, subresource="status")

    async def pod(
        self, name: str, *, address: str, node: str = HOST_NODE, networks: str = "", phase: str = "Running"
    ) -> None:
        """A user's pod with what cni-controller has given it (nothing, if `address` is empty)."""
        body = objects.pod(name, node_name=node)
        body["metadata"]["annotations"] = {}
        if address:
            given = {"default": {"ips": [f"{address}/24"], "mac": "0a:58:0a:f4:01:0a", "mtu": 1400}}
            body["metadata"]["annotations"]["dpu-offload.io/pod-networks"] = json.dumps(given)
        if networks:
            body["metadata"]["annotations"]["k8s.v1.cni.cncf.io/networks"] = networks
        await self.client.create(resources.PODS, body)
        await self.client.merge_patch(
            resources.PODS, name, objects.NAMESPACE, {"status": {"phase": phase}}, subresource="status"
        )

    async def remove_pod(self, name: str) -> None:
        await self.client.delete(resources.PODS, name, objects.NAMESPACE, grace_seconds=0)

    async def _volume(self) -> None:
        volume = {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": "pv-1"},
            "spec": {
                "capacity": {"storage": "4Mi"},
                "accessModes": ["ReadWriteOnce"],
                "csi": {"driver": "csi.dpu-offload.io", "volumeHandle": VOLUME},
            },
        }
        await self.client.create(resources.PERSISTENT_VOLUMES, volume)
        attachment = {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "VolumeAttachment",
            "metadata": {"name": "va-1"},
            "spec": {
                "attacher": "csi.dpu-offload.io",
                "nodeName": HOST_NODE,
                "source": {"persistentVolumeName": "pv-1"},
            },
        }
        await self.client.create(resources.VOLUME_ATTACHMENTS, attachment)
        await self.attachment_status(attached=True)

    async def attachment_status(self, **status: Any) -> None:
        metadata = {"dpuNode": DPU_NODE, "pf": "0", "vf": "1"}
        body = {"status": {"attachError": None, "attachmentMetadata": metadata, **status}}
        await self.client.merge_patch(resources.VOLUME_ATTACHMENTS, "va-1", "", body, subresource="status")
