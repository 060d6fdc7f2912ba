"""Volumes with real bytes: what survives a kill, what a snapshot holds, what a mistake costs."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from foundation.spdk.client import SpdkClient
from foundation.spdk.errors import SpdkError, SpdkUnavailable
from foundation.spdk.methods import accel, bdev, lvol, nvmf
from tests.spdk.conftest import Spdk, Start, eventually

MIB = 1024 * 1024


async def with_lvstore(spdk: Spdk, *, mib: int = 64) -> None:
    await bdev.bdev_aio_create(spdk.client, name="aio", filename=spdk.file("aio.img", mib), block_size=4096)
    await lvol.bdev_lvol_create_lvstore(
        spdk.client, bdev_name="aio", lvs_name="lvs", cluster_sz=MIB, clear_method="none"
    )


def image(spdk: Spdk, uuid: str) -> Path:
    return spdk.directory / "aio.img.lvs" / f"{uuid}.img"


def write(path: Path, data: bytes, offset: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


async def test_everything_is_back_after_a_kill(start: Start) -> None:
    spdk = await start()
    await with_lvstore(spdk)
    client = spdk.client
    for name, thin in (("thick", False), ("thin", True)):
        await lvol.bdev_lvol_create(client, lvs_name="lvs", lvol_name=name, size_in_mib=5, thin_provision=thin)
    await lvol.bdev_lvol_snapshot(client, lvol_name="lvs/thin", snapshot_name="snap")
    await lvol.bdev_lvol_clone(client, snapshot_name="lvs/snap", clone_name="clone")
    await lvol.bdev_lvol_resize(client, name="lvs/clone", size_in_mib=9)
    before = await lvol.bdev_lvol_get_lvols(client)
    stores = await lvol.bdev_lvol_get_lvstores(client)
    await spdk.process.kill()

    await spdk.process.start()
    assert await bdev.bdev_get_bdevs(client) == []
    await bdev.bdev_aio_create(client, name="aio", filename=spdk.file("aio.img", 64), block_size=4096)
    assert await lvol.bdev_lvol_get_lvols(client) == before
    assert await lvol.bdev_lvol_get_lvstores(client) == stores
    clone = await bdev.only(client, "lvs/clone")
    assert clone is not None
    assert clone.size == 9 * MIB
    assert clone.driver_specific.lvol is not None
    assert clone.driver_specific.lvol.base_snapshot == "snap"


async def test_a_wiped_file_has_no_lvstore(start: Start) -> None:
    spdk = await start()
    await with_lvstore(spdk)
    await lvol.bdev_lvol_create(spdk.client, lvs_name="lvs", lvol_name="v", size_in_mib=4)
    await bdev.bdev_aio_delete(spdk.client, "aio")
    (spdk.directory / "aio.img").write_bytes(b"")
    await bdev.bdev_aio_create(spdk.client, name="aio", filename=spdk.file("aio.img", 64), block_size=4096)
    assert await lvol.bdev_lvol_get_lvstores(spdk.client) == []


async def test_bytes_of_snapshots_and_clones(stand_in: Start) -> None:
    spdk = await stand_in()
    await with_lvstore(spdk)
    client = spdk.client
    volume = await lvol.bdev_lvol_create(client, lvs_name="lvs", lvol_name="v", size_in_mib=8, thin_provision=True)
    write(image(spdk, volume), b"first" * 1000, 3 * MIB)
    snapshot = await lvol.bdev_lvol_snapshot(client, lvol_name="lvs/v", snapshot_name="s")
    write(image(spdk, volume), b"second", 3 * MIB)
    clone = await lvol.bdev_lvol_clone(client, snapshot_name="lvs/s", clone_name="c")

    assert image(spdk, snapshot).read_bytes()[3 * MIB :][:10] == b"firstfirst"
    assert image(spdk, clone).read_bytes()[3 * MIB :][:10] == b"firstfirst"
    assert image(spdk, volume).read_bytes()[3 * MIB :][:10] == b"secondirst"
    assert image(spdk, clone).stat().st_size == 8 * MIB
    assert image(spdk, clone).stat().st_blocks * 512 < MIB, "holes stay holes"

    await lvol.bdev_lvol_delete(client, "lvs/c")
    await lvol.bdev_lvol_delete(client, "lvs/s")
    assert image(spdk, volume).read_bytes()[3 * MIB :][:10] == b"secondirst"
    assert not image(spdk, snapshot).exists()
    assert not image(spdk, clone).exists()


async def test_thin_volumes_take_space_as_they_are_written(stand_in: Start) -> None:
    spdk = await stand_in()
    await with_lvstore(spdk)
    [store] = await lvol.bdev_lvol_get_lvstores(spdk.client)
    volume = await lvol.bdev_lvol_create(
        spdk.client, lvs_name="lvs", lvol_name="v", size_in_mib=500, thin_provision=True
    )
    write(image(spdk, volume), b"x" * 3 * MIB, 100 * MIB)
    [now] = await lvol.bdev_lvol_get_lvstores(spdk.client)
    assert store.free_clusters - now.free_clusters == 3
    with pytest.raises(SpdkError) as caught:
        await lvol.bdev_lvol_create(spdk.client, lvs_name="lvs", lvol_name="w", size_in_mib=61)
    assert caught.value.no_space


async def test_shrinking_an_exported_volume_destroys_data_behind_an_error(stand_in: Start) -> None:
    spdk = await stand_in()
    await with_lvstore(spdk)
    client = spdk.client
    volume = await lvol.bdev_lvol_create(client, lvs_name="lvs", lvol_name="v", size_in_mib=16)
    write(image(spdk, volume), b"gone", 10 * MIB)
    await nvmf.nvmf_create_subsystem(client, nqn="nqn.2026-05.io.test:v")
    await nvmf.nvmf_subsystem_add_ns(client, nqn="nqn.2026-05.io.test:v", bdev_name=volume)
    with pytest.raises(SpdkError) as caught:
        await lvol.bdev_lvol_resize(client, name=volume, size_in_mib=4)
    assert caught.value.busy
    after = await bdev.only(client, volume)
    assert after is not None
    assert after.driver_specific.lvol is not None
    assert (after.size, after.driver_specific.lvol.num_allocated_clusters) == (16 * MIB, 4)
    assert image(spdk, volume).read_bytes()[10 * MIB :][:4] == b"\0\0\0\0"


async def test_a_volume_in_use_is_deleted_all_the_same(start: Start) -> None:
    spdk = await start()
    await with_lvstore(spdk)
    client = spdk.client
    volume = await lvol.bdev_lvol_create(client, lvs_name="lvs", lvol_name="v", size_in_mib=4)
    nqn = "nqn.2026-05.io.test:v"
    await nvmf.nvmf_create_subsystem(client, nqn=nqn)
    await nvmf.nvmf_subsystem_add_ns(client, nqn=nqn, bdev_name="lvs/v")
    exported = await bdev.only(client, volume)
    assert exported is not None
    assert (exported.claimed, exported.claim_type) == (True, "exclusive_write")
    await lvol.bdev_lvol_delete(client, volume)
    subsystem = await nvmf.only(client, nqn)
    assert subsystem is not None
    assert subsystem.namespaces == ()


async def test_a_crypto_bdev_follows_its_base(start: Start) -> None:
    spdk = await start()
    client = spdk.client
    await accel.accel_crypto_key_create(client, name="k", cipher="AES_XTS", key="00" * 16, key2="11" * 16)
    await accel.bdev_crypto_create(client, base_bdev_name="m", name="c", key_name="k")
    assert await bdev.only(client, "c") is None
    await bdev.bdev_malloc_create(client, name="m", num_blocks=2048, block_size=512)
    assert (await bdev.bdev_get_bdevs(client, name="c", timeout=5000))[0].size == MIB
    await bdev.bdev_malloc_delete(client, "m")
    assert await bdev.only(client, "c") is None
    await bdev.bdev_malloc_create(client, name="m", num_blocks=4096, block_size=512)
    assert (await bdev.bdev_get_bdevs(client, name="c", timeout=5000))[0].size == 2 * MIB


async def test_the_wait_for_a_bdev_ends_when_it_appears(start: Start) -> None:
    spdk = await start()
    waiting = asyncio.ensure_future(bdev.bdev_get_bdevs(spdk.client, name="m", timeout=10_000))
    await asyncio.sleep(0.05)
    await bdev.bdev_malloc_create(spdk.client, name="m", num_blocks=2048, block_size=512)
    async with asyncio.timeout(20):
        assert [found.name for found in await waiting] == ["m"]


@pytest.mark.parametrize("seed", range(3))
async def test_a_kill_at_any_moment_loses_nothing_that_was_answered(stand_in: Start, seed: int) -> None:
    """Volumes are made and deleted as fast as they go; what SPDK said before it was killed is what is there after."""
    spdk = await stand_in()
    await with_lvstore(spdk, mib=256)
    chance = random.Random(seed)
    there: set[str] = set()
    unsure: set[str] = set()

    async def worker(number: int) -> None:
        client = SpdkClient(spdk.process.address)
        mine: list[str] = []
        try:
            for step in range(10_000):
                if mine and chance.random() < 0.5:
                    name = mine.pop(chance.randrange(len(mine)))
                    there.discard(name)
                    unsure.add(name)
                    await lvol.bdev_lvol_delete(client, f"lvs/{name}")
                    unsure.discard(name)
                    continue
                name = f"v{number}-{step}"
                unsure.add(name)
                if mine and chance.random() < 0.5:
                    await lvol.bdev_lvol_snapshot(client, lvol_name=f"lvs/{chance.choice(mine)}", snapshot_name=name)
                    unsure.discard(name)
                    there.add(name)
                    continue
                await lvol.bdev_lvol_create(client, lvs_name="lvs", lvol_name=name, size_in_mib=1, thin_provision=True)
                unsure.discard(name)
                there.add(name)
                mine.append(name)
        except SpdkUnavailable:
            return
        finally:
            await client.close()

    workers = [asyncio.ensure_future(worker(number)) for number in range(4)]

    async def well_under_way() -> bool:
        return len(there) >= 5

    await eventually(well_under_way, within=20)
    await asyncio.sleep(chance.random() * 0.1)
    await spdk.process.kill()
    await asyncio.gather(*workers)

    await spdk.process.start()
    await bdev.bdev_aio_create(spdk.client, name="aio", filename=spdk.file("aio.img", 256), block_size=4096)
    found = await lvol.bdev_lvol_get_lvols(spdk.client)
    names = {entry.name for entry in found}
    assert names - unsure == there - unsure
    assert {path.stem for path in (spdk.directory / "aio.img.lvs").glob("*.img")} == {entry.uuid for entry in found}
