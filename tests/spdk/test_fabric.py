"""Two SPDK processes that meet over NVMe/TCP: admission, change, death and return."""

from __future__ import annotations

import asyncio
import base64
import zlib
from pathlib import Path

import pytest

from foundation.spdk.errors import SpdkError
from foundation.spdk.methods import bdev, keyring, lvol, nvme, nvmf
from lab.ports import free_port
from tests.spdk.conftest import Spdk, Start, eventually

MIB = 1024 * 1024


def dhchap_key(secret: bytes) -> str:
    """NVMe's interchange format: no hash, the secret with its CRC-32 behind it."""
    return f"DHHC-1:00:{base64.b64encode(secret + zlib.crc32(secret).to_bytes(4, 'little')).decode()}:"


NQN = "nqn.2026-05.io.test:volume"
HOST = "nqn.2014-08.org.nvmexpress:uuid:aaaaaaaa-0000-4000-8000-000000000001"
KEY = dhchap_key(bytes(range(32)))
OTHER_KEY = dhchap_key(bytes(range(100, 132)))


class Pair:
    """A target with one exported volume, and the DPU that is to attach it."""

    def __init__(self, target: Spdk, dpu: Spdk, volume: str) -> None:
        self.target = target
        self.dpu = dpu
        self.volume = volume
        self.port = str(free_port())
        self.listener = nvmf.ListenAddress("TCP", "127.0.0.1", "IPv4", self.port)

    async def publish(self) -> None:
        client = self.target.client
        await nvmf.nvmf_create_transport(client, "TCP")
        await nvmf.nvmf_create_subsystem(client, nqn=NQN, serial_number="S1", ana_reporting=True, max_namespaces=8)
        await nvmf.nvmf_subsystem_add_ns(client, nqn=NQN, bdev_name=self.volume, nsid=1)
        await nvmf.nvmf_subsystem_add_listener(client, nqn=NQN, listen_address=self.listener)
        await nvmf.nvmf_subsystem_add_host(client, nqn=NQN, host=HOST)

    async def attach(self, name: str = "N", **options: object) -> list[str]:
        times = {"ctrlr_loss_timeout_sec": -1, "reconnect_delay_sec": 1, "fast_io_fail_timeout_sec": 0}
        return await nvme.bdev_nvme_attach_controller(
            self.dpu.client,
            **{
                "name": name,
                "trtype": "TCP",
                "adrfam": "IPv4",
                "traddr": "127.0.0.1",
                "trsvcid": self.port,
                "subnqn": NQN,
                "hostnqn": HOST,
                **times,
                **options,
            },  # type: ignore[arg-type]  # options by name
        )

    async def states(self, name: str = "N") -> list[str]:
        try:
            [controller] = await nvme.bdev_nvme_get_controllers(self.dpu.client, name=name)
        except SpdkError as error:
            if not error.missing:
                raise
            return []
        return [path.state for path in controller.ctrlrs]


async def with_volume(target: Spdk) -> str:
    await bdev.bdev_aio_create(target.client, name="aio", filename=target.file("aio.img", 64), block_size=4096)
    stores = await lvol.bdev_lvol_get_lvstores(target.client)
    if not stores:
        await lvol.bdev_lvol_create_lvstore(target.client, bdev_name="aio", lvs_name="lvs", cluster_sz=MIB)
        return await lvol.bdev_lvol_create(target.client, lvs_name="lvs", lvol_name="v", size_in_mib=8)
    return (await bdev.bdev_get_bdevs(target.client, name="lvs/v"))[0].uuid


@pytest.fixture
async def pair(start: Start) -> Pair:
    target, dpu = await asyncio.gather(start("target"), start("dpu"))
    made = Pair(target, dpu, await with_volume(target))
    await made.publish()
    return made


async def test_a_volume_arrives_with_its_uuid_and_size(pair: Pair) -> None:
    assert await pair.attach() == ["Nn1"]
    [found] = await bdev.bdev_get_bdevs(pair.dpu.client, name=pair.volume)
    assert (found.name, found.uuid, found.size) == ("Nn1", pair.volume, 8 * MIB)
    [details] = found.driver_specific.nvme
    assert (details.ctrlr_data.serial_number, details.ns_data.ana_state) == ("S1", "optimized")
    [controller] = await nvmf.nvmf_subsystem_get_controllers(pair.target.client, NQN)
    assert controller.hostnqn == HOST


