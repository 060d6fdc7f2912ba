"""Bad input to every RPC of the controller: the code that the specification asks for, before anything has changed."""

import asyncio
import base64
import binascii
from typing import Any

import grpc
import pytest

from dpu_offload_stubs.csi import csi_pb2
from foundation.spdk.client import SpdkClient
from tests.csi_rig.plant import MIB, Mode, Plant, block_capability, mount_capability

pytestmark = pytest.mark.root

INVALID = grpc.StatusCode.INVALID_ARGUMENT
MISSING = grpc.StatusCode.NOT_FOUND
RANGE = grpc.StatusCode.OUT_OF_RANGE
EXISTS = grpc.StatusCode.ALREADY_EXISTS
VOLUME = "spdk:p0.v" + "a" * 20
SNAPSHOT = "spdk:p0.s" + "a" * 20 + ".00000001.v" + "a" * 20


def create(**fields: Any) -> csi_pb2.CreateVolumeRequest:
    given: dict[str, Any] = {
        "name": "pvc",
        "volume_capabilities": [mount_capability()],
        "capacity_range": csi_pb2.CapacityRange(required_bytes=16 * MIB),
    }
    given.update(fields)
    return csi_pb2.CreateVolumeRequest(**given)


def size(required: int, limit: int = 0) -> csi_pb2.CapacityRange:
    return csi_pb2.CapacityRange(required_bytes=required, limit_bytes=limit)


def source(**fields: str) -> csi_pb2.VolumeContentSource:
    if "snapshot" in fields:
        return csi_pb2.VolumeContentSource(
            snapshot=csi_pb2.VolumeContentSource.SnapshotSource(snapshot_id=fields["snapshot"])
        )
    return csi_pb2.VolumeContentSource(volume=csi_pb2.VolumeContentSource.VolumeSource(volume_id=fields["volume"]))


def publish(**fields: Any) -> csi_pb2.ControllerPublishVolumeRequest:
    given: dict[str, Any] = {"volume_id": VOLUME, "node_id": "host1", "volume_capability": mount_capability()}
    given.update(fields)
    return csi_pb2.ControllerPublishVolumeRequest(**given)


