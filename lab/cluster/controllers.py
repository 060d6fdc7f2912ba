"""kube-controller-manager's part for volumes: binding, claim protection, attach and detach.

Each step is taken only where it is still missing, so that these stand-ins also run beside the real controllers.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging

from foundation.daemon.work import KeyedQueue
from foundation.kube import resources
from foundation.kube.client import KubeClient
from foundation.kube.errors import AlreadyExists, NotFound
from foundation.kube.models.core import PersistentVolume, PersistentVolumeClaim, Pod
from foundation.kube.models.storage import VolumeAttachment
from foundation.kube.reflector import Reflector

log = logging.getLogger(__name__)

CLAIM_PROTECTION = "kubernetes.io/pvc-protection"
VOLUME_PROTECTION = "kubernetes.io/pv-protection"


class VolumeControllers:
    """Binder, protection and attach-detach over one set of reflectors."""

    def __init__(self, client: KubeClient, driver: str) -> None:
        self._client = client
        self._driver = driver
        self._pods: Reflector[Pod] = Reflector(client, resources.PODS)
        self._nodes = Reflector(client, resources.NODES)
        self._claims: Reflector[PersistentVolumeClaim] = Reflector(client, resources.PERSISTENT_VOLUME_CLAIMS)
        self._volumes: Reflector[PersistentVolume] = Reflector(client, resources.PERSISTENT_VOLUMES)
        self._attachments: Reflector[VolumeAttachment] = Reflector(client, resources.VOLUME_ATTACHMENTS)
        self.queue: KeyedQueue[str] = KeyedQueue(self._sync)
        self.reflectors = (self._pods, self._nodes, self._claims, self._volumes, self._attachments)
        for reflector in self.reflectors:
            reflector.subscribe(lambda _change: self._look_at_all())

    def _look_at_all(self) -> None:
        # A lab has a handful of volumes; the real controllers keep an index here.
        for name in self._volumes.store:
            self.queue.add(name)
        for attachment in self._attachments.store.values():
            if attachment.spec.attacher == self._driver and attachment.spec.source.persistent_volume_name:
                self.queue.add(attachment.spec.source.persistent_volume_name)
        for key, claim in self._claims.store.items():
            if claim.metadata.deletion_timestamp:
                self.queue.add(key)

    async def _sync(self, key: str) -> None:
        with contextlib.suppress(NotFound):
            if "/" in key:
                await self._protect(key)
                return
            volume = self._volumes.store.get(key)
            if volume is not None and volume.spec.csi is not None and volume.spec.csi.driver == self._driver:
                await self._bind(volume)
            await self._attach(key, volume)

    # -- binding -----------------------------------------------------------------------------------------------

    async def _bind(self, volume: PersistentVolume) -> None:
        name, reference = volume.metadata.name, volume.spec.claim_ref
        if reference is None:
            return
        claim = self._claims.store.get(f"{reference.namespace}/{reference.name}")
        if claim is None or claim.metadata.uid != reference.uid:
            if volume.status.phase == "Bound":
                await self._phase(volume, "Released")
            return
        if not claim.spec.volume_name:
            body = {
                "metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
                "spec": {"volumeName": name},
            }
            await self._client.merge_patch(
                resources.PERSISTENT_VOLUME_CLAIMS, reference.name, reference.namespace, body
            )
        if claim.status.phase != "Bound":
            await self._client.merge_patch(
                resources.PERSISTENT_VOLUME_CLAIMS,
                reference.name,
                reference.namespace,
                {
                    "status": {
                        "phase": "Bound",
                        "capacity": dict(volume.spec.capacity or {}),
                        "accessModes": list(volume.spec.access_modes or ()),
                    }
                },
                subresource="status",
            )
        if volume.status.phase != "Bound":
            await self._phase(volume, "Bound")

    async def _phase(self, volume: PersistentVolume, phase: str) -> None:
        await self._client.merge_patch(
            resources.PERSISTENT_VOLUMES, volume.metadata.name, "", {"status": {"phase": phase}}, subresource="status"
        )

    async def _protect(self, key: str) -> None:
        """A claim that is being deleted goes when no pod uses it."""
        claim = self._claims.store.get(key)
        if claim is None or not claim.metadata.deletion_timestamp or self._users(claim):
            return
        if CLAIM_PROTECTION in claim.metadata.finalizers:
            left = [finalizer for finalizer in claim.metadata.finalizers if finalizer != CLAIM_PROTECTION]
            await self._client.merge_patch(
                resources.PERSISTENT_VOLUME_CLAIMS,
                claim.metadata.name,
                claim.metadata.namespace,
                {"metadata": {"finalizers": left or None}},
            )

    # -- attach and detach -------------------------------------------------------------------------------------

    async def _attach(self, name: str, volume: PersistentVolume | None) -> None:
        wanted: set[str] = set()
        if volume is not None and volume.spec.csi is not None and volume.spec.csi.driver == self._driver:
            reference = volume.spec.claim_ref
            claim = self._claims.store.get(f"{reference.namespace}/{reference.name}") if reference else None
            if claim is not None and claim.spec.volume_name == name:
                wanted = {pod.spec.node_name for pod in self._users(claim) if pod.spec.node_name}
            in_use = f"kubernetes.io/csi/{self._driver}^{volume.spec.csi.volume_handle}"
            wanted |= {
                node.metadata.name
                for node in self._nodes.store.values()
                if in_use in (node.status.volumes_in_use or ())
            }
        present = {
            attachment.spec.node_name: attachment
            for attachment in self._attachments.store.values()
            if attachment.spec.attacher == self._driver and attachment.spec.source.persistent_volume_name == name
        }
        for node in wanted - present.keys():
            if volume is None or volume.spec.csi is None:
                continue
            body = {
                "apiVersion": "storage.k8s.io/v1",
                "kind": "VolumeAttachment",
                "metadata": {"name": attachment_name(volume.spec.csi.volume_handle, self._driver, node)},
                "spec": {
                    "attacher": self._driver,
                    "nodeName": node,
                    "source": {"persistentVolumeName": name},
                },
            }
            with contextlib.suppress(AlreadyExists):
                await self._client.create(resources.VOLUME_ATTACHMENTS, body)
        for node, attachment in present.items():
            if node not in wanted and not attachment.metadata.deletion_timestamp:
                await self._client.delete(resources.VOLUME_ATTACHMENTS, attachment.metadata.name)
        if (
            volume is not None
            and volume.metadata.deletion_timestamp
            and VOLUME_PROTECTION in volume.metadata.finalizers
        ):
            left = [finalizer for finalizer in volume.metadata.finalizers if finalizer != VOLUME_PROTECTION]
            await self._client.merge_patch(
                resources.PERSISTENT_VOLUMES, name, "", {"metadata": {"finalizers": left or None}}
            )

    def _users(self, claim: PersistentVolumeClaim) -> list[Pod]:
        return [
            pod
            for pod in self._pods.store.values()
            if pod.metadata.namespace == claim.metadata.namespace
            and pod.status.phase not in ("Succeeded", "Failed")
            and any(
                volume.persistent_volume_claim is not None
                and volume.persistent_volume_claim.claim_name == claim.metadata.name
                for volume in pod.spec.volumes or ()
            )
        ]


def attachment_name(handle: str, driver: str, node: str) -> str:
    """The name that the attach-detach controller gives: a digest, so that a second create finds the first."""
    return "csi-" + hashlib.sha256(f"{handle}{driver}{node}".encode()).hexdigest()
