"""What the API server knows of the suite, read once."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from csi.announcement import Announcement
from dpuctl import suite
from dpuctl.suite import GivenNetwork, LinkAnnouncement, OffloadShare, SuitePod
from foundation.kube import resources
from foundation.kube.client import KubeClient
from foundation.kube.errors import Forbidden, KubeError, NotFound
from foundation.kube.models.cncf import NetworkAttachmentDefinition
from foundation.kube.models.coordination import Lease
from foundation.kube.models.core import Node, PersistentVolume, Pod
from foundation.kube.models.meta import KubernetesObject
from foundation.kube.models.storage import CSIDriver, CSINode, StorageClass, VolumeAttachment
from foundation.kube.resources import Resource

ANSWER_SECONDS = 5.0
T = TypeVar("T", bound=KubernetesObject)
S = TypeVar("S", bound=msgspec.Struct)


class Unreadable(Exception):
    """The cluster could not be asked; the message says which cluster and why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One look at the cluster. `missing` names resources that the cluster does not have or does not show us,
    `forbidden` those of them that we may not list."""

    nodes: Sequence[Node] = ()
    pods: Sequence[Pod] = ()
    volumes: Sequence[PersistentVolume] = ()
    attachments: Sequence[VolumeAttachment] = ()
    classes: Sequence[StorageClass] = ()
    drivers: Sequence[CSIDriver] = ()
    csi_nodes: Sequence[CSINode] = ()
    networks: Sequence[NetworkAttachmentDefinition] = ()
    leases: Sequence[Lease] = ()
    suite_pods: Sequence[SuitePod] = ()
    missing: frozenset[str] = frozenset()
    forbidden: frozenset[str] = frozenset()
    taken: float = 0.0
    """When it was taken, in Unix seconds of this machine's clock."""

    def node(self, name: str) -> Node | None:
        """A node by name."""
        return next((node for node in self.nodes if node.metadata.name == name), None)

    def members(self) -> list[Node]:
        """Nodes that carry our mode label, hosts before their DPUs."""
        ours = [node for node in self.nodes if suite.MODE_LABEL in node.metadata.labels]
        return sorted(ours, key=lambda node: (host_of(node) or node.metadata.name, bool(host_of(node))))

    def dpus_of(self, host: str) -> list[Node]:
        """The DPUs' nodes that name this host."""
        return [node for node in self.nodes if host_of(node) == host]

    def ours(self) -> list[PersistentVolume]:
        """PersistentVolumes of our driver."""
        return [one for one in self.volumes if one.spec.csi is not None and one.spec.csi.driver == suite.DRIVER]

    def our_attachments(self) -> list[VolumeAttachment]:
        """VolumeAttachments of our driver."""
        return [one for one in self.attachments if one.spec.attacher == suite.DRIVER]


def mode_of(node: Node) -> str:
    """default, host or dpu; "" for a node without our label."""
    return node.metadata.labels.get(suite.MODE_LABEL, "")


def host_of(node: Node) -> str:
    """The host that a DPU's node names; "" for any other."""
    return node.metadata.labels.get(suite.HOST_LABEL, "")


def storage_of(node: Node) -> Announcement | None:
    """What csi-node-dpu has published."""
    return _annotation(node, suite.STORAGE_ANNOTATION, Announcement)


def link_of(node: Node) -> LinkAnnouncement | None:
    """Where the DPU's cni-node serves."""
    return _annotation(node, suite.LINK_ANNOTATION, LinkAnnouncement)


def offload_of(node: Node) -> OffloadShare | None:
    """How much of the node's traffic its card carries."""
    return _annotation(node, suite.OFFLOAD_ANNOTATION, OffloadShare)


def networks_of(pod: Pod) -> dict[str, GivenNetwork]:
    """The pod's networks with what it was given there; empty before cni-controller has seen it, and where what stands
    there is not cni-controller's."""
    try:
        text = pod.metadata.annotations.get(suite.NETWORKS_ANNOTATION, "{}")
        return msgspec.json.decode(text, type=dict[str, GivenNetwork])
    except (msgspec.DecodeError, RecursionError):
        return {}


def _annotation(node: Node, name: str, kind: type[S]) -> S | None:
    try:
        return msgspec.json.decode(node.metadata.annotations.get(name, ""), type=kind)
    except (msgspec.DecodeError, RecursionError):
        return None


@contextlib.asynccontextmanager
async def connected(kubeconfig: str, context: str) -> AsyncIterator[KubeClient]:
    """A client with short deadlines. Raises Unreadable, also for what goes wrong while it is open."""
    usual = Path("~/.kube/config").expanduser()
    if not (kubeconfig or os.environ.get("KUBECONFIG") or os.environ.get("KUBERNETES_SERVICE_HOST")) and usual.exists():
        kubeconfig = str(usual)
    try:
        async with await KubeClient.connect(kubeconfig=kubeconfig, context=context, deadline=ANSWER_SECONDS) as client:
            yield client
    except (KubeError, OSError) as error:
        raise Unreadable(f"cannot read the cluster of {kubeconfig or '$KUBECONFIG'}: {error}") from error


async def read(client: KubeClient) -> Snapshot:
    """Everything at once. Raises KubeError when nodes or pods cannot be read."""
    missing: set[str] = set()
    forbidden: set[str] = set()

    async def optional(resource: Resource[T], label_selector: str = "") -> Sequence[T]:
        try:
            return await client.list(resource, label_selector=label_selector)
        except (NotFound, Forbidden) as error:
            missing.add(resource.plural)
            if isinstance(error, Forbidden):
                forbidden.add(resource.plural)
            return ()

    # First by itself: what is wrong with the cluster as a whole is then said in the same words every time.
    nodes = await client.list(resources.NODES)
    try:
        async with asyncio.TaskGroup() as group:
            pods = group.create_task(client.list(resources.PODS))
            volumes = group.create_task(optional(resources.PERSISTENT_VOLUMES))
            attachments = group.create_task(optional(resources.VOLUME_ATTACHMENTS))
            classes = group.create_task(optional(resources.STORAGE_CLASSES))
            drivers = group.create_task(optional(resources.CSI_DRIVERS))
            csi_nodes = group.create_task(optional(resources.CSI_NODES))
            networks = group.create_task(optional(resources.NETWORK_ATTACHMENT_DEFINITIONS))
            leases = group.create_task(optional(resources.LEASES))
            suite_pods = group.create_task(optional(suite.SUITE_PODS, suite.PART_OF))
    except ExceptionGroup as failed:
        # One that cannot be answered is enough for the reader.
        raise failed.exceptions[0] from None
    return Snapshot(
        nodes=nodes,
        pods=pods.result(),
        volumes=volumes.result(),
        attachments=attachments.result(),
        classes=classes.result(),
        drivers=drivers.result(),
        csi_nodes=csi_nodes.result(),
        networks=networks.result(),
        leases=leases.result(),
        suite_pods=suite_pods.result(),
        missing=frozenset(missing),
        forbidden=frozenset(forbidden),
        taken=time.time(),
    )