CREATE = [
    ("no name", create(name=""), INVALID, "name"),
    ("endless name", create(name="n" * 4097), INVALID, "4096"),
    ("no capabilities", create(volume_capabilities=[]), INVALID, "volume_capabilities"),
    ("empty capability", create(volume_capabilities=[csi_pb2.VolumeCapability()]), INVALID, "access_type"),
    ("no access mode", create(volume_capabilities=[mount_capability(Mode.UNKNOWN)]), INVALID, "access_mode"),
    (
        "shared file system",
        create(volume_capabilities=[mount_capability(Mode.MULTI_NODE_MULTI_WRITER)]),
        INVALID,
        "Many",
    ),
    (
        "one writer many readers",
        create(volume_capabilities=[block_capability(Mode.MULTI_NODE_SINGLE_WRITER)]),
        INVALID,
        "MULTI_NODE_SINGLE_WRITER",
    ),
    ("unknown mode", create(volume_capabilities=[block_capability(99)]), INVALID, "99"),  # type: ignore[arg-type]
    ("ntfs", create(volume_capabilities=[mount_capability(fs_type="ntfs")]), INVALID, "ntfs"),
    ("odd flag", create(volume_capabilities=[mount_capability(flags=["a\nb"])]), INVALID, "mount_flags"),
    ("good and bad", create(volume_capabilities=[mount_capability(), mount_capability(fs_type="fat")]), INVALID, "fat"),
    ("unknown parameter", create(parameters={"pol": "x"}), INVALID, "'pool'"),
    ("bad value", create(parameters={"provisioning": "fat"}), INVALID, "provisioning"),
    ("unknown backend", create(parameters={"backend": "emc"}), INVALID, "spdk"),
    ("unknown pool", create(parameters={"pool": "gold"}), INVALID, "p0"),
    ("no place for keys", create(parameters={"authentication": "true"}), INVALID, "authentication"),
    ("no place for psk", create(parameters={"encryptionInTransit": "true"}), INVALID, "encryptionInTransit"),
    ("no DPU to encrypt", create(parameters={"transport": "kernel", "encryption": "true"}), INVALID, "encryption"),
    ("unknown limit", create(mutable_parameters={"iops": "1"}), INVALID, "iops"),
    ("odd limit", create(mutable_parameters={"readWriteIops": "1500"}), INVALID, "thousand"),
    ("unserved limit", create(mutable_parameters={"readIops": "1000"}), INVALID, "readWriteIops"),
    ("negative limit", create(mutable_parameters={"readWriteIops": "-1000"}), INVALID, "readWriteIops"),
    ("negative size", create(capacity_range=size(-1)), INVALID, "negative"),
    ("required over limit", create(capacity_range=size(2, 1)), INVALID, "limit_bytes"),
    ("unaligned exact size", create(capacity_range=size(MIB + 1, MIB + 1)), RANGE, "multiples"),
    ("limit too small", create(capacity_range=size(0, 1000)), RANGE, "multiples"),
    ("too large", create(capacity_range=size(1 << 50)), RANGE, "larger"),
    ("the largest number", create(capacity_range=size((1 << 63) - 1)), RANGE, ""),
    ("source without id", create(volume_content_source=source(snapshot="")), INVALID, "id is missing"),
    ("empty source", create(volume_content_source=csi_pb2.VolumeContentSource()), INVALID, "snapshot or volume"),
    ("source of another driver", create(volume_content_source=source(snapshot="snap-1")), MISSING, "snap-1"),
    ("source of another backend", create(volume_content_source=source(volume="emc:x")), INVALID, "emc"),
    ("missing snapshot", create(volume_content_source=source(snapshot=SNAPSHOT)), MISSING, ""),
    ("missing volume", create(volume_content_source=source(volume=VOLUME)), MISSING, ""),
    ("snapshot as volume", create(volume_content_source=source(volume=SNAPSHOT)), MISSING, ""),
]
OTHERS = [
    ("DeleteVolume", csi_pb2.DeleteVolumeRequest(), INVALID),
    ("ControllerPublishVolume", publish(volume_id=""), INVALID),
    ("ControllerPublishVolume", publish(node_id=""), INVALID),
    ("ControllerPublishVolume", csi_pb2.ControllerPublishVolumeRequest(volume_id=VOLUME, node_id="host1"), INVALID),
    ("ControllerPublishVolume", publish(volume_id="x"), MISSING),
    ("ControllerPublishVolume", publish(), MISSING),
    ("ControllerPublishVolume", publish(volume_context={"encryption": "maybe"}), INVALID),
    # Of a PersistentVolume that somebody has written by hand.
    ("ControllerPublishVolume", publish(volume_context={"transport": "kernl"}), INVALID),
    ("ControllerPublishVolume", publish(volume_context={"functionPolicy": "Shared"}), INVALID),
    ("ControllerPublishVolume", publish(volume_context={"transport": "kernel", "encryption": "true"}), INVALID),
    ("ControllerUnpublishVolume", csi_pb2.ControllerUnpublishVolumeRequest(), INVALID),
    ("ValidateVolumeCapabilities", csi_pb2.ValidateVolumeCapabilitiesRequest(), INVALID),
    ("ValidateVolumeCapabilities", csi_pb2.ValidateVolumeCapabilitiesRequest(volume_id=VOLUME), INVALID),
    ("ListVolumes", csi_pb2.ListVolumesRequest(starting_token="x"), grpc.StatusCode.ABORTED),
    ("ListVolumes", csi_pb2.ListVolumesRequest(max_entries=-1), INVALID),
    ("GetCapacity", csi_pb2.GetCapacityRequest(parameters={"pol": "x"}), INVALID),
    ("GetCapacity", csi_pb2.GetCapacityRequest(parameters={"backend": "x"}), INVALID),
    ("CreateSnapshot", csi_pb2.CreateSnapshotRequest(source_volume_id=VOLUME), INVALID),
    ("CreateSnapshot", csi_pb2.CreateSnapshotRequest(name="s"), INVALID),
    ("CreateSnapshot", csi_pb2.CreateSnapshotRequest(name="s", source_volume_id=VOLUME), MISSING),
    (
        "CreateSnapshot",
        csi_pb2.CreateSnapshotRequest(name="s", source_volume_id=VOLUME, parameters={"a": "b"}),
        INVALID,
    ),
    ("DeleteSnapshot", csi_pb2.DeleteSnapshotRequest(), INVALID),
    ("ListSnapshots", csi_pb2.ListSnapshotsRequest(starting_token="x"), grpc.StatusCode.ABORTED),
    ("GetSnapshot", csi_pb2.GetSnapshotRequest(), INVALID),
    ("GetSnapshot", csi_pb2.GetSnapshotRequest(snapshot_id=SNAPSHOT), MISSING),
    ("ControllerExpandVolume", csi_pb2.ControllerExpandVolumeRequest(), INVALID),
    ("ControllerExpandVolume", csi_pb2.ControllerExpandVolumeRequest(volume_id=VOLUME), INVALID),
    (
        "ControllerExpandVolume",
        csi_pb2.ControllerExpandVolumeRequest(volume_id=VOLUME, capacity_range=size(0)),
        INVALID,
    ),
    (
        "ControllerExpandVolume",
        csi_pb2.ControllerExpandVolumeRequest(volume_id=VOLUME, capacity_range=size(-1)),
        INVALID,
    ),
    (
        "ControllerExpandVolume",
        csi_pb2.ControllerExpandVolumeRequest(volume_id=VOLUME, capacity_range=size(1)),
        MISSING,
    ),
    ("ControllerGetVolume", csi_pb2.ControllerGetVolumeRequest(), INVALID),
    ("ControllerGetVolume", csi_pb2.ControllerGetVolumeRequest(volume_id=VOLUME), MISSING),
    ("ControllerModifyVolume", csi_pb2.ControllerModifyVolumeRequest(), INVALID),
    ("ControllerModifyVolume", csi_pb2.ControllerModifyVolumeRequest(volume_id=VOLUME), MISSING),
]


