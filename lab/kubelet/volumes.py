"""A pod's CSI volumes as kubelet's volume manager handles them: stage, publish, and the reverse.

Paths are kubelet's: ``plugins/kubernetes.io/csi/<driver>/<sha256 of the volume handle>/globalmount`` for staging,
``pods/<uid>/volumes/kubernetes.io~csi/<pv>/mount`` for publishing, ``volumeDevices`` for raw block.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path

import grpc
import grpc.aio

from dpu_offload_stubs.csi import csi_pb2, csi_pb2_grpc

NODE_CALL_SECONDS = 120.0  # kubelet's csiTimeout


@dataclasses.dataclass(frozen=True)
class MountedVolume:
    """One volume of one pod, with all that undoing it needs."""

    driver: str
    handle: str
    persistent_volume: str
    block: bool
    staging_path: str
    target_path: str


@dataclasses.dataclass(frozen=True)
class VolumeToMount:
    driver: str
    handle: str
    persistent_volume: str
    block: bool
    fs_type: str
    mount_options: tuple[str, ...]
    access_mode: str
    read_only: bool
    attributes: Mapping[str, str]
    publish_context: Mapping[str, str]


_ACCESS_MODES = {
    "ReadWriteOnce": csi_pb2.VolumeCapability.AccessMode.SINGLE_NODE_MULTI_WRITER,
    "ReadWriteOncePod": csi_pb2.VolumeCapability.AccessMode.SINGLE_NODE_SINGLE_WRITER,
    "ReadOnlyMany": csi_pb2.VolumeCapability.AccessMode.MULTI_NODE_READER_ONLY,
    "ReadWriteMany": csi_pb2.VolumeCapability.AccessMode.MULTI_NODE_MULTI_WRITER,
}


def volume_capability(
    *, access_mode: str, block: bool, fs_type: str = "", mount_options: tuple[str, ...] = ()
) -> csi_pb2.VolumeCapability:
    """The CSI capability of a Kubernetes access mode, for a driver with SINGLE_NODE_MULTI_WRITER."""
    mode = csi_pb2.VolumeCapability.AccessMode(mode=_ACCESS_MODES[access_mode])
    if block:
        return csi_pb2.VolumeCapability(access_mode=mode, block=csi_pb2.VolumeCapability.BlockVolume())
    mount = csi_pb2.VolumeCapability.MountVolume(fs_type=fs_type, mount_flags=mount_options)
    return csi_pb2.VolumeCapability(access_mode=mode, mount=mount)


class VolumeMounter:
    """One node's CSI driver, below one kubelet root directory."""

    def __init__(self, channel: grpc.aio.Channel, root: Path) -> None:
        self._node = csi_pb2_grpc.NodeStub(channel)
        self._root = root

    async def node_info(self, *, seconds: float) -> csi_pb2.NodeGetInfoResponse:
        """What registration asks; waits for the driver's socket up to ``seconds``."""
        return await self._node.NodeGetInfo(csi_pb2.NodeGetInfoRequest(), timeout=seconds, wait_for_ready=True)

    async def mount(self, volume: VolumeToMount, *, pod_uid: str) -> MountedVolume:
        mounted = self.plan(volume, pod_uid=pod_uid)
        capability = volume_capability(
            access_mode=volume.access_mode,
            block=volume.block,
            fs_type=volume.fs_type,
            mount_options=volume.mount_options,
        )
        Path(mounted.staging_path).mkdir(parents=True, exist_ok=True)
        await self._node.NodeStageVolume(
            csi_pb2.NodeStageVolumeRequest(
                volume_id=volume.handle,
                publish_context=volume.publish_context,
                staging_target_path=mounted.staging_path,
                volume_capability=capability,
                volume_context=volume.attributes,
            ),
            timeout=NODE_CALL_SECONDS,
        )
        Path(mounted.target_path).parent.mkdir(parents=True, exist_ok=True)
        await self._node.NodePublishVolume(
            csi_pb2.NodePublishVolumeRequest(
                volume_id=volume.handle,
                publish_context=volume.publish_context,
                staging_target_path=mounted.staging_path,
                target_path=mounted.target_path,
                volume_capability=capability,
                readonly=volume.read_only,
                volume_context=volume.attributes,
            ),
            timeout=NODE_CALL_SECONDS,
        )
        return mounted

    async def unmount(self, mounted: MountedVolume, *, last: bool) -> None:
        """Unpublish, and unstage when no other pod of this node uses the volume (``last``)."""
        await self._node.NodeUnpublishVolume(
            csi_pb2.NodeUnpublishVolumeRequest(volume_id=mounted.handle, target_path=mounted.target_path),
            timeout=NODE_CALL_SECONDS,
        )
        if not last:
            return
        await self._node.NodeUnstageVolume(
            csi_pb2.NodeUnstageVolumeRequest(volume_id=mounted.handle, staging_target_path=mounted.staging_path),
            timeout=NODE_CALL_SECONDS,
        )
        for directory in (Path(mounted.staging_path), Path(mounted.staging_path).parent):
            # Only empty directories: what is still mounted there holds somebody's data.
            with contextlib.suppress(OSError):
                directory.rmdir()

    def plan(self, volume: VolumeToMount, *, pod_uid: str) -> MountedVolume:
        """The paths of a volume in a pod; the same answer each time."""
        digest = hashlib.sha256(volume.handle.encode()).hexdigest()
        pod = self._root / "pods" / pod_uid
        if volume.block:
            staging = self._root / "plugins/kubernetes.io/csi/volumeDevices/staging" / volume.persistent_volume
            target = self._root / "plugins/kubernetes.io/csi/volumeDevices/publish" / volume.persistent_volume / pod_uid
        else:
            staging = self._root / "plugins/kubernetes.io/csi" / volume.driver / digest / "globalmount"
            target = pod / "volumes/kubernetes.io~csi" / volume.persistent_volume / "mount"
        return MountedVolume(
            driver=volume.driver,
            handle=volume.handle,
            persistent_volume=volume.persistent_volume,
            block=volume.block,
            staging_path=str(staging),
            target_path=str(target),
        )