async def test_whatever_is_wrong_the_answer_is_the_same(pair: Pair) -> None:
    wrong: list[dict[str, object]] = [
        {"hostnqn": "nqn.2026-05.io.test:stranger"},
        {"subnqn": "nqn.2026-05.io.test:missing"},
        {"trsvcid": "1"},
        {"traddr": "not-an-address"},
        {"adrfam": None},
    ]
    for options in wrong:
        with pytest.raises(SpdkError) as caught:
            await pair.attach(**options)
        assert caught.value.unreachable, options
    assert await nvme.bdev_nvme_get_controllers(pair.dpu.client) == []


async def test_the_nguid_given_is_the_bdevs_uuid(pair: Pair) -> None:
    uuid = "22222222-2222-4222-8222-222222222222"
    await bdev.bdev_malloc_create(pair.target.client, name="m", num_blocks=2048, block_size=512)
    await nvmf.nvmf_subsystem_add_ns(
        pair.target.client, nqn=NQN, bdev_name="m", nsid=5, uuid=uuid, nguid=uuid.replace("-", "").upper()
    )
    assert await pair.attach() == ["Nn1", "Nn5"]
    [found] = await bdev.bdev_get_bdevs(pair.dpu.client, name="Nn5")
    assert found.uuid == uuid


async def test_growth_and_namespaces_arrive_by_themselves(pair: Pair) -> None:
    await pair.attach()
    await lvol.bdev_lvol_resize(pair.target.client, name="lvs/v", size_in_mib=12)

    async def grown() -> bool:
        return (await bdev.bdev_get_bdevs(pair.dpu.client, name="Nn1"))[0].size == 12 * MIB

    await eventually(grown)
    await bdev.bdev_malloc_create(pair.target.client, name="m", num_blocks=2048, block_size=512)
    await nvmf.nvmf_subsystem_add_ns(pair.target.client, nqn=NQN, bdev_name="m", nsid=3)
    assert (await bdev.bdev_get_bdevs(pair.dpu.client, name="Nn3", timeout=5000))[0].size == MIB
    await nvmf.nvmf_subsystem_remove_ns(pair.target.client, nqn=NQN, nsid=3)

    async def gone() -> bool:
        return await bdev.only(pair.dpu.client, "Nn3") is None

    await eventually(gone)


async def test_removing_the_host_cuts_it_off_and_adding_it_lets_it_back(pair: Pair) -> None:
    await pair.attach()
    await nvmf.nvmf_subsystem_remove_host(pair.target.client, nqn=NQN, host=HOST)
    assert await nvmf.nvmf_subsystem_get_controllers(pair.target.client, NQN) == []

    async def delayed() -> bool:
        return await pair.states() == ["reconnect_is_delayed"]

    await eventually(delayed)
    assert await bdev.only(pair.dpu.client, "Nn1") is not None
    await nvmf.nvmf_subsystem_add_host(pair.target.client, nqn=NQN, host=HOST)

    async def enabled() -> bool:
        return await pair.states() == ["enabled"]

    await eventually(enabled)


async def test_a_target_that_dies_and_returns(pair: Pair) -> None:
    await pair.attach()
    await pair.target.process.kill()

    async def delayed() -> bool:
        return await pair.states() == ["reconnect_is_delayed"]

    await eventually(delayed)
    found = await bdev.only(pair.dpu.client, "Nn1")
    await pair.target.process.start()
    assert await with_volume(pair.target) == pair.volume
    await pair.publish()

    async def enabled() -> bool:
        return await pair.states() == ["enabled"]

    await eventually(enabled)
    after = await bdev.only(pair.dpu.client, "Nn1")
    assert found is not None
    assert after is not None
    assert (after.uuid, after.size) == (found.uuid, found.size)


