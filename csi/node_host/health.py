"""NodeGetVolumeStats: usage and condition, told without touching a disk that could hang."""

import os
import posixpath

from csi.errors import DeadlineExceeded, InvalidArgument, NotFound
from csi.node_host import mounts
from csi.node_host.bounded import blocking
from csi.node_host.host import Host
from csi.node_host.records import Staged
from dpu_offload_stubs.csi import csi_pb2

_SECONDS = 10.0


async def stats(host: Host, request: csi_pb2.NodeGetVolumeStatsRequest) -> csi_pb2.NodeGetVolumeStatsResponse:
    if not request.volume_id:
        raise InvalidArgument("volume_id is missing")
    if not request.volume_path:
        raise InvalidArgument("volume_path is missing")
    path = posixpath.normpath(request.volume_path)
    record = await host.record(request.volume_id)
    if record is None or not await host.at(record, path):
        raise NotFound(f"volume {request.volume_id} is not at {path}")
    if record.passthrough:
        return _of_function(host, record)
    namespace = host.namespace(request.volume_id, record)
    if namespace is None:
        return _abnormal("the disk is gone from the host")
    state = host.disks.state(namespace)
    if state != "live":
        return _abnormal(f"the controller of disk {namespace.name} is {state or 'gone'}")
    # A raw disk is staged by being known; where it is published its node is.
    known = path == record.staging_path or await host.node_at(record, path) if record.block else mounts.at(path)
    if not known:
        raise NotFound(f"volume {request.volume_id} is not mounted at {path}")
    healthy = csi_pb2.VolumeCondition(abnormal=False, message=f"disk {namespace.name} is live")
    if record.block:
        usage = csi_pb2.VolumeUsage(unit=csi_pb2.VolumeUsage.BYTES, total=namespace.size)
        return csi_pb2.NodeGetVolumeStatsResponse(usage=[usage], volume_condition=healthy)
    try:
        found = await blocking(lambda: os.statvfs(path), seconds=_SECONDS, what=f"statvfs {path}")
    except (DeadlineExceeded, OSError) as error:
        return _abnormal(f"the file system at {path} does not answer: {error}")
    bytes_used = csi_pb2.VolumeUsage(
        unit=csi_pb2.VolumeUsage.BYTES,
        total=found.f_blocks * found.f_frsize,
        available=found.f_bavail * found.f_frsize,
        used=(found.f_blocks - found.f_bfree) * found.f_frsize,
    )
    inodes = csi_pb2.VolumeUsage(
        unit=csi_pb2.VolumeUsage.INODES,
        total=found.f_files,
        available=found.f_favail,
        used=found.f_files - found.f_ffree,
    )
    return csi_pb2.NodeGetVolumeStatsResponse(usage=[bytes_used, inodes], volume_condition=healthy)


def _of_function(host: Host, record: Staged) -> csi_pb2.NodeGetVolumeStatsResponse:
    """Of a disk that a virtual machine has, the host knows its size and whether the function is still its own."""
    if not host.passthrough.bound(record.passthrough):
        return _abnormal(f"PCI function {record.passthrough} is not bound to vfio-pci")
    usage = csi_pb2.VolumeUsage(unit=csi_pb2.VolumeUsage.BYTES, total=record.size)
    condition = csi_pb2.VolumeCondition(abnormal=False, message=f"PCI function {record.passthrough} is on vfio-pci")
    return csi_pb2.NodeGetVolumeStatsResponse(usage=[usage], volume_condition=condition)


def _abnormal(message: str) -> csi_pb2.NodeGetVolumeStatsResponse:
    return csi_pb2.NodeGetVolumeStatsResponse(volume_condition=csi_pb2.VolumeCondition(abnormal=True, message=message))
