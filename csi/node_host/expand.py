"""NodeExpandVolume: wait until the host sees the larger disk, then grow the file system."""

import posixpath

import msgspec

from csi.errors import FailedPrecondition, InvalidArgument, NotFound, OutOfRange
from csi.node_host import mounts
from csi.node_host.disks import Disk
from csi.node_host.host import Host, check_volume
from csi.publication import PublishContext
from dpu_offload_stubs.csi import csi_pb2


def check(request: csi_pb2.NodeExpandVolumeRequest) -> None:
    if not request.volume_id:
        raise InvalidArgument("volume_id is missing")
    if not request.volume_path:
        raise InvalidArgument("volume_path is missing")
    capacity = request.capacity_range
    if capacity.required_bytes < 0 or capacity.limit_bytes < 0:
        raise InvalidArgument("capacity_range: bytes cannot be negative")
    if capacity.limit_bytes and capacity.required_bytes > capacity.limit_bytes:
        raise InvalidArgument("capacity_range: required_bytes is more than limit_bytes")
    check_volume(request.volume_id)


async def expand(host: Host, request: csi_pb2.NodeExpandVolumeRequest) -> int:
    """Returns the disk's size in bytes."""
    check(request)
    path = posixpath.normpath(request.volume_path)
    record = await host.record(request.volume_id)
    if record is None or not await host.at(record, path):
        raise NotFound(f"volume {request.volume_id} is not at {path}")
    if record.passthrough:
        # The guest's own kernel sees the new size; on this host there is nothing to grow.
        size = max(record.size, request.capacity_range.required_bytes)
        await host.remember(msgspec.structs.replace(record, size=size))
        return size
    wanted = PublishContext(
        namespace_uuid=record.namespace_uuid,
        subsystem_nqn=record.subsystem_nqn,
        size_bytes=request.capacity_range.required_bytes,
    )
    disk: Disk = await host.disks.wait(
        wanted, seconds=host.config.disk_seconds, rescan_after=host.config.rescan_seconds, function=False
    )
    limit = request.capacity_range.limit_bytes
    if limit and disk.size > limit:
        raise OutOfRange(f"volume {request.volume_id} has {disk.size} bytes already, more than limit_bytes {limit}")
    if record.block:
        return disk.size
    mounted = mounts.at(path) or mounts.at(record.staging_path)
    if mounted is None:
        raise NotFound(f"nothing is mounted at {path}")
    if record.read_only:
        raise FailedPrecondition(f"volume {request.volume_id} is mounted read-only: its file system cannot be grown")
    # Growing what is grown already does nothing; only ext4 is looked at first, as growing it takes a capability.
    if mounted.fs_type != "ext4" or await host.file_systems.lags(disk):
        await host.file_systems.grow(disk, mounted.fs_type, mounted.point)
    return disk.size
