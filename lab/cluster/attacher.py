"""external-attacher's part: VolumeAttachments of our driver become ControllerPublish and ControllerUnpublish calls."""

from __future__ import annotations

import logging

import grpc.aio

from dpu_offload_stubs.csi import csi_pb2, csi_pb2_grpc
from foundation.daemon.work import Backoff, KeyedQueue
from foundation.kube import resources
from foundation.kube.client import KubeClient
from foundation.kube.errors import NotFound
from foundation.kube.models.storage import VolumeAttachment
from foundation.kube.reflector import Reflector
from lab.cluster import retries
from lab.kubelet.volumes import volume_capability

log = logging.getLogger(__name__)


class Attacher:
    """Follows VolumeAttachments; one at a time per object."""

    def __init__(self, client: KubeClient, channel: grpc.aio.Channel, driver: str) -> None:
        self._client = client
        self._controller = csi_pb2_grpc.ControllerStub(channel)
        self._driver = driver
        self._finalizer = f"external-attacher/{driver.replace('.', '-')}"
        self._attachments: Reflector[VolumeAttachment] = Reflector(client, resources.VOLUME_ATTACHMENTS)
        backoff = Backoff(initial=retries.FIRST_RETRY_SECONDS, maximum=retries.LAST_RETRY_SECONDS)
        self.queue: KeyedQueue[str] = KeyedQueue(self._sync, backoff=backoff)
        self._attachments.subscribe(lambda change: self.queue.add(change.key))
        self.reflectors = (self._attachments,)

    async def _sync(self, key: str) -> None:
        attachment = self._attachments.store.get(key)
        if attachment is None or attachment.spec.attacher != self._driver:
            return
        if attachment.metadata.deletion_timestamp:
            await self._detach(attachment)
        elif not attachment.status.attached:
            await self._attach(attachment)

    async def _attach(self, attachment: VolumeAttachment) -> None:
        name = attachment.metadata.name
        if self._finalizer not in attachment.metadata.finalizers:
            finalizers = [*attachment.metadata.finalizers, self._finalizer]
            await self._client.merge_patch(
                resources.VOLUME_ATTACHMENTS, name, "", {"metadata": {"finalizers": finalizers}}
            )
        volume = await self._client.get(
            resources.PERSISTENT_VOLUMES, attachment.spec.source.persistent_volume_name or ""
        )
        csi = volume.spec.csi
        if csi is None:
            raise RuntimeError(f"PersistentVolume {volume.metadata.name} is not a CSI volume")
        request = csi_pb2.ControllerPublishVolumeRequest(
            volume_id=csi.volume_handle,
            node_id=await self._node_id(attachment.spec.node_name),
            volume_capability=volume_capability(
                access_mode=(volume.spec.access_modes or ("ReadWriteOnce",))[0],
                block=volume.spec.volume_mode == "Block",
                fs_type=csi.fs_type,
                mount_options=volume.spec.mount_options or (),
            ),
            volume_context=csi.volume_attributes or {},
        )
        try:
            answer = await self._controller.ControllerPublishVolume(request, timeout=retries.ATTACH_SECONDS)
        except grpc.aio.AioRpcError as error:
            await self._status(name, {"attached": False, "attachError": {"message": retries.describe(error)}})
            raise
        metadata = dict(answer.publish_context)
        await self._status(name, {"attached": True, "attachmentMetadata": metadata, "attachError": None})

    async def _detach(self, attachment: VolumeAttachment) -> None:
        name = attachment.metadata.name
        if self._finalizer not in attachment.metadata.finalizers:
            return
        try:
            volume = await self._client.get(
                resources.PERSISTENT_VOLUMES, attachment.spec.source.persistent_volume_name or ""
            )
        except NotFound:
            volume = None
        if volume is not None and volume.spec.csi is not None:
            request = csi_pb2.ControllerUnpublishVolumeRequest(
                volume_id=volume.spec.csi.volume_handle, node_id=await self._node_id(attachment.spec.node_name)
            )
            try:
                await self._controller.ControllerUnpublishVolume(request, timeout=retries.ATTACH_SECONDS)
            except grpc.aio.AioRpcError as error:
                await self._status(name, {"detachError": {"message": retries.describe(error)}})
                raise
        await self._status(name, {"attached": False, "attachmentMetadata": None, "detachError": None})
        finalizers = [finalizer for finalizer in attachment.metadata.finalizers if finalizer != self._finalizer]
        await self._client.merge_patch(
            resources.VOLUME_ATTACHMENTS, name, "", {"metadata": {"finalizers": finalizers or None}}
        )

    async def _node_id(self, node: str) -> str:
        """The driver's own id of a node, from its CSINode; raises while the driver is not registered there."""
        entry = await self._client.get(resources.CSI_NODES, node)
        for driver in entry.spec.drivers or ():
            if driver.name == self._driver:
                return driver.node_id
        raise RuntimeError(f"CSINode {node} does not contain driver {self._driver}")

    async def _status(self, name: str, status: dict[str, object]) -> None:
        await self._client.merge_patch(resources.VOLUME_ATTACHMENTS, name, "", {"status": status}, subresource="status")
