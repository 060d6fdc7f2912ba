"""NodeStageVolume, with its reverse: from a published function to a mounted file system."""

import asyncio
import os

import msgspec

from csi import capabilities
from csi.errors import AlreadyExists, FailedPrecondition, Internal, InvalidArgument
from csi.node_host import filesystems, mounts, points, protection
from csi.node_host.bounded import blocking
from csi.node_host.disks import Disk
from csi.node_host.host import Host, check_path, check_volume
from csi.node_host.records import Staged
from csi.publication import PublishContext
from dpu_offload_stubs.csi import csi_pb2
from foundation.daemon import metrics

_STEPS = metrics.steps("csi_stage_seconds", "Time of each step of NodeStageVolume.")
_UNMOUNT_SECONDS = 60.0


def check(request: csi_pb2.NodeStageVolumeRequest) -> PublishContext:
    """Raises InvalidArgument, NotFound; nothing has been changed."""
    if not request.volume_id:
        raise InvalidArgument("volume_id is missing")
    check_path(request.staging_target_path, "staging_target_path")
    capabilities.check_one(request)
    check_volume(request.volume_id)
    if not request.publish_context:
        raise InvalidArgument("publish_context is missing: the volume must be published to this node first")
    return PublishContext.parse(request.publish_context)


async def stage(host: Host, request: csi_pb2.NodeStageVolumeRequest) -> None:
    context = check(request)
    path = check_path(request.staging_target_path, "staging_target_path")
    capability = request.volume_capability
    block = capability.WhichOneof("access_type") == "block"
    if context.passthrough:
        await _hand_over(host, context, volume_id=request.volume_id, path=path, block=block)
        return
    if context.portals:
        with metrics.step_timer(_STEPS, step="connect"):
            await blocking(
                lambda: host.fabrics.connect(context),
                seconds=host.config.disk_seconds,
                what=f"connect {context.subsystem_nqn}",
            )
    with metrics.step_timer(_STEPS, step="wait for disk"):
        disk = await host.disks.wait(
            context,
            seconds=host.config.disk_seconds,
            rescan_after=host.config.rescan_seconds,
            function=not context.portals,
        )
    ways = [word for given in capability.mount.mount_flags for word in given.split(",") if word in ("ro", "rw")]
    # Whoever was let in to read reads, whatever the capability says (a PersistentVolume's csi.readOnly is not in it).
    read_only = context.access == "reader" or capabilities.read_only(capability) or ways[-1:] == ["ro"]
    before = await host.record(request.volume_id)
    _refuse_other_use(before, path, block=block)
    record = Staged(
        volume_id=request.volume_id,
        namespace_uuid=context.namespace_uuid,
        subsystem_nqn=context.subsystem_nqn,
        staging_path=path,
        block=block,
        fs_type=capability.mount.fs_type,
        read_only=read_only,
        device=disk.device,
        fabrics=bool(context.portals),
        formatting=before.formatting if before else "",
        targets=before.targets if before else (),
    )
    mounted = mounts.at(path)
    if mounted is not None and (mounted.device == disk.device or await _same_file_system(mounted, disk)):
        _refuse_other_mount(mounted, capability, read_only=read_only)
        await host.remember(msgspec.structs.replace(record, fs_type=mounted.fs_type, formatting=""))
        return
    if block:
        await host.remember(record)
        if read_only:
            await blocking(
                lambda: protection.protect(disk.path), seconds=host.config.command_seconds, what=f"protect {disk.path}"
            )
        return
    if mounted is not None:
        # The mount of an earlier life of the disk: what is behind it cannot come back.
        await _unmount(path, dead=True)
    fs_type = await _prepare(host, disk, record, read_only=read_only)
    lags = not read_only and await host.file_systems.lags(disk)
    if lags and fs_type == "ext4":
        with metrics.step_timer(_STEPS, step="grow"):
            await host.file_systems.grow_unmounted(disk)
    record = msgspec.structs.replace(record, fs_type=fs_type, formatting="")
    await host.remember(record)
    words = [
        *filesystems.MOUNT_OPTIONS.get(fs_type, ()),
        *host.config.mount_options.get(fs_type, ()),
        *capability.mount.mount_flags,
        "ro" if read_only else "rw",
    ]
    await asyncio.to_thread(points.make, path, file=False)
    with metrics.step_timer(_STEPS, step="mount"):
        await blocking(
            lambda: mounts.mount(disk.path, path, fs_type, words),
            seconds=host.config.command_seconds,
            what=f"mount {disk.path}",
        )
    if lags and fs_type != "ext4":
        with metrics.step_timer(_STEPS, step="grow"):
            await host.file_systems.grow(disk, fs_type, path)


