"""Snapshots: what snapshot-controller and external-snapshotter do, and where a claim's first contents come from."""

from __future__ import annotations

import logging
from typing import Any

import grpc.aio

from dpu_offload_stubs.csi import csi_pb2, csi_pb2_grpc
from foundation.daemon.work import Backoff, KeyedQueue
from foundation.kube.client import KubeClient
from foundation.kube.errors import AlreadyExists, NotFound
from foundation.kube.models.core import PersistentVolume, PersistentVolumeClaim
from foundation.kube.models.meta import Unstructured
from foundation.kube.reflector import Reflector
from foundation.kube.resources import VOLUME_SNAPSHOT_CONTENTS, Resource
from lab.cluster import retries

log = logging.getLogger(__name__)

SNAPSHOTS = Resource("snapshot.storage.k8s.io", "v1", "volumesnapshots", True, Unstructured, kind="VolumeSnapshot")


class NotYet(RuntimeError):
    """Something that a snapshot or a claim begins with is not there yet; it is asked for again."""


class Snapshotter:
    """Follows VolumeSnapshots of claims; the caller's reflectors say which volume a claim has."""

    def __init__(
        self,
        client: KubeClient,
        channel: grpc.aio.Channel,
        driver: str,
        *,
        claims: Reflector[PersistentVolumeClaim],
        volumes: Reflector[PersistentVolume],
    ) -> None:
        self._client = client
        self._controller = csi_pb2_grpc.ControllerStub(channel)
        self._driver = driver
        self._claims = claims
        self._volumes = volumes
        self._snapshots: Reflector[Unstructured] = Reflector(client, SNAPSHOTS)
        self._contents = Reflector(client, VOLUME_SNAPSHOT_CONTENTS)
        backoff = Backoff(initial=retries.FIRST_RETRY_SECONDS, maximum=retries.LAST_RETRY_SECONDS)
        self.queue: KeyedQueue[str] = KeyedQueue(self._sync, backoff=backoff)
        self._snapshots.subscribe(lambda change: self.queue.add(change.key))
        claims.subscribe(lambda _change: self._look_again())
        self.reflectors: tuple[Reflector[Any], ...] = (self._snapshots, self._contents)

    def _look_again(self) -> None:
        for key in self._snapshots.store:
            self.queue.add(key)

    async def source_of(self, claim: PersistentVolumeClaim) -> csi_pb2.VolumeContentSource | None:
        """What a new volume begins with. Raises NotYet."""
        source = claim.spec.data_source or claim.spec.data_source_ref
        if source is None:
            return None
        key = f"{claim.metadata.namespace}/{source.name}"
        if source.kind == "PersistentVolumeClaim":
            handle = csi_pb2.VolumeContentSource.VolumeSource(volume_id=self._handle(key))
            return csi_pb2.VolumeContentSource(volume=handle)
        snapshot = self._snapshots.store.get(key)
        content = self._contents.store.get(_content(snapshot)) if snapshot is not None else None
        if content is None or content.status is None or not content.status.ready_to_use:
            raise NotYet(f"snapshot {key} is not ready")
        taken = csi_pb2.VolumeContentSource.SnapshotSource(snapshot_id=content.status.snapshot_handle or "")
        return csi_pb2.VolumeContentSource(snapshot=taken)

    def _handle(self, claim_key: str) -> str:
        claim = self._claims.store.get(claim_key)
        volume = self._volumes.store.get(claim.spec.volume_name) if claim is not None else None
        if volume is None or volume.spec.csi is None:
            raise NotYet(f"claim {claim_key} has no volume")
        return volume.spec.csi.volume_handle

    async def _sync(self, key: str) -> None:
        snapshot = self._snapshots.store.get(key)
        if snapshot is None:
            await self._delete(key)
            return
        if (snapshot.status or {}).get("readyToUse"):
            return
        claim = f"{snapshot.metadata.namespace}/{snapshot.spec['source']['persistentVolumeClaimName']}"
        handle = self._handle(claim)
        name = f"snapshot-{snapshot.metadata.uid}"
        answer = await self._controller.CreateSnapshot(
            csi_pb2.CreateSnapshotRequest(source_volume_id=handle, name=name), timeout=retries.PROVISION_SECONDS
        )
        taken = answer.snapshot
        reference = {
            "kind": "VolumeSnapshot",
            "namespace": snapshot.metadata.namespace,
            "name": snapshot.metadata.name,
            "uid": snapshot.metadata.uid,
        }
        spec = {
            "driver": self._driver,
            "deletionPolicy": "Delete",
            "source": {"volumeHandle": handle},
            "volumeSnapshotRef": reference,
        }
        content = _content(snapshot)
        try:
            await self._client.create(VOLUME_SNAPSHOT_CONTENTS, {"metadata": {"name": content}, "spec": spec})
        except AlreadyExists:
            log.info("content %s exists already", content)
        state = {"readyToUse": taken.ready_to_use, "restoreSize": taken.size_bytes}
        body = {"status": {**state, "snapshotHandle": taken.snapshot_id}}
        await self._client.merge_patch(VOLUME_SNAPSHOT_CONTENTS, content, "", body, "status")
        body = {"status": {"readyToUse": True, "boundVolumeSnapshotContentName": content}}
        await self._client.merge_patch(SNAPSHOTS, snapshot.metadata.name, snapshot.metadata.namespace, body, "status")

    async def _delete(self, key: str) -> None:
        for name, content in list(self._contents.store.items()):
            reference = content.spec.volume_snapshot_ref
            if reference is None or f"{reference.namespace}/{reference.name}" != key or content.status is None:
                continue
            request = csi_pb2.DeleteSnapshotRequest(snapshot_id=content.status.snapshot_handle or "")
            await self._controller.DeleteSnapshot(request, timeout=retries.PROVISION_SECONDS)
            try:
                await self._client.delete(VOLUME_SNAPSHOT_CONTENTS, name)
            except NotFound:
                return


def _content(snapshot: Unstructured) -> str:
    return f"snapcontent-{snapshot.metadata.uid}"
