"""What kills a real SPDK or the data on it must be impossible through the backend (SPDK 26.05's own behaviour)."""

import os
from pathlib import Path
from typing import Any

import pytest

from csi import identity
from csi.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from csi.framework import naming as names
from csi.framework.backend import HostKeys, Qos, SizeRange, Source, Volume, VolumeSpec
from csi.framework.backends.spdk import SpdkBackend
from csi.framework.backends.spdk.config import SpdkParameters
from csi.framework.backends.spdk.pool import Pool
from foundation.spdk.client import SpdkClient
from tests.csi_rig.target import LVSTORE, Target

MIB = 1 << 20
HOST = identity.host_nqn("one")


def spec(name: str, *, size: int = 16 * MIB, source: Source | None = None) -> VolumeSpec[SpdkParameters]:
    return VolumeSpec(token=identity.hashed(name), size=SizeRange(size), parameters=SpdkParameters(), source=source)


def lvol(volume: Volume) -> str:
    return f"{LVSTORE}/{names.volume_place(volume.key).lvol}"


def nqn(volume: Volume) -> str:
    return identity.subsystem_nqn(identity.VolumeId("spdk", volume.key))


async def bdev(raw: SpdkClient, name: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = await raw.call("bdev_get_bdevs", {"name": name})
    return found[0]


async def test_the_base_of_an_external_clone_is_not_deleted(
    backend: SpdkBackend, raw: SpdkClient, tmp_path: Path
) -> None:
    """Deleting it hangs the call, and deleting the clone then crashes the target."""
    volume = await backend.create(spec("a"))
    snapshot = await backend.snapshot(identity.hashed("s"), volume.key)
    base = await bdev(raw, f"{LVSTORE}/{names.snapshot_place(snapshot.key).lvol}")
    (tmp_path / "other").touch()
    os.truncate(tmp_path / "other", 256 * MIB)
    await raw.call("bdev_aio_create", {"name": "aio1", "filename": str(tmp_path / "other"), "block_size": 4096})
    await raw.call("bdev_lvol_create_lvstore", {"bdev_name": "aio1", "lvs_name": "others", "cluster_sz": MIB})
    await raw.call("bdev_lvol_clone_bdev", {"bdev": base["uuid"], "lvs_name": "others", "clone_name": "theirs"})
    with pytest.raises(FailedPrecondition, match=r"claimed|external"):
        await backend.delete_snapshot(snapshot.key)
    assert list(await backend.snapshots()) == [snapshot]
    await raw.call("bdev_lvol_delete", {"name": "others/theirs"})
    await raw.call("bdev_lvol_delete_lvstore", {"lvs_name": "others"})
    await raw.call("bdev_aio_delete", {"name": "aio1"})
    await backend.delete_snapshot(snapshot.key)
    assert await backend.snapshots() == []


async def test_a_volume_that_another_subsystem_offers_is_not_deleted(backend: SpdkBackend, raw: SpdkClient) -> None:
    volume = await backend.create(spec("a"))
    await raw.call("nvmf_delete_subsystem", {"nqn": nqn(volume)})
    other = "nqn.2016-06.io.spdk:theirs"
    await raw.call("nvmf_create_subsystem", {"nqn": other})
    await raw.call("nvmf_subsystem_add_ns", {"nqn": other, "namespace": {"bdev_name": lvol(volume)}})
    with pytest.raises(FailedPrecondition, match="claimed"):
        await backend.delete(volume.key)
    assert (await backend.get(volume.key)).size == volume.size


async def test_no_smaller_size_is_ever_sent(backend: SpdkBackend, raw: SpdkClient) -> None:
    """A resize to less is refused for an exported volume, yet has cut the data off."""
    volume = await backend.create(spec("a", size=64 * MIB))
    for size in (SizeRange(1), SizeRange(32 * MIB), SizeRange(64 * MIB), SizeRange(0, 128 * MIB)):
        assert (await backend.expand(volume.key, size)).size == 64 * MIB
    found = await bdev(raw, lvol(volume))
    assert found["num_blocks"] * found["block_size"] == 64 * MIB


async def test_limits_reach_a_volume_that_had_lost_its_export(backend: SpdkBackend, raw: SpdkClient) -> None:
    """On a device nobody has opened the second setting fails for ever."""
    volume = await backend.create(spec("a"))
    await raw.call("nvmf_delete_subsystem", {"nqn": nqn(volume)})
    for limit in (2000, 3000, 0, 4000):
        await backend.set_qos(volume.key, Qos(read_write_iops=limit))
        assert (await bdev(raw, lvol(volume)))["assigned_rate_limits"]["rw_ios_per_sec"] == limit
    for wrong in (Qos(read_iops=1000), Qos(read_write_iops=1001)):
        with pytest.raises(InvalidArgument):
            await backend.set_qos(volume.key, wrong)


async def test_nobody_gets_in_by_allow_any_host(backend: SpdkBackend, raw: SpdkClient) -> None:
    volume = await backend.create(spec("a"))
    await raw.call("nvmf_subsystem_allow_any_host", {"nqn": nqn(volume), "allow_any_host": True})
    await backend.grant(volume.key, HOST, keys=HostKeys(), shared=False)
    (found,) = await raw.call("nvmf_get_subsystems", {"nqn": nqn(volume)})
    assert found["allow_any_host"] is False


async def test_both_identifiers_are_given_to_spdk(backend: SpdkBackend, raw: SpdkClient) -> None:
    """An initiator takes the NGUID, a kernel the UUID: they are one."""
    volume = await backend.create(spec("a"))
    (found,) = await raw.call("nvmf_get_subsystems", {"nqn": nqn(volume)})
    (space,) = found["namespaces"]
    uuid = identity.namespace_uuid(identity.VolumeId("spdk", volume.key))
    assert (space["nsid"], space["uuid"], space["nguid"]) == (1, uuid, uuid.replace("-", "").upper())
    assert found["max_namespaces"] == 1


async def test_what_others_made_is_invisible(backend: SpdkBackend, raw: SpdkClient) -> None:
    for name in ("lvol0", "v1", "pvc-1"):
        await raw.call("bdev_lvol_create", {"lvs_name": LVSTORE, "lvol_name": name, "size_in_mib": 4})
    assert await backend.volumes() == []
    assert await backend.garbage() == []
    with pytest.raises(NotFound):
        await backend.get("p0.v1")
    await backend.delete("p0.lvol0")
    assert len(await raw.call("bdev_lvol_get_lvols")) == 3


async def test_a_target_that_is_away_is_unavailable_everywhere(backend: SpdkBackend, target: Target) -> None:
    volume = await backend.create(spec("a"))
    await target.stop()
    try:
        for work in (
            backend.create(spec("b")),
            backend.get(volume.key),
            backend.volumes(),
            backend.delete(volume.key),
            backend.grant(volume.key, HOST, keys=HostKeys(), shared=False),
            backend.revoke(volume.key, HOST),
            backend.expand(volume.key, SizeRange(32 * MIB)),
            backend.set_qos(volume.key, Qos()),
            backend.snapshot(identity.hashed("s"), volume.key),
            backend.snapshots(),
            backend.capacity(None, None),
            backend.health(volume.key),
            backend.converge({}, {}),
            backend.garbage(),
        ):
            with pytest.raises(Unavailable):
                await work
    finally:
        await target.start()
    assert (await backend.get(volume.key)).size == volume.size


async def test_a_broken_off_restore_begins_anew(backend: SpdkBackend, raw: SpdkClient) -> None:
    """Killed between clone and rename: the half-made volume is not taken for the whole one."""
    volume = await backend.create(spec("a"))
    snapshot = await backend.snapshot(identity.hashed("s"), volume.key)
    half = names.unfinished(identity.hashed("b"))
    await raw.call("bdev_lvol_create", {"lvs_name": LVSTORE, "lvol_name": half, "size_in_mib": 4})
    (found,) = [each for each in await backend.garbage() if each.kind == "unfinished"]
    assert found.name == f"p0.{half}"
    source = Source("snapshot", snapshot.key)
    restored = await backend.create(spec("b", size=32 * MIB, source=source))
    assert restored.size == 32 * MIB
    assert await backend.garbage() == []


async def test_a_group_is_taken_while_nobody_can_write(backend: SpdkBackend, raw: SpdkClient) -> None:
    """SPDK takes one snapshot after the other: in between, nobody who is let in may have a connection."""
    made = [await backend.create(spec(name)) for name in ("a", "b", "c")]
    for volume in made[:2]:
        await backend.grant(volume.key, HOST, keys=HostKeys(), shared=False)
    seen: list[dict[str, int]] = []
    snapshot = Pool.snapshot

    async def watched(self: Pool, source: str, name: str) -> None:
        found = {each["nqn"]: len(each["listen_addresses"]) for each in await raw.call("nvmf_get_subsystems")}
        seen.append({volume.key: found[nqn(volume)] for volume in made})
        await snapshot(self, source, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pool, "snapshot", watched)
        taken = await backend.snapshot_group(identity.hashed("g"), [volume.key for volume in made])
    assert seen == [{made[0].key: 0, made[1].key: 0, made[2].key: 1}] * 3, "the third nobody can write to anyway"
    assert len(taken) == 3
    after = [await backend.get(volume.key) for volume in made]
    assert [(volume.exported, volume.hosts) for volume in after] == [(True, (HOST,)), (True, (HOST,)), (True, ())]


async def test_half_a_group_is_nobodys(backend: SpdkBackend, raw: SpdkClient) -> None:
    """Killed in between: what was taken is of another instant than what a retry takes."""
    keys = [(await backend.create(spec(name))).key for name in ("a", "b")]
    token = identity.hashed("g")
    old = names.SnapshotName(
        token=token, created=1, source=names.volume_place(keys[0]).lvol, members=names.members(keys)
    )
    source = f"{LVSTORE}/{old.source}"
    await raw.call("bdev_lvol_snapshot", {"lvol_name": source, "snapshot_name": str(old)})
    assert await backend.snapshots() == []
    (finding,) = await backend.garbage()
    assert (finding.kind, finding.name) == ("unfinished", f"p0.{old}")
    taken = await backend.snapshot_group(token, keys)
    assert len(taken) == 2
    assert old.created not in {each.created for each in taken}
    assert await backend.garbage() == []
    await backend.remove(finding)
    assert list(await backend.snapshots()) == sorted(taken, key=lambda each: each.key)
    await raw.call("bdev_lvol_delete", {"name": f"{LVSTORE}/{names.snapshot_place(taken[0].key).lvol}"})
    (finding,) = await backend.garbage()
    await backend.remove(finding)
    assert await backend.garbage() == []
    assert [each["name"] for each in await raw.call("bdev_lvol_get_lvols")] == [
        names.volume_place(key).lvol for key in keys
    ]


async def test_what_a_returning_target_does_not_show_yet_is_not_taken_for_gone(
    backend: SpdkBackend, raw: SpdkClient
) -> None:
    """After a restart the lvol store comes back with its disk: before that, nothing is gone."""
    volume = await backend.create(spec("a"))
    snapshot = await backend.snapshot(identity.hashed("s"), volume.key)
    (disk,) = await raw.call("bdev_get_bdevs", {"name": "aio0"})
    for each in await raw.call("nvmf_get_subsystems"):
        if identity.is_ours(each["nqn"]):
            await raw.call("nvmf_delete_subsystem", {"nqn": each["nqn"]})
    await raw.call("bdev_aio_delete", {"name": "aio0"})
    try:
        for work in (
            backend.delete(volume.key),
            backend.delete_snapshot(snapshot.key),
            backend.get(volume.key),
            backend.volumes(),
            backend.snapshots(),
            backend.garbage(),
            backend.create(spec("a")),
        ):
            with pytest.raises(Unavailable):
                await work
    finally:
        filename = disk["driver_specific"]["aio"]["filename"]
        await raw.call("bdev_aio_create", {"name": "aio0", "filename": filename, "block_size": 4096})
    assert [each.key for each in await backend.snapshots()] == [snapshot.key]
    await backend.delete(volume.key)
    await backend.delete_snapshot(snapshot.key)
    assert await raw.call("bdev_lvol_get_lvols") == []
