"""csi-node-dpu makes the DPU have what Kubernetes says, whoever was away meanwhile."""

import grpc
import msgspec
import pytest

from csi.announcement import STORAGE_ANNOTATION, announced
from csi.node_dpu.health import CONDITION
from dpu_offload_stubs.attacher.v1 import attacher_pb2 as pb
from foundation.kube.resources import EVENTS, NODES, SECRETS, VOLUME_ATTACHMENTS
from tests.csi_node_dpu.conftest import DPU, SERVER_NAME, NodeDpuRig
from tests.dpu_rig.rig import HOST_NQN, eventually


async def _here(rig: NodeDpuRig, volumes: set[str]) -> None:
    async def there() -> bool:
        attached = await rig.attached()
        return set(attached) == volumes and all(one.state == pb.ATTACHMENT_STATE_ATTACHED for one in attached.values())

    await eventually(there, f"exactly {volumes} are attached")


async def test_the_controllers_calls_are_passed_on_and_the_node_says_where_to_call(rig: NodeDpuRig) -> None:
    await rig.start()

    async def announcement() -> bool:
        said = announced(await rig.kube.get(NODES, DPU))
        return said is not None and said.functions.total == 8

    await eventually(announcement, "the Node carries the annotation")
    node = await rig.kube.get(NODES, DPU)
    said = msgspec.json.decode(node.metadata.annotations[STORAGE_ANNOTATION])
    assert said == {
        "endpoint": f"127.0.0.1:{rig.port}",
        "serverName": SERVER_NAME,
        "hostNqn": HOST_NQN,
        "hostId": said["hostId"],
        "functions": {"total": 8, "free": 8},
        "transports": ["tcp"],
    }
    volume = await rig.dpu.volume("a")
    await rig.persistent_volume(volume, "pv-a")
    await rig.attachment("va-a", "pv-a", attached=False)
    async with rig.dial() as channel:
        attached = await rig.stub(channel).Attach(volume.request())
        assert attached.state == pb.ATTACHMENT_STATE_ATTACHED
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rig.stub(channel).Attach(volume.request(read_only=True))
        assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS

        async def counted() -> bool:
            said = announced(await rig.kube.get(NODES, DPU))
            return said is not None and said.functions.free == 7

        await eventually(counted, "the annotation counts the function taken")
        await rig.stub(channel).Detach(pb.DetachRequest(volume_id=volume.id))
    assert await rig.dpu.leftovers() == {}


async def test_a_lost_target_is_told_to_the_volumes_users_and_on_the_node(rig: NodeDpuRig) -> None:
    volume = await rig.dpu.volume("a")
    await rig.persistent_volume(volume, "pv-a", claim="claim-a")
    await rig.attachment("va-a", "pv-a", attached=True)
    await rig.pod("user", claim="claim-a")
    await rig.pod("stranger", claim="claim-b")
    await rig.start()
    await _here(rig, {volume.id})

    async def said(status: str, reasons: set[str]) -> bool:
        node = await rig.kube.get(NODES, DPU)
        conditions = {one.type: one for one in node.status.conditions or ()}
        events = {
            (one.involved_object.kind, one.involved_object.name, one.reason) for one in await rig.kube.list(EVENTS)
        }
        shown = conditions.get(CONDITION)
        users = (("PersistentVolume", "pv-a"), ("PersistentVolumeClaim", "claim-a"), ("Pod", "user"))
        assert not any(name == "stranger" for _, name, _ in events)
        return (
            shown is not None
            and shown.status == status
            and {(*user, reason) for user in users for reason in reasons} <= events
        )

    await rig.dpu.unlisten(volume, volume.ports[0])
    await eventually(lambda: said("True", {"VolumeDegraded"}), "the loss is told")
    await rig.dpu.listen(volume, volume.ports[0])
    await eventually(lambda: said("False", {"VolumeDegraded", "VolumeRecovered"}), "the recovery is told")


async def test_only_csi_controller_may_call(rig: NodeDpuRig) -> None:
    await rig.start()
    async with rig.dial("cni-node") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rig.stub(channel).List(pb.ListRequest())
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_an_attachment_in_kubernetes_is_made_after_everything_here_was_lost(rig: NodeDpuRig) -> None:
    volume = await rig.dpu.volume("a")
    await rig.persistent_volume(volume, "pv-a")
    await rig.attachment("va-a", "pv-a", attached=True)
    await rig.start()
    await _here(rig, {volume.id})


