"""Kubernetes is the truth: what a restarted target has lost comes back, and what nobody needs is found and removed."""

import asyncio
import json
from typing import Any

import grpc
import msgspec
import pytest

from csi import identity
from csi.announcement import HOST_NODE_LABEL, STORAGE_ANNOTATION
from csi.calls import Calls
from csi.controller.cluster import Cluster
from csi.controller.config import GarbageConfig
from csi.controller.directory import Directory
from csi.controller.garbage import Garbage
from csi.framework.backend import Finding
from csi.framework.registry import Registry
from dpu_offload_stubs.csi import csi_pb2
from foundation.kube.models.core import CSIPersistentVolumeSource, Node, PersistentVolume, PersistentVolumeSpec
from foundation.kube.models.meta import ObjectMeta
from foundation.kube.models.storage import VolumeAttachment
from foundation.kube.resources import VOLUME_ATTRIBUTES_CLASSES
from foundation.spdk.client import SpdkClient
from tests.csi_rig.plant import MIB, Plant, mount_capability
from tests.csi_rig.target import LVSTORE, section

pytestmark = pytest.mark.root


async def eventually(look: Any, expected: Any) -> None:
    last = None
    for _ in range(800):
        last = await look()
        if last == expected:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{last} never became {expected}")


async def test_a_restarted_target_gets_everything_back_by_itself(one: Plant) -> None:
    await one.kube.create(
        VOLUME_ATTRIBUTES_CLASSES,
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "VolumeAttributesClass",
            "metadata": {"name": "slow"},
            "driverName": identity.DRIVER_NAME,
            "parameters": {"readWriteIops": "4000"},
        },
    )
    volume = await one.create(mutable_parameters={"readWriteIops": "4000"})
    context = await one.publish(volume, "host1")
    await one.attachment(volume, "host1", context, limits="slow")
    await one.target.restart()
    nqn = identity.subsystem_nqn(volume.volume_id)

    async def exported() -> Any:
        async with SpdkClient(one.target.address) as client:
            found = {each["nqn"]: each for each in await client.call("nvmf_get_subsystems")}
            (bdev,) = await client.call("bdev_get_bdevs", {"name": f"{LVSTORE}/{volume.volume_id.split('.')[1]}"})
        if nqn not in found:
            return None
        hosts = [host["nqn"] for host in found[nqn]["hosts"]]
        spaces = [(space["nsid"], space["uuid"]) for space in found[nqn]["namespaces"]]
        return hosts, spaces, len(found[nqn]["listen_addresses"]), bdev["assigned_rate_limits"]["rw_ios_per_sec"]

    uuid = identity.namespace_uuid(volume.volume_id)
    await eventually(exported, ([identity.host_nqn("host1-dpu")], [(1, uuid)], 1, 4000))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def findings(garbage: Garbage) -> set[tuple[str, str]]:
    return {(finding.kind, finding.name) for _, finding in await garbage.round()}


async def test_leftovers_are_reported_then_removed_and_nothing_else_is_touched(one: Plant) -> None:
    """A subsystem without volume, a broken-off creation, a stale host; beside them things of others."""
    kept, lost = await one.create("kept"), await one.create("lost")
    await one.publish(lost, "host1")
    client = SpdkClient(one.target.address)
    other = "nqn.2016-06.io.spdk:someone"
    ghost = identity.subsystem_nqn("spdk:p0.v" + "a" * 20)
    for nqn in (other, ghost):
        await client.call("nvmf_create_subsystem", {"nqn": nqn})
    for name in ("n" + "b" * 20, "theirs"):
        await client.call("bdev_lvol_create", {"lvs_name": LVSTORE, "lvol_name": name, "size_in_mib": 4})
    registry = Registry.open({"spdk": section(one.target)})
    backend = registry.backends["spdk"]
    await backend.start()
    persistent = {
        "pv": PersistentVolume(
            metadata=ObjectMeta(name="pv"),
            spec=PersistentVolumeSpec(
                csi=CSIPersistentVolumeSource(driver=identity.DRIVER_NAME, volume_handle=kept.volume_id)
            ),
        )
    }
    directory = Directory({})
    cluster = Cluster(volumes=persistent, attachments={}, classes={}, directory=directory)
    clock = Clock()
    garbage = Garbage(
        registry=registry,
        cluster=cluster,
        directory=directory,
        calls=Calls(),
        config=GarbageConfig(grace_seconds=100),
        clock=clock,
    )
    host = ("host", identity.host_nqn("host1-dpu"))
    volume = ("volume", lost.volume_id)
    expected = {("subsystem", ghost), ("unfinished", f"p0.n{'b' * 20}"), host, volume}
    try:
        assert await findings(garbage) == expected
        clock.now = 99
        assert await findings(garbage) == expected
        clock.now = 101
        assert await findings(garbage) == {volume}, "a volume is only reported: its claim may be retained"
        left = {each["nqn"] for each in await client.call("nvmf_get_subsystems")}
        assert {other, identity.subsystem_nqn(kept.volume_id)} <= left
        assert ghost not in left
        names = {each["name"] for each in await client.call("bdev_lvol_get_lvols")}
        assert names == {"theirs", *(each.volume_id.split(".")[1] for each in (kept, lost))}
    finally:
        await client.close()
        await backend.close()


