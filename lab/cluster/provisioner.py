"""external-provisioner's part: claims of our StorageClasses become volumes, released volumes are deleted.

The binding, which kube-controller-manager does, is in ``binder``.
"""

from __future__ import annotations

import logging
from typing import Any

import grpc.aio

from dpu_offload_stubs.csi import csi_pb2, csi_pb2_grpc
from foundation.daemon.work import Backoff, KeyedQueue
from foundation.kube import resources
from foundation.kube.client import KubeClient
from foundation.kube.errors import AlreadyExists, NotFound
from foundation.kube.models.core import PersistentVolume, PersistentVolumeClaim
from foundation.kube.models.storage import VolumeAttachment
from foundation.kube.reflector import Change, Reflector
from lab.cluster import retries
from lab.cluster.snapshots import Snapshotter
from lab.kubelet.volumes import volume_capability

log = logging.getLogger(__name__)

FINALIZER = "external-provisioner.volume.kubernetes.io/finalizer"
FS_TYPE_KEY = "csi.storage.k8s.io/fstype"
DEFAULT_FS_TYPE = "ext4"

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def quantity_bytes(text: str) -> int:
    """A resource.Quantity without fractions or exponents, as storage requests are written."""
    digits = text.rstrip("kKMGTi")
    return int(digits) * _UNITS[text[len(digits) :]]


class Provisioner:
    """Follows claims and volumes; one at a time per object."""

    def __init__(self, client: KubeClient, channel: grpc.aio.Channel, driver: str) -> None:
        self._client = client
        self._controller = csi_pb2_grpc.ControllerStub(channel)
        self._driver = driver
        self._classes = Reflector(client, resources.STORAGE_CLASSES)
        self._claims: Reflector[PersistentVolumeClaim] = Reflector(client, resources.PERSISTENT_VOLUME_CLAIMS)
        self._volumes: Reflector[PersistentVolume] = Reflector(client, resources.PERSISTENT_VOLUMES)
        backoff = Backoff(initial=retries.FIRST_RETRY_SECONDS, maximum=retries.LAST_RETRY_SECONDS)
        self.claims_queue: KeyedQueue[str] = KeyedQueue(self._provision, backoff=backoff)
        self.volumes_queue: KeyedQueue[str] = KeyedQueue(self._delete, backoff=backoff)
        self._claims.subscribe(lambda change: self.claims_queue.add(change.key))
        self._volumes.subscribe(lambda change: self.volumes_queue.add(change.key))
        self._attachments = Reflector(client, resources.VOLUME_ATTACHMENTS)
        self._attachments.subscribe(self._attachment_changed)
        self.snapshotter = Snapshotter(client, channel, driver, claims=self._claims, volumes=self._volumes)
        self.reflectors: tuple[Reflector[Any], ...] = (
            *(self._classes, self._claims, self._volumes, self._attachments),
            *self.snapshotter.reflectors,
        )

    def _attachment_changed(self, change: Change[VolumeAttachment]) -> None:
        if change.new is None and change.old is not None:
            self.volumes_queue.add(change.old.spec.source.persistent_volume_name or "")

    async def _provision(self, key: str) -> None:
        claim = self._claims.store.get(key)
        if claim is None or claim.metadata.deletion_timestamp or claim.spec.volume_name:
            return
        storage_class = self._classes.store.get(claim.spec.storage_class_name or "")
        if storage_class is None or storage_class.provisioner != self._driver:
            return
        name = f"pvc-{claim.metadata.uid}"
        if name in self._volumes.store:
            return
        block = claim.spec.volume_mode == "Block"
        parameters = storage_class.parameters or {}
        access_modes = claim.spec.access_modes or ()
        requests = (claim.spec.resources.requests if claim.spec.resources else None) or {}
        fs_type = "" if block else parameters.get(FS_TYPE_KEY, DEFAULT_FS_TYPE)
        request = csi_pb2.CreateVolumeRequest(
            name=name,
            volume_content_source=await self.snapshotter.source_of(claim),
            capacity_range=csi_pb2.CapacityRange(required_bytes=quantity_bytes(str(requests["storage"]))),
            volume_capabilities=[
                volume_capability(access_mode=mode, block=block, fs_type=fs_type) for mode in access_modes
            ],
            parameters={
                name: value for name, value in parameters.items() if not name.startswith("csi.storage.k8s.io/")
            },
        )
        try:
            answer = await self._controller.CreateVolume(request, timeout=retries.PROVISION_SECONDS)
        except grpc.aio.AioRpcError as error:
            log.warning("claim %s: %s", key, retries.describe(error))
            raise
        body: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {
                "name": name,
                "finalizers": [FINALIZER],
                "annotations": {"pv.kubernetes.io/provisioned-by": self._driver},
            },
            "spec": {
                "capacity": {"storage": str(answer.volume.capacity_bytes)},
                "accessModes": list(access_modes),
                "persistentVolumeReclaimPolicy": storage_class.reclaim_policy or "Delete",
                "storageClassName": claim.spec.storage_class_name,
                "mountOptions": list(storage_class.mount_options or ()),
                "volumeMode": "Block" if block else "Filesystem",
                "claimRef": {
                    "kind": "PersistentVolumeClaim",
                    "apiVersion": "v1",
                    "name": claim.metadata.name,
                    "namespace": claim.metadata.namespace,
                    "uid": claim.metadata.uid,
                    "resourceVersion": claim.metadata.resource_version,
                },
                "csi": {
                    "driver": self._driver,
                    "volumeHandle": answer.volume.volume_id,
                    "volumeAttributes": dict(answer.volume.volume_context),
                    "fsType": fs_type or None,
                },
            },
        }
        try:
            await self._client.create(resources.PERSISTENT_VOLUMES, body)
        except AlreadyExists:
            log.info("volume %s exists already", name)

    async def _delete(self, key: str) -> None:
        volume = self._volumes.store.get(key)
        if volume is None or volume.spec.csi is None or volume.spec.csi.driver != self._driver:
            return
        released = volume.status.phase == "Released" or bool(volume.metadata.deletion_timestamp)
        if not released or volume.spec.persistent_volume_reclaim_policy != "Delete":
            return
        if any(attachment.spec.source.persistent_volume_name == key for attachment in self._attachments.store.values()):
            return  # still attached; looked at again when the attachment goes
        try:
            await self._controller.DeleteVolume(
                csi_pb2.DeleteVolumeRequest(volume_id=volume.spec.csi.volume_handle), timeout=retries.PROVISION_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            log.warning("volume %s: %s", key, retries.describe(error))
            raise
        try:
            await self._client.delete(resources.PERSISTENT_VOLUMES, key)
            left = [finalizer for finalizer in volume.metadata.finalizers if finalizer != FINALIZER]
            await self._client.merge_patch(
                resources.PERSISTENT_VOLUMES, key, "", {"metadata": {"finalizers": left or None}}
            )
        except NotFound:
            return
