"""Attach, Detach, Get, List, Watch and Inventory against two SPDK stand-ins."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from dpu_offload_stubs.attacher.v1 import attacher_pb2 as pb
from opi_bridge.cards.model import Namespace
from opi_bridge.cards.spdk_vfiouser import SpdkVfioUserCard
from opi_bridge.frontend_names import subsystem_name
from opi_bridge.ledger import encode
from tests.dpu_rig.rig import HOST_NQN, SECOND_MS, DpuRig, Pair, eventually


async def _refused(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    code: grpc.StatusCode = caught.value.code()
    return code


async def test_a_guest_sees_the_volume_and_nothing_is_left_after_detach(rig: DpuRig) -> None:
    volume = await rig.volume("a")
    attached = await rig.stub.Attach(volume.request())
    assert attached.state == pb.ATTACHMENT_STATE_ATTACHED
    assert (attached.nsid, attached.namespace_uuid, attached.subsystem_nqn) == (1, volume.uuid, volume.nqn)
    assert attached.size_bytes == 8 << 20
    assert attached.function.vuid == "TEST0.1"
    async with rig.guest(attached)() as guest:
        await guest.until(lambda g: 1 in g.namespaces)
        assert guest.controller["nqn"] == volume.nqn
        assert guest.namespaces[1]["uuid"] == volume.uuid
        assert guest.namespaces[1]["nguid"] == volume.uuid.replace("-", "")
        await rig.stub.Detach(pb.DetachRequest(volume_id=volume.id))
        await guest.until(lambda g: g.gone.is_set())
        assert not (rig.sockets / "pf0vf1").exists()
        assert guest.namespaces == {}, "the controller went while the host still had its disk"
    assert await rig.leftovers() == {}


async def test_repeating_changes_nothing(rig: DpuRig) -> None:
    volume = await rig.volume("a")
    first = await rig.stub.Attach(volume.request())
    again = await rig.stub.Attach(volume.request())
    assert (again.function, again.nsid, again.state) == (first.function, first.nsid, first.state)
    for _ in range(3):
        await rig.stub.Detach(pb.DetachRequest(volume_id=volume.id))
    assert await rig.leftovers() == {}


async def test_calls_for_one_volume_at_the_same_time_share_the_work(rig: DpuRig) -> None:
    volume = await rig.volume("a")
    answers = await asyncio.gather(*(rig.stub.Attach(volume.request()) for _ in range(5)))
    assert len({answer.function.virtual_function for answer in answers}) == 1


async def test_an_attachment_with_another_specification_is_refused(rig: DpuRig) -> None:
    volume = await rig.volume("a")
    before = await rig.stub.Attach(volume.request())
    assert await _refused(rig.stub.Attach(volume.request(read_only=True))) is grpc.StatusCode.ALREADY_EXISTS
    after = await rig.stub.Get(pb.GetRequest(volume_id=volume.id))
    assert (after.function, after.state) == (before.function, before.state)


async def test_a_request_of_ten_megabytes_is_refused(rig: DpuRig) -> None:
    volume = await rig.volume("a")
    request = volume.request()
    request.volume_id = "x" * (10 << 20)
    assert await _refused(rig.stub.Attach(request)) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await rig.leftovers() == {}


async def test_volumes_go_side_by_side_onto_functions_of_their_own(rig: DpuRig) -> None:
    volumes = [await rig.volume(f"v{number}") for number in range(8)]
    attached = await asyncio.gather(*(rig.stub.Attach(volume.request()) for volume in volumes))
    assert {one.function.virtual_function for one in attached} == set(range(1, 9))
    inventory = await rig.stub.Inventory(pb.InventoryRequest())
    assert (inventory.functions_total, inventory.functions_free, inventory.host_nqn) == (8, 0, HOST_NQN)
    assert [one.virtual_function for one in inventory.functions] == list(range(1, 9))
    counted = await rig.stub.Inventory(pb.InventoryRequest(counts_only=True))
    assert (counted.functions_total, counted.functions_free, list(counted.functions)) == (8, 0, [])
    ninth = await rig.volume("v8")
    assert await _refused(rig.stub.Attach(ninth.request())) is grpc.StatusCode.RESOURCE_EXHAUSTED
    await asyncio.gather(*(rig.stub.Detach(pb.DetachRequest(volume_id=volume.id)) for volume in volumes))
    assert (await rig.stub.Attach(ninth.request())).state == pb.ATTACHMENT_STATE_ATTACHED
    await rig.stub.Detach(pb.DetachRequest(volume_id=ninth.id))
    assert await rig.leftovers() == {}


async def test_a_target_that_does_not_admit_this_dpu_leaves_nothing_behind(rig: DpuRig) -> None:
    volume = await rig.volume("a", admit=False)
    assert await _refused(rig.stub.Attach(volume.request())) is grpc.StatusCode.UNAVAILABLE
    assert await rig.leftovers() == {}
    assert await _refused(rig.stub.Get(pb.GetRequest(volume_id=volume.id))) is grpc.StatusCode.NOT_FOUND


async def test_another_volume_behind_the_nqn_is_not_shown_to_the_host(rig: DpuRig) -> None:
    volume = await rig.volume("a")
    volume.uuid = "00000000-0000-4000-8000-000000000001"
    assert await _refused(rig.stub.Attach(volume.request())) is grpc.StatusCode.FAILED_PRECONDITION
    assert await rig.leftovers() == {}


async def test_watchers_hear_of_the_loss_and_the_return(rig: DpuRig) -> None:
    volume = await rig.volume("a")
    await rig.stub.Attach(volume.request())
    states = []
    watch = rig.stub.Watch(pb.WatchRequest())
    async with asyncio.timeout(40):
        async for event in watch:
            if event.synced:
                await rig.dpu.kill()
            elif event.attachment.volume_id:
                states.append(event.attachment.state)
                if states[-1] == pb.ATTACHMENT_STATE_FAILED and not rig.dpu.running:
                    await rig.dpu.start()
                if pb.ATTACHMENT_STATE_FAILED in states and states[-1] == pb.ATTACHMENT_STATE_ATTACHED:
                    break
    watch.cancel()
    assert states[0] == pb.ATTACHMENT_STATE_ATTACHED


async def test_a_target_that_is_away_for_a_minute_is_no_more_than_a_pause(rig: DpuRig) -> None:
    volume = await rig.file_volume("a")
    before = await rig.stub.Attach(volume.request())

    async def state(wanted: int) -> bool:
        return bool((await rig.stub.Get(pb.GetRequest(volume_id=volume.id))).state == wanted)

    async with rig.guest(before)() as guest:
        await guest.until(lambda g: 1 in g.namespaces)
        await rig.target.kill()
        await eventually(lambda: state(pb.ATTACHMENT_STATE_DEGRADED), "the attachment is degraded")
        shown = await rig.stub.Get(pb.GetRequest(volume_id=volume.id))
        assert "no path works" in shown.reason
        assert not shown.paths[0].connected
        # The DPU's SPDK lives that much faster.
        await asyncio.sleep(60 * SECOND_MS / 1000)
        assert list(guest.namespaces) == [1], "the host keeps its disk"
        await rig.target.start()
        await rig.open_target()
        await rig.serve(volume)
        await eventually(lambda: state(pb.ATTACHMENT_STATE_ATTACHED), "the attachment is whole again")
        assert guest.data(1, len(volume.data)) == volume.data
        assert guest.events == ["controller", "namespace_add"], "the host has noticed nothing"
    after = await rig.stub.Get(pb.GetRequest(volume_id=volume.id))
    assert (after.function, after.namespace_uuid) == (before.function, before.namespace_uuid)


async def test_detach_works_with_a_dead_target(rig: DpuRig) -> None:
    volume = await rig.volume("a")
    await rig.stub.Attach(volume.request())
    await rig.target.kill()
    await rig.stub.Detach(pb.DetachRequest(volume_id=volume.id))
    assert await rig.leftovers() == {}


async def test_what_a_dead_spdk_left_before_the_host_is_unplugged_by_detach(rig: DpuRig) -> None:
    volume = await rig.volume("a")
    attached = await rig.stub.Attach(volume.request())
    place = rig.sockets / f"pf0vf{attached.function.virtual_function}"
    assert place.is_dir()
    await rig.dpu.kill()
    with pytest.raises(grpc.aio.AioRpcError):
        await rig.stub.Detach(pb.DetachRequest(volume_id=volume.id))
    assert place.is_dir()
    await rig.dpu.start()

    async def unplugged() -> bool:
        return not place.exists() and not await rig.leftovers()

    await eventually(unplugged, "the function's directory is gone")


async def test_the_function_stays_plugged_in_over_a_restart_of_spdk(rig: DpuRig) -> None:
    volume = await rig.volume("a")
    attached = await rig.stub.Attach(volume.request())
    place = rig.sockets / f"pf0vf{attached.function.virtual_function}"
    before = place.stat().st_ino
    await rig.restart_dpu()

    async def back() -> bool:
        return bool((await rig.stub.Get(pb.GetRequest(volume_id=volume.id))).state == pb.ATTACHMENT_STATE_ATTACHED)

    await eventually(back, "the attachment is whole")
    assert place.stat().st_ino == before


async def test_growing_reaches_the_host_and_the_attachment(rig: DpuRig, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []

    async def resized(self: SpdkVfioUserCard, nqn: str, namespace: Namespace) -> None:
        told.append(namespace.nsid)

    monkeypatch.setattr(SpdkVfioUserCard, "resized", resized)
    file = rig.directory / "disk.img"
    with file.open("wb") as disk:
        disk.truncate(64 << 20)
    call = rig.at_target.call
    await call("bdev_aio_create", {"name": "aio0", "filename": str(file), "block_size": 4096})
    await call("bdev_lvol_create_lvstore", {"bdev_name": "aio0", "lvs_name": "lvs", "cluster_sz": 1 << 20})
    lvol = await call("bdev_lvol_create", {"lvs_name": "lvs", "lvol_name": "v", "size_in_mib": 8})
    volume = await rig.volume("unused")
    nqn = "nqn.2026-11.io.dpu-offload:volume.main.grows"
    volume.id, volume.nqn, volume.uuid = "main:grows", nqn, lvol
    await call("nvmf_create_subsystem", {"nqn": nqn})
    await call("nvmf_subsystem_add_host", {"nqn": nqn, "host": HOST_NQN})
    await call("nvmf_subsystem_add_ns", {"nqn": nqn, "namespace": {"bdev_name": lvol, "nsid": 1}})
    await rig.listen(volume, volume.ports[0])
    attached = await rig.stub.Attach(volume.request())
    async with rig.guest(attached)() as guest:
        await guest.until(lambda g: 1 in g.namespaces)
        await call("bdev_lvol_resize", {"name": lvol, "size_in_mib": 16})
        await guest.until(lambda g: g.namespaces[1]["size"] == 16 << 20)

    async def grown() -> bool:
        return bool((await rig.stub.Get(pb.GetRequest(volume_id=volume.id))).size_bytes == 16 << 20)

    await eventually(grown, "the attachment shows the new size")

    async def looked() -> bool:
        return told == [1]

    await eventually(looked, "a card that does not tell its host by itself is told to")


async def test_a_restarted_attacher_goes_on_where_the_last_one_was(rig: DpuRig) -> None:
    volume = await rig.volume("a")
    before = await rig.stub.Attach(volume.request())
    assert rig.attacher is not None
    await rig.attacher.aclose()
    await rig.start_attacher()
    after = (await rig.stub.List(pb.ListRequest())).attachments
    assert [(one.volume_id, one.function, one.state) for one in after] == [
        (volume.id, before.function, pb.ATTACHMENT_STATE_ATTACHED)
    ]


ADOPTED: list[dict[str, Any]] = [
    {},
    {"read_only": True},
    {"function_policy": pb.FUNCTION_POLICY_HOTPLUG},
    {"function_policy": pb.FUNCTION_POLICY_SHARED_CONTROLLER},
    {"encryption": pb.Encryption(key="0f" * 16, tweak_key="f0" * 16)},
]


@pytest.mark.parametrize("more", ADOPTED, ids=["plain", "read-only", "hotplug", "shared", "encrypted"])
async def test_an_attachment_without_a_record_is_adopted_with_its_host_untouched(
    tmp_path: Path, pair: Pair, more: dict[str, Any]
) -> None:
    rig = DpuRig(tmp_path, pair, hotplug=1)
    await rig.start()
    try:
        volume = await rig.volume("a")
        before = await rig.stub.Attach(volume.request(**more))
        async with rig.guest(before)() as guest:
            await guest.until(lambda g: before.nsid in g.namespaces)
            assert rig.attacher is not None
            await rig.attacher.aclose()
            rig.records.unlink()
            await rig.start_attacher()

            async def adopted() -> bool:
                shown = (await rig.stub.List(pb.ListRequest())).attachments
                return [(one.volume_id, one.function) for one in shown] == [(volume.id, before.function)]

            await eventually(adopted, "the attachment is known again")
            again = await rig.stub.Attach(volume.request(**more))
            assert (again.function, again.nsid, again.state) == (before.function, before.nsid, before.state)
            assert "namespace_remove" not in guest.events
        await rig.stub.Detach(pb.DetachRequest(volume_id=volume.id))
        assert await rig.leftovers() == {}
    finally:
        await rig.stop()


async def test_a_half_made_leftover_is_removed(rig: DpuRig) -> None:
    assert rig.attacher is not None
    await rig.attacher.aclose()
    nqn = "nqn.2026-11.io.dpu-offload:volume.main.half"
    await rig.at_dpu.call(
        "bdev_null_create",
        {"name": encode(subsystem_name("dpu-main-3ahalf"), {"nqn": nqn}), "num_blocks": 8, "block_size": 512},
    )
    await rig.at_dpu.call("nvmf_create_subsystem", {"nqn": nqn})
    assert rig.bridge is not None
    await rig.bridge.aclose()
    await rig.start_bridge()
    await rig.start_attacher()

    async def clean() -> bool:
        return not await rig.leftovers()

    await eventually(clean, "nothing is left")


async def test_a_remote_subsystem_is_attached_as_one_volume_only(rig: DpuRig) -> None:
    volume = await rig.volume("a")
    await rig.stub.Attach(volume.request())
    other = volume.request()
    other.volume_id = "main:b"
    for policy in (pb.FUNCTION_POLICY_STATIC, pb.FUNCTION_POLICY_SHARED_CONTROLLER):
        other.function_policy = policy
        with pytest.raises(grpc.aio.AioRpcError, match="main:a") as caught:
            await rig.stub.Attach(other)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    listed = (await rig.stub.List(pb.ListRequest())).attachments
    assert [(one.volume_id, one.state) for one in listed] == [(volume.id, pb.ATTACHMENT_STATE_ATTACHED)]


async def test_a_subsystem_of_somebody_else_is_named_as_what_is_in_the_way(rig: DpuRig) -> None:
    volume = await rig.volume("a")
    await rig.at_dpu.call("nvmf_create_subsystem", {"nqn": volume.nqn, "serial_number": "1"})
    with pytest.raises(grpc.aio.AioRpcError, match=volume.nqn):
        await rig.stub.Attach(volume.request())
    assert (await rig.stub.List(pb.ListRequest())).attachments == []
    await rig.at_dpu.call("nvmf_delete_subsystem", {"nqn": volume.nqn})
    assert await rig.leftovers() == {}
