"""NodePublishVolume, with its reverse: from the staged volume to the place where a pod finds it."""

import asyncio
import os
import stat

import msgspec

from csi import capabilities
from csi.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from csi.node_host import mounts, points
from csi.node_host.bounded import blocking
from csi.node_host.disks import Disk, NotYet
from csi.node_host.host import Host, check_path, check_volume
from csi.node_host.records import Staged
from dpu_offload_stubs.csi import csi_pb2

_SECONDS = 60.0


def check(request: csi_pb2.NodePublishVolumeRequest) -> None:
    """Raises InvalidArgument, NotFound; nothing has been changed."""
    if not request.volume_id:
        raise InvalidArgument("volume_id is missing")
    check_path(request.target_path, "target_path")
    capabilities.check_one(request)
    if request.staging_target_path:
        check_path(request.staging_target_path, "staging_target_path")
    check_volume(request.volume_id)


async def publish(host: Host, request: csi_pb2.NodePublishVolumeRequest) -> None:
    check(request)
    target = check_path(request.target_path, "target_path")
    if not request.staging_target_path:
        raise FailedPrecondition("staging_target_path is missing: the volume must be staged first")
    staging = check_path(request.staging_target_path, "staging_target_path")
    record = await host.record(request.volume_id)
    if record is None:
        raise FailedPrecondition(f"volume {request.volume_id} is not staged on this node")
    if staging != record.staging_path:
        raise FailedPrecondition(f"volume {request.volume_id} is staged at {record.staging_path}, not at {staging}")
    capability = request.volume_capability
    block = capability.WhichOneof("access_type") == "block"
    if block != record.block:
        raise FailedPrecondition(f"volume {request.volume_id} is staged as {'block' if record.block else 'mount'}")
    if host.dead(request.volume_id, record):
        what = f"function {record.passthrough} is not bound to vfio-pci" if record.passthrough else "controller is dead"
        raise FailedPrecondition(f"the disk of volume {request.volume_id} is gone or its {what}")
    others = [other for other in record.targets if other != target and mounts.at(other) is not None]
    if others and capability.access_mode.mode in capabilities.SINGLE_TARGET_MODES:
        raise FailedPrecondition(f"volume {request.volume_id} is ReadWriteOncePod and already published at {others[0]}")
    read_only = request.readonly or record.read_only or capabilities.read_only(capability)
    source = await _source(host, request, record, staging)
    present = mounts.at(target)
    if present is not None and await asyncio.to_thread(_shows, source, present):
        if present.read_only != read_only:
            raise AlreadyExists(f"{target} is already published {'read-only' if present.read_only else 'for writing'}")
        return
    if present is not None:
        if target not in record.targets:
            raise AlreadyExists(f"{present.fs_type} of {present.source} is mounted at {target}: it is left as it is")
        # An earlier life of the disk, which cannot come back.
        await blocking(lambda: mounts.unmount(target, dead=True), seconds=_SECONDS, what=f"let go of {target}")
    # Noted before it is done: a restart in between must still find every place where the volume may be.
    await host.remember(msgspec.structs.replace(record, targets=(*others, target)))
    await asyncio.to_thread(points.make, target, file=block)
    await blocking(
        lambda: mounts.bind(source, target, read_only=read_only), seconds=_SECONDS, what=f"bind {source} at {target}"
    )


async def unpublish(host: Host, request: csi_pb2.NodeUnpublishVolumeRequest) -> None:
    """Succeeds whatever is missing; what was made at the target path is removed."""
    if not request.volume_id:
        raise InvalidArgument("volume_id is missing")
    target = check_path(request.target_path, "target_path")
    record = await host.record(request.volume_id)
    if mounts.at(target) is not None:
        dead = host.dead(request.volume_id, record)
        what = f"{'let go of' if dead else 'unmount'} {target}"
        await blocking(lambda: mounts.unmount(target, dead=dead), seconds=_SECONDS, what=what)
    await blocking(lambda: points.remove(target), seconds=_SECONDS, what=f"remove {target}")
    if record is not None and record.passthrough and set(record.targets) <= {target}:
        await asyncio.to_thread(host.passthrough.hide, record.volume_id)
    if record is not None and target in record.targets:
        remaining = tuple(other for other in record.targets if other != target)
        await host.remember(msgspec.structs.replace(record, targets=remaining))


def _shows(source: str, present: mounts.Mount) -> bool:
    """Whether a target shows what would be bound to it. A file system is told by the mount table, never looked at."""
    if staged := mounts.at(source):
        return staged.device == present.device
    try:
        mine, found = os.stat(source), os.stat(present.point)
    except OSError:
        return False
    if stat.S_ISDIR(mine.st_mode):
        return os.path.samestat(mine, found)
    return (stat.S_IFMT(mine.st_mode), mine.st_rdev) == (stat.S_IFMT(found.st_mode), found.st_rdev)


async def _source(host: Host, request: csi_pb2.NodePublishVolumeRequest, record: Staged, staging: str) -> str:
    """What is bound to the target path."""
    if record.passthrough and record.block:
        return str(host.passthrough.device(record.passthrough))
    if record.passthrough:
        return str(await asyncio.to_thread(host.passthrough.show, record.volume_id, record.passthrough))
    return _block_source(host, request, record) if record.block else _mounted_source(staging, request.volume_id)


def _mounted_source(staging: str, volume_id: str) -> str:
    if mounts.at(staging) is None:
        raise FailedPrecondition(f"volume {volume_id} is not mounted at {staging}: stage it first")
    return staging


def _block_source(host: Host, request: csi_pb2.NodePublishVolumeRequest, record: Staged) -> str:
    namespace = host.namespace(request.volume_id, record)
    if namespace is None:
        raise FailedPrecondition(f"the disk of volume {request.volume_id} is gone")
    try:
        disk: Disk = host.disks.disk(namespace)
    except NotYet as error:
        raise FailedPrecondition(f"volume {request.volume_id}: {error}") from error
    return disk.path
