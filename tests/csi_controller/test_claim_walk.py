"""A claim's whole walk by the calls of the side-cars and of kubelet, with real bytes on the target."""

import os
from pathlib import Path

import pytest

from csi import identity
from csi.node_host import mounts
from dpu_offload_stubs.csi import csi_pb2
from foundation.spdk.client import SpdkClient
from tests.csi_rig.plant import MIB, Plant, block_capability

pytestmark = pytest.mark.root
CONTENT = b"what the pod wrote " * 1000


async def leftovers(plant: Plant) -> list[str]:
    async with SpdkClient(plant.target.address) as client:
        subsystems = [each["nqn"] for each in await client.call("nvmf_get_subsystems")]
        lvols = [each["alias"] for each in await client.call("bdev_lvol_get_lvols")]
    mine = [nqn for nqn in subsystems if identity.is_ours(nqn)]
    mounted = [mount.point for mount in mounts.table() if mount.point.startswith(str(plant.directory))]
    return [*mine, *lvols, *mounted, *(path for dpu in plant.dpus.values() for path in dpu.attached)]


def bytes_on_target(plant: Plant, content: bytes) -> bool:
    volumes = plant.target.file.with_name(f"{plant.target.file.name}.lvs")
    return any(content in path.read_bytes() for path in volumes.iterdir())


async def test_file_system(one: Plant) -> None:
    volume = await one.create()
    assert volume.capacity_bytes == 64 * MIB
    context = await one.publish(volume, "host1")
    assert context["namespaceUuid"] == identity.namespace_uuid(volume.volume_id)
    assert context["dpuNode"] == "host1-dpu"
    assert int(context["sizeBytes"]) == 64 * MIB
    await one.stage(volume, "host1", context)
    path = await one.mount(volume, "host1")
    Path(path, "file").write_bytes(CONTENT)
    await one.unmount(volume, "host1")
    assert not os.path.exists(path)
    await one.unstage(volume, "host1")
    assert bytes_on_target(one, CONTENT)
    # Again: nothing is formatted that holds a file system.
    await one.stage(volume, "host1", context)
    path = await one.mount(volume, "host1")
    assert Path(path, "file").read_bytes() == CONTENT
    await one.unmount(volume, "host1")
    await one.unstage(volume, "host1")
    await one.unpublish(volume, "host1")
    await one.delete(volume)
    assert await leftovers(one) == []


async def test_raw_block(one: Plant) -> None:
    capability = block_capability()
    volume = await one.create(capability=capability)
    context = await one.publish(volume, "host1", capability)
    await one.stage(volume, "host1", context, capability)
    path = await one.mount(volume, "host1", capability)
    with open(path, "r+b") as device:
        assert device.seek(0, os.SEEK_END) == 64 * MIB
        device.seek(MIB)
        device.write(CONTENT)
    await one.unmount(volume, "host1")
    await one.unstage(volume, "host1")
    assert bytes_on_target(one, CONTENT)
    await one.unpublish(volume, "host1")
    await one.delete(volume)
    assert await leftovers(one) == []


async def test_every_step_ten_times_and_every_undoing_ten_times(one: Plant) -> None:
    for _ in range(10):
        volume = await one.create()
    for _ in range(10):
        context = await one.publish(volume, "host1")
    for _ in range(10):
        await one.stage(volume, "host1", context)
    for _ in range(10):
        path = await one.mount(volume, "host1")
    assert mounts.at(path) is not None
    for _ in range(10):
        await one.unmount(volume, "host1")
    for _ in range(10):
        await one.unstage(volume, "host1")
    for _ in range(10):
        await one.unpublish(volume, "host1")
    for _ in range(10):
        await one.delete(volume)
    assert await leftovers(one) == []


async def test_node_info_tells_the_dpus_functions(one: Plant) -> None:
    info = await one.nodes["host1"].NodeGetInfo(csi_pb2.NodeGetInfoRequest())
    assert (info.node_id, info.max_volumes_per_node) == ("host1", 8)
    assert info.accessible_topology.segments
