"""A function bound to vfio-pci for a virtual machine, and given back; sysfs is laid out here, real in the VM lab."""

import os
import stat
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi.node_host import mounts, passthrough
from dpu_offload_stubs.csi import csi_pb2
from tests.csi_rig.dpu import StandInDpu, function_address
from tests.csi_rig.kernel import Drivers
from tests.csi_rig.plant import MIB, Mode, Plant, block_capability, mount_capability

pytestmark = pytest.mark.root
PARAMETERS = {"dpu-offload.io/passthrough": "true"}
FUNCTION = function_address(1)


@pytest.fixture
def drivers(one: Plant, monkeypatch: pytest.MonkeyPatch) -> Drivers:
    dpu = one.dpus["host1"]
    found = Drivers(dpu.sysfs, dpu.devices, dpu.show_again)
    monkeypatch.setattr(passthrough, "write", found.write)
    return found


async def refused(call: Any, code: grpc.StatusCode) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is code, caught.value.details()
    return str(caught.value.details())


def disks(dpu: StandInDpu) -> list[str]:
    return sorted(path.name for path in (dpu.sysfs / "block").iterdir())


@pytest.mark.parametrize("capability", [block_capability(), mount_capability()], ids=["Block", "Filesystem"])
async def test_the_function_goes_to_vfio_and_comes_back(
    one: Plant, drivers: Drivers, capability: csi_pb2.VolumeCapability
) -> None:
    dpu, node = one.dpus["host1"], one.nodes["host1"]
    volume = await one.create(capability=capability, parameters=PARAMETERS)
    context = await one.publish(volume, "host1", capability)
    assert context["passthrough"] == "true"
    assert disks(dpu) == ["nvme1n1"]
    for _ in range(2):
        await one.stage(volume, "host1", context, capability)
        assert drivers.driver(FUNCTION) == "vfio-pci"
        assert disks(dpu) == []
    assert drivers.written.count(f"unbind={FUNCTION}") == 1, "a virtual machine would have lost its disk"
    path = Path(await one.mount(volume, "host1", capability))
    device = path if capability.HasField("block") else path / passthrough.DEVICE_FILE
    found = device.stat()
    assert stat.S_ISCHR(found.st_mode)
    assert found.st_rdev == (dpu.devices / "vfio/41").stat().st_rdev
    if capability.HasField("mount"):
        assert (path / passthrough.ADDRESS_FILE).read_text().strip() == FUNCTION
    stats = csi_pb2.NodeGetVolumeStatsRequest(volume_id=volume.volume_id, volume_path=str(path))
    answer = await node.NodeGetVolumeStats(stats)
    assert (answer.usage[0].total, answer.volume_condition.abnormal) == (64 * MIB, False)
    grow = csi_pb2.NodeExpandVolumeRequest(
        volume_id=volume.volume_id,
        volume_path=str(path),
        capacity_range=csi_pb2.CapacityRange(required_bytes=128 * MIB),
    )
    assert (await node.NodeExpandVolume(grow)).capacity_bytes == 128 * MIB
    await refused(one.unstage(volume, "host1"), grpc.StatusCode.FAILED_PRECONDITION)
    assert drivers.driver(FUNCTION) == "vfio-pci"
    for _ in range(2):
        await one.unmount(volume, "host1")
    assert not path.exists()
    for _ in range(2):
        await one.unstage(volume, "host1")
    assert drivers.driver(FUNCTION) == "nvme"
    assert disks(dpu) == ["nvme1n1"]
    assert (dpu.sysfs / "bus/pci/devices" / FUNCTION / "driver_override").read_text().strip() == ""
    assert not os.listdir(one.directory / "host1/state/passthrough") if capability.HasField("mount") else True
    await one.unpublish(volume, "host1")


async def test_a_pod_can_keep_nothing_in_it(one: Plant, drivers: Drivers) -> None:
    """KubeVirt makes a disk image in a file system that has none: here it must fail, not end on the host's own disk."""
    volume = await one.create(capability=mount_capability(), parameters=PARAMETERS)
    await one.stage(volume, "host1", await one.publish(volume, "host1"))
    for _ in range(2):
        path = Path(await one.mount(volume, "host1"))
    free = os.statvfs(path)
    assert free.f_bavail * free.f_frsize < 64 << 10
    with pytest.raises(OSError, match="No space left"):
        (path / "disk.img").write_bytes(bytes(64 << 10))
    assert os.stat(path / passthrough.DEVICE_FILE).st_mode & stat.S_IFCHR
    await one.unmount(volume, "host1")
    await one.unstage(volume, "host1")
    assert not [each for each in mounts.table() if each.point.startswith(f"{one.directory}/")]