async def unchanged(plant: Plant) -> bool:
    async with SpdkClient(plant.target.address) as client:
        lvols, subsystems = await client.call("bdev_lvol_get_lvols"), await client.call("nvmf_get_subsystems")
    return not lvols and len(subsystems) <= 1 and not plant.dpus["host1"].attached


async def refused(call: Any, code: grpc.StatusCode) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is code, caught.value.details()
    assert caught.value.details()
    return str(caught.value.details())


async def test_create(one: Plant) -> None:
    for what, request, code, words in CREATE:
        assert words in await refused(one.controller.CreateVolume(request), code), what
        assert await unchanged(one), what


async def test_all_others(one: Plant) -> None:
    for method, request, code in OTHERS:
        await refused(getattr(one.controller, method)(request), code)
        assert await unchanged(one), (method, request)
    group = csi_pb2.CreateVolumeGroupSnapshotRequest
    for request, code in (
        (group(source_volume_ids=[VOLUME]), INVALID),
        (group(name="g"), INVALID),
        (group(name="g", source_volume_ids=[VOLUME]), MISSING),
        (group(name="g", source_volume_ids=["x"]), MISSING),
    ):
        await refused(one.groups.CreateVolumeGroupSnapshot(request), code)
    await refused(one.groups.GetVolumeGroupSnapshot(csi_pb2.GetVolumeGroupSnapshotRequest()), INVALID)
    await refused(one.groups.DeleteVolumeGroupSnapshot(csi_pb2.DeleteVolumeGroupSnapshotRequest()), INVALID)
    assert await unchanged(one)


async def test_a_group_is_named_in_whole_or_not_at_all(one: Plant) -> None:
    """The specification's way for both sides to notice that they drifted apart."""
    volumes = [(await one.create(name)).volume_id for name in ("a", "b")]
    request = csi_pb2.CreateVolumeGroupSnapshotRequest(name="g", source_volume_ids=volumes)
    group = (await one.groups.CreateVolumeGroupSnapshot(request)).group_snapshot
    members, key = [each.snapshot_id for each in group.snapshots], group.group_snapshot_id
    get, delete = csi_pb2.GetVolumeGroupSnapshotRequest, csi_pb2.DeleteVolumeGroupSnapshotRequest
    for wrong in (members[:1], [*members, SNAPSHOT], [SNAPSHOT]):
        call = one.groups.GetVolumeGroupSnapshot(get(group_snapshot_id=key, snapshot_ids=wrong))
        await refused(call, grpc.StatusCode.FAILED_PRECONDITION)
        call = one.groups.DeleteVolumeGroupSnapshot(delete(group_snapshot_id=key, snapshot_ids=wrong))
        await refused(call, grpc.StatusCode.FAILED_PRECONDITION)
    for right in ([], members):
        answer = await one.groups.GetVolumeGroupSnapshot(get(group_snapshot_id=key, snapshot_ids=right))
        assert answer.group_snapshot == group
    for _ in range(2):
        await one.groups.DeleteVolumeGroupSnapshot(delete(group_snapshot_id=key, snapshot_ids=members))