def _refuse_other_use(before: Staged | None, path: str, *, block: bool) -> None:
    """A file system that somebody writes raw beside its mount is lost."""
    if before is None or (before.staging_path == path and before.block == block):
        return
    how = "as a raw disk" if before.block else "with its file system"
    if before.staging_path == path:
        raise AlreadyExists(f"volume {before.volume_id} is staged at {path} {how}: unstage it first")
    used = [point for point in (before.staging_path, *before.targets) if mounts.at(point) is not None]
    if used and not (before.block and block):
        raise FailedPrecondition(f"volume {before.volume_id} is in use {how} at {used[0]}: unstage it there first")


def _refuse_other_mount(mounted: mounts.Mount, capability: csi_pb2.VolumeCapability, *, read_only: bool) -> None:
    """Raises AlreadyExists for a mount that is not what is asked for."""
    if capability.WhichOneof("access_type") == "block":
        raise AlreadyExists(f"{mounted.point} is a mounted {mounted.fs_type} of that volume: unstage it first")
    if mounted.read_only != read_only:
        raise AlreadyExists(f"{mounted.point} is mounted {'read-only' if mounted.read_only else 'for writing'}")
    if capability.mount.fs_type not in ("", mounted.fs_type):
        raise AlreadyExists(f"{mounted.point} is mounted as {mounted.fs_type}, not as {capability.mount.fs_type}")


async def _hand_over(host: Host, context: PublishContext, *, volume_id: str, path: str, block: bool) -> None:
    """The function leaves the host's NVMe driver for vfio-pci, once its disk has been seen to be the right one."""
    address = host.disks.function(context)
    if not address:
        raise FailedPrecondition(
            f"volume {volume_id}: PCI function {context.pf}/{context.vf} is not known on this host, so it cannot be "
            "passed through; set physical_functions in csi-node-host's configuration"
        )
    before = await host.record(volume_id)
    size = before.size if before is not None else context.size_bytes
    if not host.passthrough.bound(address):
        with metrics.step_timer(_STEPS, step="wait for disk"):
            disk = await host.disks.wait(
                context, seconds=host.config.disk_seconds, rescan_after=host.config.rescan_seconds
            )
        size = disk.size
        if others := host.disks.others_behind(address, context.namespace_uuid):
            raise FailedPrecondition(
                f"PCI function {address} also carries {', '.join(others)}: a volume that is passed through needs a "
                "function of its own (StorageClass parameter functionPolicy static or hotplug)"
            )
    await host.remember(
        Staged(
            volume_id=volume_id,
            namespace_uuid=context.namespace_uuid,
            subsystem_nqn=context.subsystem_nqn,
            staging_path=path,
            block=block,
            passthrough=address,
            size=size,
            targets=before.targets if before is not None else (),
        )
    )
    with metrics.step_timer(_STEPS, step="bind vfio-pci"):
        await blocking(
            lambda: host.passthrough.bind(address), seconds=host.config.command_seconds, what=f"bind {address}"
        )


