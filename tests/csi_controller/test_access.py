"""Who may have a volume, in which mode, and that whoever may not is cut off, dead or alive."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi import identity
from dpu_offload_stubs.csi import csi_pb2
from foundation.spdk.client import SpdkClient
from tests.csi_rig.plant import Mode, Plant, block_capability, mount_capability

pytestmark = pytest.mark.root


async def refused(call: Any, code: grpc.StatusCode) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is code, caught.value.details()
    return str(caught.value.details())


async def hosts(plant: Plant, volume: csi_pb2.Volume) -> set[str]:
    async with SpdkClient(plant.target.address) as client:
        (found,) = await client.call("nvmf_get_subsystems", {"nqn": identity.subsystem_nqn(volume.volume_id)})
    assert found["allow_any_host"] is False
    return {host["nqn"] for host in found["hosts"]}


DPU1, DPU2 = identity.host_nqn("host1-dpu"), identity.host_nqn("host2-dpu")


async def test_a_single_writer_stays_single(two: Plant) -> None:
    for mode in (Mode.SINGLE_NODE_WRITER, Mode.SINGLE_NODE_SINGLE_WRITER, Mode.SINGLE_NODE_MULTI_WRITER):
        capability = mount_capability(mode)
        volume = await two.create(f"pvc-{mode}", capability=capability)
        assert await hosts(two, volume) == set()
        await two.publish(volume, "host1", capability)
        words = await refused(two.publish(volume, "host2", capability), grpc.StatusCode.FAILED_PRECONDITION)
        assert DPU1 in words
        assert await hosts(two, volume) == {DPU1}
        assert not two.dpus["host2"].attached
        await two.unpublish(volume, "host1")
        await two.publish(volume, "host2", capability)
        assert await hosts(two, volume) == {DPU2}
        await two.unpublish(volume, "host2")


async def test_shared_block_is_on_two_hosts_at_once(two: Plant) -> None:
    capability = block_capability(Mode.MULTI_NODE_MULTI_WRITER)
    volume = await two.create(capability=capability)
    for host in ("host1", "host2"):
        context = await two.publish(volume, host, capability)
        await two.stage(volume, host, context, capability)
        path = await two.mount(volume, host, capability)
        with open(path, "r+b", buffering=0) as device:
            device.write(host.encode().ljust(4096))
    assert await hosts(two, volume) == {DPU1, DPU2}
    for host in ("host1", "host2"):
        await two.unmount(volume, host)
        await two.unstage(volume, host)
        await two.unpublish(volume, host)
    assert await hosts(two, volume) == set()


async def test_read_only_many_writes_nowhere(two: Plant) -> None:
    writer = mount_capability()
    volume = await two.create(capability=writer)
    await two.stage(volume, "host1", await two.publish(volume, "host1"))
    await two.unstage(volume, "host1")
    await two.unpublish(volume, "host1")
    reader = mount_capability(Mode.MULTI_NODE_READER_ONLY)
    for host in ("host1", "host2"):
        context = await two.publish(volume, host, reader)
        assert two.dpus[host].requests[-1].read_only
        path = await two.stage(volume, host, context, reader)
        with pytest.raises(OSError, match="Read-only"):
            Path(path, "file").touch()


async def test_nobody_reads_or_writes_beside_a_lone_writer(two: Plant) -> None:
    single = block_capability()
    shared = block_capability(Mode.MULTI_NODE_MULTI_WRITER)
    reader = block_capability(Mode.MULTI_NODE_READER_ONLY)
    for first, second, code in (
        (single, reader, grpc.StatusCode.FAILED_PRECONDITION),
        (single, shared, grpc.StatusCode.FAILED_PRECONDITION),
        (reader, single, grpc.StatusCode.FAILED_PRECONDITION),
        (reader, shared, grpc.StatusCode.FAILED_PRECONDITION),
        (shared, single, grpc.StatusCode.FAILED_PRECONDITION),
        (shared, reader, grpc.StatusCode.FAILED_PRECONDITION),
        (shared, shared, None),
        (reader, reader, None),
    ):
        volume = await two.create(capability=single)
        await two.publish(volume, "host1", first)
        if code is None:
            await two.publish(volume, "host2", second)
            assert await hosts(two, volume) == {DPU1, DPU2}
        else:
            assert DPU1 in await refused(two.publish(volume, "host2", second), code)
            assert await hosts(two, volume) == {DPU1}
            assert not two.dpus["host2"].attached
            await refused(two.publish(volume, "host1", second), grpc.StatusCode.ALREADY_EXISTS)
            await two.unpublish(volume, "host1")
            await two.publish(volume, "host2", second)
            assert await hosts(two, volume) == {DPU2}
        await two.unpublish(volume, "")
        await two.delete(volume)


async def test_a_new_controller_knows_from_kubernetes_who_writes(two: Plant) -> None:
    """What it does not know at all it takes for a lone writer."""
    shared = block_capability(Mode.MULTI_NODE_MULTI_WRITER)
    volume = await two.create(capability=shared)
    context = await two.publish(volume, "host1", shared)
    await two.start_controller(socket=str(two.directory / "second.sock"))
    words = await refused(two.publish(volume, "host2", shared), grpc.StatusCode.FAILED_PRECONDITION)
    assert "not known" in words
    await two.attachment(volume, "host1", context)
    for _ in range(1000):
        with contextlib.suppress(grpc.aio.AioRpcError):
            await two.publish(volume, "host2", shared)
            break
        await asyncio.sleep(0.02)
    assert await hosts(two, volume) == {DPU1, DPU2}


async def test_published_twice_in_two_ways_is_told(one: Plant) -> None:
    volume = await one.create()
    await one.publish(volume, "host1")
    await refused(one.publish(volume, "host1", readonly=True), grpc.StatusCode.ALREADY_EXISTS)
    assert await hosts(one, volume) == {DPU1}


async def test_file_systems_are_never_shared_for_writing(one: Plant) -> None:
    capability = mount_capability(Mode.MULTI_NODE_MULTI_WRITER)
    words = await refused(one.create(capability=capability), grpc.StatusCode.INVALID_ARGUMENT)
    assert "ReadWriteMany" in words


async def test_unpublish_fences_though_the_dpu_is_dead(two: Plant) -> None:
    volume = await two.create()
    await two.publish(volume, "host1")
    await two.dpus["host1"].stop()
    await asyncio.wait_for(two.unpublish(volume, "host1"), 20)
    assert await hosts(two, volume) == set()
    await two.publish(volume, "host2")
    assert await hosts(two, volume) == {DPU2}


async def test_unpublish_fences_though_the_dpu_hangs(two: Plant) -> None:
    volume = await two.create()
    await two.publish(volume, "host1")
    two.dpus["host1"].faults.delay = 300
    await asyncio.wait_for(two.unpublish(volume, "host1"), 20)
    assert await hosts(two, volume) == set()


async def test_unpublish_fails_while_the_target_cannot_be_told(one: Plant) -> None:
    """Without the fence nothing is safe, so success would be a lie."""
    volume = await one.create()
    await one.publish(volume, "host1")
    await one.target.stop()
    try:
        await refused(one.unpublish(volume, "host1"), grpc.StatusCode.UNAVAILABLE)
        assert "Detach" not in one.dpus["host1"].calls
    finally:
        await one.target.start()
    await one.unpublish(volume, "host1")
    assert not one.dpus["host1"].attached


async def test_unpublish_from_everywhere(two: Plant) -> None:
    capability = block_capability(Mode.MULTI_NODE_MULTI_WRITER)
    volume = await two.create(capability=capability)
    for host in ("host1", "host2"):
        await two.publish(volume, host, capability)
    await two.unpublish(volume, "")
    assert await hosts(two, volume) == set()
    assert not any(dpu.attached for dpu in two.dpus.values())


async def test_unpublish_of_the_unknown_succeeds(one: Plant) -> None:
    for volume_id, host in (("spdk:p0.v" + "a" * 20, "host1"), ("other:x", "host1"), ("?", "h")):
        await one.unpublish(csi_pb2.Volume(volume_id=volume_id), host)


async def test_a_dpus_own_node_has_no_volumes(one: Plant) -> None:
    """The target knows a DPU by its node's name; a volume is unpublished from the host."""
    volume = await one.create()
    await one.publish(volume, "host1")
    await one.unpublish(volume, "host1-dpu")
    assert await hosts(one, volume) == {DPU1}


