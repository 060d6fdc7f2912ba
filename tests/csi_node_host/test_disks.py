"""Finding the published disk: late, wrong, dead, empty, or behind another function."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi import identity
from csi.node_host import mounts
from dpu_offload_stubs.csi import csi_pb2
from lab.apiserver.faults import Rule
from tests.csi_rig.plant import MIB, Mode, Plant, block_capability, mount_capability

pytestmark = pytest.mark.root


async def refused(call: Any, code: grpc.StatusCode) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is code, caught.value.details()
    return str(caught.value.details())


async def test_a_late_disk_is_waited_for_by_event(one: Plant) -> None:
    volume = await one.create()
    one.dpus["host1"].faults.lag = 1.0
    context = await one.publish(volume, "host1", block_capability())
    assert not list((one.dpus["host1"].sysfs / "class").glob("nvme/*")), "the disk is not there yet"
    await one.stage(volume, "host1", context, block_capability())


async def test_a_controller_that_lags_is_told_to_look_again(one: Plant) -> None:
    volume = await one.create()
    context = await one.publish(volume, "host1")
    one.dpus["host1"].set_state(volume.volume_id, "connecting")
    staging = asyncio.ensure_future(one.stage(volume, "host1", context))
    rescan = one.dpus["host1"].sysfs / "class/nvme/nvme1/rescan_controller"
    for _ in range(1000):
        if rescan.read_text().strip() == "1":
            break
        await asyncio.sleep(0.01)
    else:
        raise AssertionError("no rescan was asked for")
    one.dpus["host1"].set_state(volume.volume_id, "live")
    await staging


ODD = [
    {"pciAddress": "../../x"},
    {"namespaceUuid": "../../etc"},
    {"vf": "-1"},
    {"pf": "x"},
    {"sizeBytes": "-1"},
    {"portals": "{"},
]


async def test_an_odd_context_is_refused_at_once(one: Plant) -> None:
    volume = await one.create()
    context = await one.publish(volume, "host1")
    for changed in ODD:
        await refused(one.stage(volume, "host1", {**context, **changed}), grpc.StatusCode.INVALID_ARGUMENT)


WRONG = [
    ({"namespaceUuid": "00000000-0000-4000-8000-000000000000"}, "no disk with namespace uuid"),
    ({"subsystemNqn": "nqn.2016-06.io.spdk:other"}, "subsystem"),
    ({"vf": "2"}, "is behind"),
    ({"sizeBytes": str(1 << 40)}, "bytes"),
    ({"vuid": "MT2251X00000"}, "VUID"),
]


async def test_a_wrong_disk_is_never_taken(one: Plant) -> None:
    await one.start_node("host1", disk_seconds=0.1, socket=str(one.directory / "impatient.sock"))
    volume = await one.create()
    context = await one.publish(volume, "host1")
    for changed, words in WRONG:
        text = await refused(one.stage(volume, "host1", {**context, **changed}), grpc.StatusCode.DEADLINE_EXCEEDED)
        assert words in text


async def test_a_dead_controller_hangs_nothing(one: Plant) -> None:
    volume = await one.create()
    context = await one.publish(volume, "host1")
    one.dpus["host1"].set_state(volume.volume_id, "dead")
    text = await refused(one.stage(volume, "host1", context), grpc.StatusCode.UNAVAILABLE)
    assert "dead" in text
    one.dpus["host1"].set_state(volume.volume_id, "live")
    await one.stage(volume, "host1", context)
    path = await one.mount(volume, "host1")
    one.dpus["host1"].set_state(volume.volume_id, "dead")
    stats = await one.nodes["host1"].NodeGetVolumeStats(
        csi_pb2.NodeGetVolumeStatsRequest(volume_id=volume.volume_id, volume_path=path)
    )
    assert stats.volume_condition.abnormal
    assert "dead" in stats.volume_condition.message
    assert not stats.usage
    text = await refused(one.mount(volume, "host1", pod="second"), grpc.StatusCode.FAILED_PRECONDITION)
    assert "dead" in text
    with open(f"{path}/held", "w"):
        # An open file would keep an ordinary umount out; a dead disk is let go of at once.
        await one.unmount(volume, "host1")
        await one.unstage(volume, "host1")


async def test_everything_can_be_undone_after_the_disk_has_gone(one: Plant) -> None:
    volume = await one.create()
    context = await one.publish(volume, "host1")
    await one.stage(volume, "host1", context)
    await one.mount(volume, "host1")
    await one.dpus["host1"].clear()
    await one.unmount(volume, "host1")
    await one.unstage(volume, "host1")
    await one.unpublish(volume, "host1")


async def test_stats_of_both_modes(one: Plant) -> None:
    for name, capability in (("file", mount_capability()), ("raw", block_capability())):
        volume = await one.create(name, capability=capability)
        await one.stage(volume, "host1", await one.publish(volume, "host1", capability), capability)
        path = await one.mount(volume, "host1", capability)
        request = csi_pb2.NodeGetVolumeStatsRequest(volume_id=volume.volume_id, volume_path=path)
        answer = await one.nodes["host1"].NodeGetVolumeStats(request)
        assert not answer.volume_condition.abnormal
        units = {usage.unit: usage for usage in answer.usage}
        if name == "raw":
            assert units[csi_pb2.VolumeUsage.BYTES].total == 64 * MIB
        else:
            assert 40 * MIB < units[csi_pb2.VolumeUsage.BYTES].total < 64 * MIB
            assert units[csi_pb2.VolumeUsage.INODES].total > 1000


async def test_read_only_publication_and_single_pod(one: Plant) -> None:
    capability = mount_capability(Mode.SINGLE_NODE_SINGLE_WRITER)
    volume = await one.create(capability=capability)
    await one.stage(volume, "host1", await one.publish(volume, "host1", capability), capability)
    path = await one.mount(volume, "host1", capability, readonly=True)
    with pytest.raises(OSError, match="Read-only"):
        Path(path, "file").touch()
    await refused(one.mount(volume, "host1", capability), grpc.StatusCode.ALREADY_EXISTS)
    words = await refused(one.mount(volume, "host1", capability, pod="second"), grpc.StatusCode.FAILED_PRECONDITION)
    assert "ReadWriteOncePod" in words


async def test_a_slow_api_server_does_not_make_disks_endless(one: Plant) -> None:
    """kubelet asks once when it registers the driver; 0 would mean that there is no limit."""
    one.api.faults.add(Rule(path="/api/v1/nodes", latency=0.3, verbs=("list",)))
    await one.start_node("host1", socket=str(one.directory / "slow.sock"))
    info = await one.nodes["host1"].NodeGetInfo(csi_pb2.NodeGetInfoRequest())
    assert info.max_volumes_per_node == 8


async def test_content_of_others_is_left_alone(one: Plant) -> None:
    volume = await one.create()
    context = await one.publish(volume, "host1")
    node = one.dpus["host1"].devices / "nvme1n1"
    luks = b"LUKS\xba\xbe\x00\x02" + (1 << 14).to_bytes(8, "big") + bytes(4080)
    node.write_bytes(luks)
    text = await refused(one.stage(volume, "host1", context), grpc.StatusCode.FAILED_PRECONDITION)
    assert "crypto_LUKS" in text
    with node.open("rb") as device:
        assert device.read(8) == luks[:8]


async def test_a_file_system_whose_head_is_lost_is_not_taken_for_a_blank_disk(one: Plant) -> None:
    """Nothing knows it by its signature then, but everything else is still there."""
    volume = await one.create()
    context = await one.publish(volume, "host1")
    await one.stage(volume, "host1", context)
    await one.unstage(volume, "host1")
    node = one.dpus["host1"].devices / "nvme1n1"
    for head in (bytes(1024), b"\xff" * 1024):
        with node.open("r+b") as device:
            device.seek(1024)
            device.write(head)
        words = await refused(one.stage(volume, "host1", context), grpc.StatusCode.FAILED_PRECONDITION)
        assert "unknown kind" in words


async def test_a_clone_beside_its_source_and_larger(one: Plant) -> None:
    """The same file system UUID twice on one host, and a file system smaller than its disk."""
    for fs_type, size in (("xfs", 320 * MIB), ("ext4", 64 * MIB)):
        capability = mount_capability(fs_type=fs_type)
        volume = await one.create(f"source-{fs_type}", size=size, capability=capability)
        await one.stage(volume, "host1", await one.publish(volume, "host1", capability), capability)
        path = await one.mount(volume, "host1", capability)
        with open(f"{path}/file", "w") as file:
            file.write(fs_type)
        await one.unmount(volume, "host1")
        await one.unstage(volume, "host1")
        source = csi_pb2.VolumeContentSource(
            volume=csi_pb2.VolumeContentSource.VolumeSource(volume_id=volume.volume_id)
        )
        clone = await one.create(f"clone-{fs_type}", size=2 * size, capability=capability, volume_content_source=source)
        paths = []
        for each in (volume, clone):
            await one.stage(each, "host1", await one.publish(each, "host1", capability), capability)
            paths.append(await one.mount(each, "host1", capability))
        assert [Path(path, "file").read_text() for path in paths] == [fs_type] * 2
        request = csi_pb2.NodeGetVolumeStatsRequest(volume_id=clone.volume_id, volume_path=paths[1])
        assert (await one.nodes["host1"].NodeGetVolumeStats(request)).usage[0].total > 1.5 * size
        for each in (volume, clone):
            await one.unmount(each, "host1")
            await one.unstage(each, "host1")


async def test_bad_input(one: Plant) -> None:
    node = one.nodes["host1"]
    good = {"volume_id": "spdk:p0.v" + "a" * 20, "staging_target_path": "/s", "volume_capability": mount_capability()}
    invalid, missing = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
    context = {"namespaceUuid": identity.namespace_uuid("spdk:a"), "subsystemNqn": "nqn"}
    stage = csi_pb2.NodeStageVolumeRequest
    publish = csi_pb2.NodePublishVolumeRequest
    for call, code in (
        (node.NodeStageVolume(stage(**{**good, "volume_id": ""})), invalid),
        (node.NodeStageVolume(stage(**{**good, "staging_target_path": ""})), invalid),
        (node.NodeStageVolume(stage(**{**good, "staging_target_path": "relative"})), invalid),
        (node.NodeStageVolume(stage(volume_id="spdk:a", staging_target_path="/s")), invalid),
        (node.NodeStageVolume(stage(**good)), invalid),
        (node.NodeStageVolume(stage(**good, publish_context={"namespaceUuid": "x"})), invalid),
        (node.NodeStageVolume(stage(**good, publish_context={**context, "vf": "many"})), invalid),
        (node.NodeStageVolume(stage(**{**good, "volume_id": "theirs"}, publish_context=context)), missing),
        (node.NodePublishVolume(publish(**good)), invalid),
        (node.NodePublishVolume(publish(**good, target_path="t")), invalid),
        (node.NodePublishVolume(publish(**good, target_path="/t")), grpc.StatusCode.FAILED_PRECONDITION),
        (node.NodeUnpublishVolume(csi_pb2.NodeUnpublishVolumeRequest(volume_id="a")), invalid),
        (node.NodeUnstageVolume(csi_pb2.NodeUnstageVolumeRequest(volume_id="a")), invalid),
        (node.NodeGetVolumeStats(csi_pb2.NodeGetVolumeStatsRequest(volume_id="a")), invalid),
        (node.NodeGetVolumeStats(csi_pb2.NodeGetVolumeStatsRequest(volume_id="a", volume_path="/a")), missing),
        (node.NodeExpandVolume(csi_pb2.NodeExpandVolumeRequest(volume_id="spdk:a")), invalid),
        (node.NodeExpandVolume(csi_pb2.NodeExpandVolumeRequest(volume_id="spdk:a", volume_path="/a")), missing),
    ):
        await refused(call, code)
    assert not Path("/s").exists()
    assert not Path("/t").exists()
    assert not list((one.directory / "host1/state").glob("*")), "nothing is remembered of what was refused"
    assert not [each for each in mounts.table() if each.point.startswith(str(one.directory))]