async def test_killed_between_any_two_writes_it_is_bound_and_released_all_the_same(
    one: Plant, drivers: Drivers, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await one.create(capability=block_capability(), parameters=PARAMETERS)
    context = await one.publish(volume, "host1", block_capability())
    for survived in range(3):
        for step in (one.stage(volume, "host1", context, block_capability()), one.unstage(volume, "host1")):
            left = survived

            def dying(path: Path, value: str) -> None:
                nonlocal left
                if left == 0:
                    raise OSError("killed here")
                left -= 1
                drivers.write(path, value)

            monkeypatch.setattr(passthrough, "write", dying)
            await refused(step, grpc.StatusCode.INTERNAL)
            monkeypatch.setattr(passthrough, "write", drivers.write)
            if "nvme" in drivers.driver(FUNCTION):
                await one.stage(volume, "host1", context, block_capability())
            elif not drivers.driver(FUNCTION):
                await one.unstage(volume, "host1")
                assert drivers.driver(FUNCTION) == "nvme"
                await one.stage(volume, "host1", context, block_capability())
            assert drivers.driver(FUNCTION) == "vfio-pci"
        await one.unstage(volume, "host1")
        assert drivers.driver(FUNCTION) == "nvme"


async def test_refused_before_anything_is_unbound(one: Plant, drivers: Drivers) -> None:
    dpu = one.dpus["host1"]
    volume = await one.create(capability=block_capability(), parameters=PARAMETERS)
    context = await one.publish(volume, "host1", block_capability())
    function = dpu.sysfs / "bus/pci/devices" / FUNCTION
    group = (function / "iommu_group").readlink()
    (function / "iommu_group").unlink()
    words = await refused(one.stage(volume, "host1", context, block_capability()), grpc.StatusCode.FAILED_PRECONDITION)
    assert "IOMMU" in words
    (function / "iommu_group").symlink_to(group)
    (dpu.sysfs / "bus/pci/drivers/vfio-pci").rmdir()
    words = await refused(one.stage(volume, "host1", context, block_capability()), grpc.StatusCode.UNAVAILABLE)
    assert "modprobe vfio-pci" in words
    assert drivers.written == []
    assert disks(dpu) == ["nvme1n1"]


async def test_what_cannot_be_passed_through_is_refused_at_creation(one: Plant) -> None:
    for capability, more, words in (
        (block_capability(Mode.MULTI_NODE_MULTI_WRITER), {}, "excludes live migration"),
        (block_capability(Mode.MULTI_NODE_READER_ONLY), {}, "live migration"),
        (block_capability(Mode.SINGLE_NODE_READER_ONLY), {}, "read-only"),
        (block_capability(), {"transport": "kernel"}, "needs a DPU"),
        (block_capability(), {"functionPolicy": "shared"}, "static or hotplug"),
        (block_capability(), {"dpu-offload.io/passthrough": "maybe"}, "passthrough"),
    ):
        call = one.create(capability=capability, parameters={**PARAMETERS, **more})
        assert words in await refused(call, grpc.StatusCode.INVALID_ARGUMENT)
    volume = await one.create(capability=block_capability(), parameters=PARAMETERS)
    assert volume.volume_context["functionPolicy"] == "static"
    call = one.publish(volume, "host1", block_capability(Mode.MULTI_NODE_MULTI_WRITER))
    assert "live migration" in await refused(call, grpc.StatusCode.INVALID_ARGUMENT)
    request = csi_pb2.ValidateVolumeCapabilitiesRequest(
        volume_id=volume.volume_id,
        volume_context=volume.volume_context,
        volume_capabilities=[block_capability(Mode.MULTI_NODE_MULTI_WRITER)],
    )
    answer = await one.controller.ValidateVolumeCapabilities(request)
    assert "live migration" in answer.message
    assert not answer.HasField("confirmed")