async def test_a_host_is_stale_by_what_kubernetes_says_of_it_whatever_its_name(one: Plant) -> None:
    """A DPU's own NQN tells no node; and one whose Node is gone may still be in use."""
    volume = await one.create()
    announced = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-00000000000a"
    in_use, gone = identity.host_nqn("b-dpu"), identity.host_nqn("c-dpu")
    async with SpdkClient(one.target.address) as client:
        for nqn in (announced, in_use, gone, "nqn.2016-06.io.spdk:someone"):
            await client.call("nvmf_subsystem_add_host", {"nqn": identity.subsystem_nqn(volume.volume_id), "host": nqn})
    said = {"endpoint": "a:1", "serverName": "a", "hostNqn": announced}
    node = {"labels": {HOST_NODE_LABEL: "a"}, "annotations": {STORAGE_ANNOTATION: json.dumps(said)}}
    source = {"driver": identity.DRIVER_NAME, "volumeHandle": volume.volume_id}
    attachment = {
        "metadata": {"name": "va"},
        "spec": {"attacher": identity.DRIVER_NAME, "nodeName": "b", "source": {"persistentVolumeName": "pv"}},
        "status": {"attached": True, "attachmentMetadata": {"dpuNode": "b-dpu", "hostNqn": in_use}},
    }
    directory = Directory({"a-dpu": msgspec.convert({"metadata": {"name": "a-dpu", **node}}, Node)})
    cluster = Cluster(
        volumes={"pv": msgspec.convert({"metadata": {"name": "pv"}, "spec": {"csi": source}}, PersistentVolume)},
        attachments={"va": msgspec.convert(attachment, VolumeAttachment)},
        classes={},
        directory=directory,
    )
    registry = Registry.open({"spdk": section(one.target)})
    await registry.backends["spdk"].start()
    garbage = Garbage(
        registry=registry, cluster=cluster, directory=directory, calls=Calls(), config=GarbageConfig(grace_seconds=100)
    )
    try:
        assert await findings(garbage) == {("host", announced), ("host", gone)}
    finally:
        await registry.backends["spdk"].close()
    # Nor does a restarted target forget who has it.
    assert {access.host_nqn for access in cluster.accesses()} == {in_use}


async def test_a_leftover_that_belongs_again_is_not_removed(one: Plant) -> None:
    registry = Registry.open({"spdk": section(one.target)})
    backend = registry.backends["spdk"]
    await backend.start()
    try:
        volume = await one.create()
        finding = Finding(
            kind="subsystem",
            name=identity.subsystem_nqn(volume.volume_id),
            reason="its volume does not exist",
            volume_key=volume.volume_id.partition(":")[2],
        )
        await backend.remove(finding)
        assert not (await backend.health(finding.volume_key)).abnormal
    finally:
        await backend.close()


async def test_expand_reaches_the_file_system(one: Plant) -> None:
    capability = mount_capability(fs_type="xfs")
    volume = await one.create(size=320 * MIB, capability=capability)
    await one.stage(volume, "host1", await one.publish(volume, "host1", capability), capability)
    path = await one.mount(volume, "host1", capability)
    size = csi_pb2.CapacityRange(required_bytes=640 * MIB)
    request = csi_pb2.ControllerExpandVolumeRequest(volume_id=volume.volume_id, capacity_range=size)
    answer = await one.controller.ControllerExpandVolume(request)
    assert (answer.capacity_bytes, answer.node_expansion_required) == (640 * MIB, True)
    grow = csi_pb2.NodeExpandVolumeRequest(volume_id=volume.volume_id, volume_path=path, capacity_range=size)
    assert (await one.nodes["host1"].NodeExpandVolume(grow)).capacity_bytes == 640 * MIB
    stats = csi_pb2.NodeGetVolumeStatsRequest(volume_id=volume.volume_id, volume_path=path)
    usage = (await one.nodes["host1"].NodeGetVolumeStats(stats)).usage
    assert usage[0].total > 400 * MIB


async def test_a_backend_that_is_away_hides_nothing_of_the_others(bare: Plant) -> None:
    """external-snapshotter asks for each snapshot by its id, until it is ready."""
    away = section(bare.target)
    (pool,) = away["pools"].values()  # type: ignore[attr-defined]  # a section is plain data
    pool["address"] = f"unix:{bare.directory}/nobody"
    await bare.start_controller(backends={"spdk": section(bare.target), "away": {**away, "kind": "spdk"}})
    volume = await bare.create()
    request = csi_pb2.CreateSnapshotRequest(name="s", source_volume_id=volume.volume_id)
    snapshot = (await bare.controller.CreateSnapshot(request)).snapshot
    for asked in (
        csi_pb2.ListSnapshotsRequest(snapshot_id=snapshot.snapshot_id),
        csi_pb2.ListSnapshotsRequest(source_volume_id=volume.volume_id),
    ):
        assert [entry.snapshot for entry in (await bare.controller.ListSnapshots(asked)).entries] == [snapshot]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bare.controller.ListSnapshots(csi_pb2.ListSnapshotsRequest())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