async def test_a_controller_is_given_up_after_its_loss_time(pair: Pair) -> None:
    await pair.attach(ctrlr_loss_timeout_sec=2)
    await pair.target.process.kill()

    async def gone() -> bool:
        return await pair.states() == [] and await bdev.only(pair.dpu.client, "Nn1") is None

    await eventually(gone)


async def test_detaching_from_a_dead_target_is_quick(pair: Pair) -> None:
    await pair.attach()
    await pair.target.process.kill()
    async with asyncio.timeout(9):
        await nvme.bdev_nvme_detach_controller(pair.dpu.client, "N")
    assert await nvme.bdev_nvme_get_controllers(pair.dpu.client) == []
    assert await bdev.bdev_get_bdevs(pair.dpu.client) == []


async def test_a_second_path_keeps_the_volume(pair: Pair) -> None:
    second = nvmf.ListenAddress("TCP", "127.0.0.2", "IPv4", str(free_port()))
    await nvmf.nvmf_subsystem_add_listener(pair.target.client, nqn=NQN, listen_address=second)
    await pair.attach(multipath="multipath")
    assert await pair.attach(multipath="multipath", traddr="127.0.0.2", trsvcid=second.trsvcid) == ["Nn1"]
    assert await pair.states() == ["enabled", "enabled"]
    await nvmf.nvmf_subsystem_remove_listener(pair.target.client, nqn=NQN, listen_address=pair.listener)

    async def one_left() -> bool:
        return sorted(await pair.states()) == ["enabled", "reconnect_is_delayed"]

    await eventually(one_left)
    assert await bdev.only(pair.dpu.client, "Nn1") is not None
    await nvme.bdev_nvme_detach_controller(
        pair.dpu.client, "N", trtype="TCP", adrfam="IPv4", traddr="127.0.0.1", trsvcid=pair.port, subnqn=NQN
    )
    assert await pair.states() == ["enabled"]


async def test_times_that_contradict_each_other(start: Start) -> None:
    dpu = await start("dpu")
    contradictions = [
        {"ctrlr_loss_timeout_sec": -1, "reconnect_delay_sec": 0},
        {"ctrlr_loss_timeout_sec": 5, "reconnect_delay_sec": 10},
        {"ctrlr_loss_timeout_sec": 0, "reconnect_delay_sec": 2},
        {"ctrlr_loss_timeout_sec": 10, "reconnect_delay_sec": 2, "fast_io_fail_timeout_sec": 20},
    ]
    for times in contradictions:
        with pytest.raises(SpdkError) as caught:
            await nvme.bdev_nvme_attach_controller(
                dpu.client, name="N", trtype="TCP", traddr="127.0.0.1", adrfam="IPv4", trsvcid="1", subnqn=NQN, **times
            )
        assert caught.value.code == -22, times


async def test_keys(pair: Pair, tmp_path: Path) -> None:
    for name, text in (("k1", KEY), ("k2", OTHER_KEY)):
        path = tmp_path / name
        path.write_text(text)
        path.chmod(0o600)
        for spdk in (pair.target, pair.dpu):
            await keyring.keyring_file_add_key(spdk.client, name=name, path=str(path))
    await nvme.bdev_nvme_set_options(pair.dpu.client, dhchap_digests=["sha256"], dhchap_dhgroups=["ffdhe2048"])
    await nvmf.nvmf_subsystem_set_keys(pair.target.client, nqn=NQN, host=HOST, dhchap_key="k1", dhchap_ctrlr_key="k2")

    for options in ({}, {"dhchap_key": "k2"}, {"dhchap_key": "k1", "dhchap_ctrlr_key": "k1"}):
        with pytest.raises(SpdkError) as caught:
            await pair.attach(**options)
        assert caught.value.unreachable
    with pytest.raises(SpdkError) as caught:
        await pair.attach(dhchap_key="none")
    assert caught.value.code == -126
    assert await pair.attach(dhchap_key="k1", dhchap_ctrlr_key="k2") == ["Nn1"]
    [admin, *_] = await nvmf.nvmf_subsystem_get_qpairs(pair.target.client, NQN)
    assert admin.auth is not None
    assert (admin.auth.state, admin.auth.digest, admin.auth.dhgroup) == ("completed", "sha256", "ffdhe2048")
