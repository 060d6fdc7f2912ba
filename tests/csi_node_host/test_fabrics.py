"""A host without a DPU: what is asked of the kernel's own initiator, which a laid-out tree stands in for."""

import asyncio
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi import identity
from csi.node_host import mounts
from dpu_offload_stubs.csi import csi_pb2
from foundation.kube.resources import NODES
from lab.hardware import loops
from lab.hardware.sysfs import SysfsTree
from lab.hardware.uevents import UeventSender
from tests.csi_rig.plant import Plant, mount_capability
from tests.csi_rig.target import PORT

pytestmark = pytest.mark.root


@pytest.fixture
def sender() -> Iterator[UeventSender]:
    found = UeventSender()
    yield found
    found.close()


async def show(plant: Plant, options: dict[str, str], volume: csi_pb2.Volume, sender: UeventSender) -> Path:
    """What the kernel makes of an accepted connect; returns the loop device."""
    dpu = plant.dpus["host1"]
    file = plant.directory / "disk"
    with file.open("wb") as opened:
        opened.truncate(volume.capacity_bytes)
    loop = await loops.attach(file, size=volume.capacity_bytes)
    number = loops.device_number(loop)
    os.mknod(dpu.devices / "nvme7n1", 0o600 | stat.S_IFBLK, os.makedev(*number))
    tree = SysfsTree(dpu.sysfs)
    tree.add_nvme_controller(7, pci="fabrics", nqn=options["nqn"], serial="S", model="M", firmware="1", cntlid=1)
    controller = dpu.sysfs / "class/nvme/nvme7"
    (controller / "transport").write_text("tcp\n")
    (controller / "address").write_text(f"traddr={options['traddr']},trsvcid={options['trsvcid']},src_addr=::1\n")
    (controller / "delete_controller").write_text("")
    uuid = identity.namespace_uuid(volume.volume_id)
    tree.add_nvme_namespace(
        7, 1, pci="fabrics", nsid=1, uuid=uuid, nguid=uuid, size=volume.capacity_bytes, device=number
    )
    sender.send("add", "/devices/virtual/nvme-subsystem/nvme-subsys7/nvme7n1", "block")
    return loop


async def plain(plant: Plant) -> csi_pb2.Volume:
    """The rig's host loses its DPU, and gets a volume of the other transport."""
    await plant.kube.delete(NODES, "host1-dpu")
    volume = await plant.create(parameters={"transport": "kernel"})
    assert volume.volume_context["transport"] == "kernel"
    return volume


async def published(plant: Plant, volume: csi_pb2.Volume) -> dict[str, str]:
    """The DPU's Node vanishes from the reflector a moment after it was deleted."""
    for _ in range(1000):
        try:
            return await plant.publish(volume, "host1")
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                raise
            await asyncio.sleep(0.01)
    raise AssertionError("the host is still said to have a DPU")


async def test_connect_mount_and_disconnect(one: Plant, sender: UeventSender) -> None:
    volume = await plain(one)
    fabrics = one.dpus["host1"].devices / "nvme-fabrics"
    fabrics.write_text("")
    context = await published(one, volume)
    (portal,) = json.loads(context["portals"])
    assert (portal["transport"], context["hostNqn"]) == ("tcp", identity.host_nqn("host1"))
    staging = asyncio.ensure_future(one.stage(volume, "host1", context))
    while not fabrics.read_text():
        await asyncio.sleep(0.01)
    options = dict(each.split("=", 1) for each in fabrics.read_text().split(","))
    assert options == {
        "nqn": identity.subsystem_nqn(volume.volume_id),
        "transport": "tcp",
        "traddr": "127.0.0.1",
        "trsvcid": str(PORT),
        "hostnqn": identity.host_nqn("host1"),
        "hostid": identity.host_id("host1"),
        "ctrl_loss_tmo": "-1",
        "reconnect_delay": "2",
    }
    loop = await show(one, options, volume, sender)
    try:
        path = await staging
        fabrics.write_text("")
        await one.stage(volume, "host1", context)
        assert fabrics.read_text() == "", "what is connected is not connected again"
        listed = await one.controller.ListVolumes(csi_pb2.ListVolumesRequest())
        assert list(listed.entries[0].status.published_node_ids) == ["host1"]
        await one.unstage(volume, "host1")
        assert mounts.at(path) is None
        assert (one.dpus["host1"].sysfs / "class/nvme/nvme7/delete_controller").read_text() == "1"
        await one.unpublish(volume, "host1")
        await one.delete(volume)
    finally:
        mounts.unmount(one.staging("host1", volume), dead=True)
        await loops.detach(loop)


async def refused(call: Any, code: grpc.StatusCode) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is code, caught.value.details()
    return str(caught.value.details())


async def test_refusals(one: Plant) -> None:
    volume = await one.create(parameters={"transport": "kernel"})
    await refused(one.publish(volume, "host1"), grpc.StatusCode.FAILED_PRECONDITION)
    await refused(one.publish(volume, "nowhere"), grpc.StatusCode.NOT_FOUND)
    await refused(one.create("other", parameters={"transport": "fc"}), grpc.StatusCode.INVALID_ARGUMENT)
    await one.kube.delete(NODES, "host1-dpu")
    context = await published(one, volume)
    words = await refused(one.stage(volume, "host1", context), grpc.StatusCode.UNAVAILABLE)
    assert "nvme-tcp" in words
    broken = {**context, "portals": "[{]"}
    await refused(one.stage(volume, "host1", broken, mount_capability()), grpc.StatusCode.INVALID_ARGUMENT)