async def _prepare(host: Host, disk: Disk, record: Staged, *, read_only: bool) -> str:
    """Formats a blank disk, checks any other; returns the file system's name."""
    with metrics.step_timer(_STEPS, step="look"):
        found = await host.file_systems.signature(disk)
    life = host.life_of(disk.name)
    # Without any signature nobody has finished it elsewhere: it is what a mkfs of ours left when the node went down.
    broken_off = bool(record.formatting) and (record.formatting == life or found == filesystems.UNKNOWN)
    if found and not broken_off:
        filesystems.refuse_other(disk, found, record.fs_type)
        if not read_only:
            with metrics.step_timer(_STEPS, step="check"):
                await host.file_systems.check(disk, found)
        return found
    if read_only or disk.read_only:
        raise FailedPrecondition(f"disk {disk.name} is blank and the volume read-only: it cannot be formatted")
    fs_type = record.fs_type or filesystems.DEFAULT
    # mkfs leaves half a file system when it is killed. The note lets us begin again, but only in this life of the disk
    # on this node: elsewhere somebody may have finished it, and written data.
    await host.remember(msgspec.structs.replace(record, formatting=life))
    with metrics.step_timer(_STEPS, step="format"):
        await host.file_systems.make(disk, fs_type)
    return fs_type


async def unstage(host: Host, request: csi_pb2.NodeUnstageVolumeRequest) -> None:
    """Succeeds whatever is missing: the mount, the disk, the record."""
    if not request.volume_id:
        raise InvalidArgument("volume_id is missing")
    path = check_path(request.staging_target_path, "staging_target_path")
    record = await host.record(request.volume_id)
    dead = host.dead(request.volume_id, record)
    if record is not None and record.staging_path != path:
        # It is staged elsewhere, and stays so.
        if mounts.at(path) is not None:
            await _unmount(path, dead=dead)
        return
    if record is not None and (not dead or record.passthrough):
        _refuse_published(record)
    if record is not None and record.passthrough:
        await _take_back(host, record)
    elif mounts.at(path) is not None:
        await _unmount(path, dead=dead)
    elif record is not None and record.block and not dead:
        await _flush(host, record)
    if record is not None and record.block and record.read_only and not dead:
        await _lift(host, record)
    if record is not None and record.fabrics:
        await blocking(
            lambda: host.fabrics.disconnect(record.subsystem_nqn),
            seconds=_UNMOUNT_SECONDS,
            what=f"disconnect {record.subsystem_nqn}",
        )
    await host.forget(request.volume_id)


def _refuse_published(record: Staged) -> None:
    """What would pull a living disk away from a pod."""
    if used := [target for target in record.targets if mounts.at(target) is not None]:
        raise FailedPrecondition(f"volume {record.volume_id} is still published at {used[0]}: unpublish it there first")


async def _take_back(host: Host, record: Staged) -> None:
    """The kernel waits here for the virtual machine's last file descriptor, so this may have to be repeated."""
    await blocking(
        lambda: host.passthrough.release(record.passthrough),
        seconds=_UNMOUNT_SECONDS,
        what=f"release PCI function {record.passthrough}",
    )


async def _unmount(path: str, *, dead: bool) -> None:
    # To let go at once may do what to unmount, which hung, could not.
    what = f"{'let go of' if dead else 'unmount'} {path}"
    await blocking(lambda: mounts.unmount(path, dead=dead), seconds=_UNMOUNT_SECONDS, what=what)


async def _lift(host: Host, record: Staged) -> None:
    if path := _path(host, record):
        await blocking(lambda: protection.lift(path), seconds=_UNMOUNT_SECONDS, what=f"unprotect {path}")


async def _flush(host: Host, record: Staged) -> None:
    """What was written through a raw device's page cache must be on the disk before the disk goes."""
    path = _path(host, record)
    if not path:
        return

    def flush() -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    try:
        await blocking(flush, seconds=_UNMOUNT_SECONDS, what=f"flush {path}")
    except FileNotFoundError:
        return
    except OSError as error:
        raise Internal(f"flush {path}: {error}") from error


def _path(host: Host, record: Staged) -> str:
    """The disk's device node; empty when the disk is gone."""
    namespace = host.namespace(record.volume_id, record)
    return os.path.join(host.config.dev_root, namespace.name) if namespace is not None else ""


async def _same_file_system(mounted: mounts.Mount, disk: Disk) -> bool:
    """btrfs shows an anonymous device number; its source names the disk."""
    if mounted.fs_type != "btrfs":
        return False
    try:
        found = await asyncio.to_thread(os.stat, mounted.source)
    except OSError:
        return False
    return f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}" == disk.device