async def test_a_machines_function_is_not_published_to_read(one: Plant) -> None:
    volume = await one.create(capability=block_capability(), parameters={"dpu-offload.io/passthrough": "true"})
    words = await refused(one.publish(volume, "host1", block_capability(), readonly=True), INVALID)
    assert "kept from writing" in words


async def test_names_of_any_kind(one: Plant) -> None:
    for name in ("n" * 128, "n" * 129, "том-1", "a/b c\n", "卷" * 60, "."):
        volume = await one.create(name)
        assert (await one.create(name)).volume_id == volume.volume_id
        assert len(volume.volume_id) <= 128
        await one.delete(volume)


async def test_another_volume_under_an_existing_name(one: Plant) -> None:
    volume = await one.create()
    changes: list[dict[str, Any]] = [
        {"size": 128 * MIB},
        {"parameters": {"provisioning": "thick"}},
        {"volume_content_source": source(volume=VOLUME)},
        {"parameters": {"encryption": "true"}},
        {"parameters": {"transport": "kernel"}},
        {"parameters": {"functionPolicy": "hotplug"}},
    ]
    for changed in changes:
        await refused(one.create(**changed), EXISTS)
        assert (await one.create()).volume_id == volume.volume_id
    await one.delete(volume)
    again = await one.create(parameters={"encryption": "true"})
    assert again.volume_id == volume.volume_id, "the name is free again"
    await refused(one.create(), EXISTS)


async def test_a_new_controller_compares_with_the_persistent_volume(one: Plant) -> None:
    volume = await one.create(parameters={"functionPolicy": "hotplug"})
    await one.attachment(volume, "host1", {}, name="pvc-1")
    await one.start_controller(socket=str(one.directory / "second.sock"))
    words = ""
    for _ in range(500):
        try:
            await one.create()
        except grpc.aio.AioRpcError as error:
            words = f"{error.code()} {error.details()}"
            break
        await asyncio.sleep(0.02)
    assert "ALREADY_EXISTS" in words
    assert "functionPolicy=hotplug" in words


def interchange(prefix: str, key: bytes) -> str:
    checked = key + binascii.crc32(key).to_bytes(4, "little")
    return f"{prefix}{base64.b64encode(checked).decode()}:"


KEY = interchange("DHHC-1:00:", b"k" * 32)
PSK = interchange("NVMeTLSkey-1:01:", b"p" * 32)
HEX = ("00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100")


SECRETS: list[tuple[dict[str, str], dict[str, str], str]] = [
    ({"authentication": "true"}, {}, "dhchapKey is missing"),
    ({"authentication": "true"}, {"dhchapKey": "secret!"}, "interchange format"),
    ({"authentication": "true"}, {"dhchapKey": KEY[:-6] + "AAAA=:"}, "dhchapKey"),
    ({"authentication": "true"}, {"dhchapKey": KEY, "dhchapCtrlrKey": "x"}, "dhchapCtrlrKey"),
    ({"encryptionInTransit": "true"}, {"dhchapKey": KEY}, "tlsPsk is missing"),
    ({"encryptionInTransit": "true"}, {"tlsPsk": KEY}, "tlsPsk"),
    ({"encryption": "true"}, {"encryptionKey": HEX[0]}, "encryptionTweakKey is missing"),
    ({"encryption": "true"}, {"encryptionKey": "12", "encryptionTweakKey": HEX[1]}, "hex digits"),
    ({"encryption": "true"}, {"encryptionKey": HEX[0], "encryptionTweakKey": HEX[0]}, "differ"),
    ({"encryption": "true"}, {"encryptionKey": HEX[0], "encryptionTweakKey": HEX[1] * 2}, "one length"),
]


async def test_secrets(one: Plant) -> None:
    volume = await one.create()
    for context, secrets, words in SECRETS:
        request = publish(volume_id=volume.volume_id, volume_context=context, secrets=secrets)
        text = await refused(one.controller.ControllerPublishVolume(request), INVALID)
        assert words in text
        assert not any(value in text for value in secrets.values() if len(value) > 2)
        assert not one.dpus["host1"].attached


async def test_validate_says_why_not(one: Plant) -> None:
    volume = await one.create()
    request = csi_pb2.ValidateVolumeCapabilitiesRequest(
        volume_id=volume.volume_id, volume_capabilities=[mount_capability(Mode.MULTI_NODE_MULTI_WRITER)]
    )
    answer = await one.controller.ValidateVolumeCapabilities(request)
    assert not answer.HasField("confirmed")
    assert "ReadWriteMany" in answer.message