async def test_what_kubernetes_does_not_know_is_detached_after_its_grace(rig: NodeDpuRig) -> None:
    kept, orphan, others = [await rig.dpu.volume(key) for key in ("kept", "orphan", "others")]
    for volume in (kept, orphan):
        await rig.dpu.stub.Attach(volume.request())
    await rig.persistent_volume(kept, "pv-kept")
    await rig.attachment("va-kept", "pv-kept", attached=True)
    await rig.persistent_volume(others, "pv-others")
    await rig.attachment("va-others", "pv-others", attached=True, dpu="dpu-2")
    await rig.start()
    await _here(rig, {kept.id})


async def test_it_lets_go_when_the_attachment_is_deleted_while_nobody_called(rig: NodeDpuRig) -> None:
    volume = await rig.dpu.volume("a")
    await rig.persistent_volume(volume, "pv-a")
    await rig.attachment("va-a", "pv-a", attached=True)
    await rig.start()
    await _here(rig, {volume.id})
    await rig.kube.delete(VOLUME_ATTACHMENTS, "va-a")
    await _here(rig, set())
    assert await rig.dpu.leftovers() == {}


async def test_after_everything_was_lost_the_host_finds_its_disk_where_it_was_told(rig: NodeDpuRig) -> None:
    first, volume = await rig.dpu.volume("first"), await rig.dpu.volume("a")
    for number, one in enumerate((first, volume)):
        attached = await rig.dpu.stub.Attach(one.request())
        await rig.persistent_volume(one, f"pv-{number}")
        await rig.attachment(f"va-{number}", f"pv-{number}", attached=True, told=attached)
    await rig.start()
    await _here(rig, {first.id, volume.id})
    # The lower function becomes free, and everything that knew of the other one is lost.
    await rig.kube.delete(VOLUME_ATTACHMENTS, "va-0")
    await _here(rig, {volume.id})
    assert rig.dpu.attacher is not None
    await rig.dpu.attacher.aclose()
    await rig.dpu.dpu.kill()
    rig.dpu.records.unlink()
    await rig.dpu.dpu.start()
    await rig.dpu.start_attacher()
    await _here(rig, {volume.id})
    assert (await rig.attached())[volume.id].function == attached.function


async def test_an_encrypted_volume_comes_back_after_the_whole_dpu_was_lost(rig: NodeDpuRig) -> None:
    """Its record is on the DPU's disk, its keys are not: they lie in Kubernetes."""
    keys = {"encryptionKey": "0" * 31 + "1", "encryptionTweakKey": "0" * 31 + "2"}
    secret = {"metadata": {"name": "keys", "namespace": "default"}, "stringData": keys}
    await rig.kube.create(SECRETS, {"apiVersion": "v1", "kind": "Secret", **secret})
    volume = await rig.dpu.volume("a")
    await rig.persistent_volume(volume, "pv-a", secret="keys", encryption="true")
    await rig.attachment("va-a", "pv-a", attached=True)
    await rig.start()
    await _here(rig, {volume.id})
    assert rig.dpu.attacher is not None
    await rig.stop()
    await rig.dpu.attacher.aclose()
    await rig.dpu.restart_dpu()
    await rig.dpu.start_attacher()
    await rig.start()
    await _here(rig, {volume.id})


async def test_a_told_function_that_is_another_volumes_by_now_is_reported(rig: NodeDpuRig) -> None:
    volume, other = await rig.dpu.volume("a"), await rig.dpu.volume("other")
    attached = await rig.dpu.stub.Attach(volume.request())
    await rig.dpu.stub.Detach(pb.DetachRequest(volume_id=volume.id))
    usurper = await rig.dpu.stub.Attach(other.request())
    assert usurper.function == attached.function
    await rig.persistent_volume(other, "pv-other")
    await rig.attachment("va-other", "pv-other", attached=True, told=usurper)
    await rig.persistent_volume(volume, "pv-a")
    await rig.attachment("va-a", "pv-a", attached=True, told=attached)
    await rig.start()

    async def told() -> bool:
        return any(one.reason == "AttachFailed" and "taken by" in one.message for one in await rig.kube.list(EVENTS))

    await eventually(told, "the volume's users are told")
    assert set(await rig.attached()) == {other.id}


async def test_it_follows_an_attacher_and_an_spdk_that_come_back(rig: NodeDpuRig) -> None:
    volume = await rig.dpu.volume("a")
    await rig.persistent_volume(volume, "pv-a")
    await rig.attachment("va-a", "pv-a", attached=True)
    await rig.start()
    await _here(rig, {volume.id})
    assert rig.dpu.attacher is not None
    await rig.dpu.attacher.aclose()
    await rig.dpu.dpu.kill()
    rig.dpu.records.unlink()
    await rig.dpu.dpu.start()
    await rig.dpu.start_attacher()
    await _here(rig, {volume.id})