async def test_a_refusing_dpu(one: Plant) -> None:
    """A final refusal leaves no door open; one that may be work in progress keeps it, for the retry."""
    for code, kept in (
        (grpc.StatusCode.RESOURCE_EXHAUSTED, False),
        (grpc.StatusCode.INVALID_ARGUMENT, False),
        (grpc.StatusCode.FAILED_PRECONDITION, False),
        (grpc.StatusCode.ABORTED, True),
        (grpc.StatusCode.UNAVAILABLE, True),
        (grpc.StatusCode.DEADLINE_EXCEEDED, True),
    ):
        volume = await one.create(code.name)
        one.dpus["host1"].faults.refuse = [code]
        await refused(one.publish(volume, "host1"), code)
        assert bool(await hosts(one, volume)) is kept, code
        await one.publish(volume, "host1")
        assert await hosts(one, volume) == {DPU1}


async def test_a_retry_joins_the_running_publish(one: Plant) -> None:
    volume = await one.create()
    gate = one.dpus["host1"].faults.gate = asyncio.Event()
    request = csi_pb2.ControllerPublishVolumeRequest(
        volume_id=volume.volume_id,
        node_id="host1",
        volume_capability=mount_capability(),
        volume_context=volume.volume_context,
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await one.controller.ControllerPublishVolume(request, timeout=1.2)
    assert caught.value.code() in (grpc.StatusCode.ABORTED, grpc.StatusCode.DEADLINE_EXCEEDED)
    delete = csi_pb2.DeleteVolumeRequest(volume_id=volume.volume_id)
    await refused(one.controller.DeleteVolume(delete, timeout=1.2), grpc.StatusCode.ABORTED)
    retries = [asyncio.ensure_future(one.controller.ControllerPublishVolume(request, timeout=30)) for _ in range(5)]
    gate.set()
    answers = await asyncio.gather(*retries)
    assert all(dict(answer.publish_context) == dict(answers[0].publish_context) for answer in answers)
    assert one.dpus["host1"].calls.count("Attach") == 1


async def test_what_comes_right_after_waits_instead_of_being_refused(one: Plant) -> None:
    """A side-car's retry takes a second or more, though the work before is over in milliseconds."""
    volume = await one.create()
    await one.publish(volume, "host1")
    gate = one.dpus["host1"].faults.gate = asyncio.Event()
    unpublish = asyncio.ensure_future(one.unpublish(volume, "host1"))
    while "Detach" not in one.dpus["host1"].calls:
        await asyncio.sleep(0.01)
    others = [asyncio.ensure_future(call) for call in (one.unpublish(volume, ""), one.delete(volume))]
    asyncio.get_running_loop().call_later(0.3, gate.set)
    await asyncio.gather(unpublish, *others)
    listed = await one.controller.ListVolumes(csi_pb2.ListVolumesRequest())
    assert not listed.entries


async def test_list_tells_what_the_dpus_really_have(two: Plant) -> None:
    volume = await two.create()
    await two.publish(volume, "host1")

    async def nodes() -> list[str]:
        listed = await two.controller.ListVolumes(csi_pb2.ListVolumesRequest())
        (entry,) = listed.entries
        got = await two.controller.ControllerGetVolume(csi_pb2.ControllerGetVolumeRequest(volume_id=volume.volume_id))
        assert list(got.status.published_node_ids) == list(entry.status.published_node_ids)
        return list(entry.status.published_node_ids)

    assert await nodes() == ["host1"]
    await two.dpus["host1"].clear()
    assert await nodes() == [], "the DPU has lost it: the side-car must see that"
    await two.dpus["host1"].stop()
    assert await nodes() == ["host1"], "a DPU that is silent is taken to have what its target lets it have"


async def test_a_node_without_dpu(one: Plant) -> None:
    volume = await one.create()
    await refused(one.publish(volume, "nowhere"), grpc.StatusCode.NOT_FOUND)
    words = await refused(one.publish(volume, "host1-dpu"), grpc.StatusCode.UNAVAILABLE)
    assert "csi-node-dpu" in words
