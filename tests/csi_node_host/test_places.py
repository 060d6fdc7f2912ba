"""Where kubelet asks for volumes: paths of any sort, what else is there, and a volume that is asked for twice."""

import os
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi.node_host import mounts
from dpu_offload_stubs.csi import csi_pb2
from tests.csi_rig.plant import MIB, Mode, Plant, block_capability, mount_capability

pytestmark = pytest.mark.root

INVALID = grpc.StatusCode.INVALID_ARGUMENT
EXISTS = grpc.StatusCode.ALREADY_EXISTS
STATE = grpc.StatusCode.FAILED_PRECONDITION


async def refused(call: Any, code: grpc.StatusCode, words: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is code, caught.value.details()
    assert words in str(caught.value.details())


class Staged:
    """One volume on host1, staged."""

    def __init__(self, plant: Plant, volume: csi_pb2.Volume, context: dict[str, str]) -> None:
        self.plant, self.volume, self.context = plant, volume, context
        self.node = plant.nodes["host1"]
        self.staging = plant.staging("host1", volume)

    async def publish(self, target: str, **more: Any) -> None:
        given: dict[str, Any] = {
            "volume_id": self.volume.volume_id,
            "staging_target_path": self.staging,
            "target_path": target,
            "volume_capability": mount_capability(),
            **more,
        }
        await self.node.NodePublishVolume(csi_pb2.NodePublishVolumeRequest(**given))

    async def unpublish(self, target: str) -> None:
        request = csi_pb2.NodeUnpublishVolumeRequest(volume_id=self.volume.volume_id, target_path=target)
        await self.node.NodeUnpublishVolume(request)

    async def stage(self, path: str = "", capability: csi_pb2.VolumeCapability | None = None) -> None:
        request = csi_pb2.NodeStageVolumeRequest(
            volume_id=self.volume.volume_id,
            publish_context=self.context,
            staging_target_path=path or self.staging,
            volume_capability=capability or mount_capability(),
        )
        await self.node.NodeStageVolume(request)

    async def unstage(self, path: str = "") -> None:
        request = csi_pb2.NodeUnstageVolumeRequest(
            volume_id=self.volume.volume_id, staging_target_path=path or self.staging
        )
        await self.node.NodeUnstageVolume(request)

    async def total(self, path: str) -> int:
        request = csi_pb2.NodeGetVolumeStatsRequest(volume_id=self.volume.volume_id, volume_path=path)
        answer = await self.node.NodeGetVolumeStats(request)
        assert not answer.volume_condition.abnormal
        return int(answer.usage[0].total)


async def staged(plant: Plant, name: str, capability: csi_pb2.VolumeCapability | None = None) -> Staged:
    volume = await plant.create(name, size=16 * MIB, capability=capability)
    context = await plant.publish(volume, "host1", capability)
    await plant.stage(volume, "host1", context, capability)
    return Staged(plant, volume, context)


async def test_paths_of_any_sort(one: Plant) -> None:
    """Odd names, 4 KiB of them, and a directory of kubelet's that is a symbolic link."""
    it = await staged(one, "a")
    pods = one.directory / "pods"
    (one.directory / "elsewhere").mkdir()
    (one.directory / "link").symlink_to(one.directory / "elsewhere")
    long = "/".join(["n" * 200] * 18)
    for target in ("with space\t#\\ü/m", "odd\u2028\r\x85\n/m", long, "../link/pod/m"):
        path = f"{pods}/{target}"
        for _ in range(2):
            await it.publish(path)
        assert sum(mount.device == "7:1" or mount.point.endswith("/m") for mount in mounts.table()) or target == long
        point = mounts.at(path)
        assert point is not None
        assert [mount.point for mount in mounts.table()].count(point.point) == 1
        assert await it.total(path) > 0
        for _ in range(2):
            await it.unpublish(path)
        assert not os.path.lexists(path)


async def test_paths_that_cannot_be(one: Plant) -> None:
    it = await staged(one, "a")
    raw = await staged(one, "raw", block_capability())
    file, directory, link, pipe = (one.directory / name for name in ("file", "directory", "link", "pipe"))
    file.write_text("kept")
    (directory / "kept").mkdir(parents=True)
    link.symlink_to(directory)
    os.mkfifo(pipe)
    for target in (file, link, pipe, file / "below"):
        await refused(it.publish(str(target)), STATE, str(target))
    for target in (directory, link, pipe, file / "below"):
        await refused(raw.publish(str(target), volume_capability=block_capability()), STATE, str(target))
    for target in (file, directory, link, pipe):
        await refused(it.unpublish(str(target)), STATE, str(target))
    await it.unpublish(str(file / "below"))
    for call in (it.publish, it.unpublish, it.stage, it.unstage):
        await refused(call(f"{one.directory}/{'n' * 256}"), INVALID, "255")
    await it.unstage()
    await refused(it.stage(str(file)), STATE, str(file))
    assert file.read_text() == "kept"
    assert (directory / "kept").is_dir()


async def test_only_the_volume_itself_counts_as_published(one: Plant) -> None:
    it, other = await staged(one, "a"), await staged(one, "b")
    target = str(one.directory / "pod/m")
    await refused(it.publish(target, staging_target_path=other.staging), STATE, other.staging)
    await other.publish(target)
    await refused(it.publish(target), EXISTS, target)
    await other.unpublish(target)
    await it.publish(target)
    await refused(it.unstage(), STATE, target)
    assert await it.total(target) > 0
    await it.unpublish(target)


async def test_a_target_of_an_earlier_life_of_the_disk_is_published_anew(one: Plant) -> None:
    it = await staged(one, "a")
    target = str(one.directory / "pod/m")
    await it.publish(target)
    mounts.unmount(target)
    mounts.mount("none", target, "tmpfs", [])
    await it.publish(target)
    at_target, at_staging = mounts.at(target), mounts.at(it.staging)
    assert at_target is not None
    assert at_staging is not None
    assert at_target.device == at_staging.device


async def test_a_second_staging(one: Plant) -> None:
    it = await staged(one, "a")
    elsewhere = str(one.directory / "elsewhere")
    await refused(it.stage(capability=mount_capability(fs_type="xfs")), EXISTS, "ext4")
    await refused(it.stage(capability=mount_capability(flags=["noatime,ro"])), EXISTS, "for writing")
    await refused(it.stage(capability=block_capability()), EXISTS, "file system")
    await refused(it.stage(elsewhere), STATE, it.staging)
    await refused(it.stage(elsewhere, block_capability()), STATE, it.staging)
    await it.unstage(elsewhere)
    await it.stage()
    assert await it.total(it.staging) > 0
    await it.unstage()
    await it.stage(elsewhere, mount_capability(flags=["ro", "noatime,rw"]))
    Path(elsewhere, "file").touch()
    await it.unstage(elsewhere)
    await it.stage(elsewhere, mount_capability(flags=["noatime,ro"]))
    with pytest.raises(OSError, match="Read-only"):
        Path(elsewhere, "file").touch()
    await it.unstage(elsewhere)
    await it.stage(capability=block_capability())
    await refused(it.stage(), EXISTS, "raw")
    await it.publish(str(one.directory / "raw"), volume_capability=block_capability())
    await refused(it.stage(elsewhere), STATE, "raw")


async def test_a_lost_record_comes_back_with_the_next_staging(one: Plant) -> None:
    it = await staged(one, "a")
    for record in (one.directory / "host1/state").glob("*.json"):
        record.unlink()
    await it.stage()
    await it.publish(str(one.directory / "m"))


async def test_a_raw_disk_at_the_node_that_kubelet_made(one: Plant) -> None:
    """kubelet asks for statistics at its own device node, volumeDevices/<volume>/dev/<pod>."""
    it = await staged(one, "raw", block_capability())
    target, own = str(one.directory / "publish/uid"), one.directory / "dev/uid"
    await it.publish(target, volume_capability=block_capability())
    own.parent.mkdir()
    own.touch()
    for wrong in (own, one.directory / "none"):
        await refused(it.total(str(wrong)), grpc.StatusCode.NOT_FOUND, str(wrong))
    mounts.bind(target, str(own), read_only=False)
    assert await it.total(str(own)) == 16 * MIB
    expand = csi_pb2.NodeExpandVolumeRequest
    for path in (str(own), target):
        answer = await it.node.NodeExpandVolume(expand(volume_id=it.volume.volume_id, volume_path=path))
        assert answer.capacity_bytes == 16 * MIB
    limited = csi_pb2.CapacityRange(limit_bytes=MIB)
    call = it.node.NodeExpandVolume(expand(volume_id=it.volume.volume_id, volume_path=target, capacity_range=limited))
    await refused(call, grpc.StatusCode.OUT_OF_RANGE, "limit_bytes")
    await it.unpublish(target)
    await refused(it.total(target), grpc.StatusCode.NOT_FOUND, target)


async def test_what_was_published_to_read_is_mounted_so(one: Plant) -> None:
    """Of a PersistentVolume with csi.readOnly, NodeStageVolume's capability says nothing."""
    it = await staged(one, "a")
    Path(it.staging, "file").write_text("kept")
    await it.unstage()
    await one.unpublish(it.volume, "host1")
    it.context = await one.publish(it.volume, "host1", readonly=True)
    for _ in range(2):
        await it.stage()
    target = str(one.directory / "m")
    await it.publish(target)
    assert Path(target, "file").read_text() == "kept"
    for path in (it.staging, target):
        with pytest.raises(OSError, match="Read-only"):
            Path(path, "file").write_text("x")


async def test_a_raw_disk_that_was_published_to_read_cannot_be_written(one: Plant) -> None:
    """A read-only bind of a device node keeps nobody from writing to the device."""
    reader = block_capability(Mode.MULTI_NODE_READER_ONLY)
    volume = await one.create("raw", size=16 * MIB, capability=reader)
    # The stand-in DPU would protect the disk itself, a real one does not: so it is published for writing.
    context = {**await one.publish(volume, "host1", block_capability()), "access": "reader"}
    await one.stage(volume, "host1", context, reader)
    path = await one.mount(volume, "host1", reader)
    with pytest.raises(PermissionError), open(path, "r+b", buffering=0) as device:
        device.write(b"x")
    await one.unmount(volume, "host1")
    await one.unstage(volume, "host1")
    await one.stage(volume, "host1", {**context, "access": "single"}, block_capability())
    with open(await one.mount(volume, "host1", block_capability()), "r+b", buffering=0) as device:
        device.write(b"x")
