"""vfio-user sockets: what a guest of the stand-in is told, and when it is let in."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from foundation.spdk.errors import SpdkError
from foundation.spdk.methods import accel, bdev, lvol, nvme, nvmf
from lab.ports import free_port
from tests.spdk.conftest import Spdk, Start

MIB = 1024 * 1024
NQN = "nqn.2026-05.io.test:function"


class Guest:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def enter(cls, directory: Path) -> Guest:
        return cls(*await asyncio.open_unix_connection(str(directory / "cntrl")))

    async def event(self) -> dict[str, Any]:
        """The next event; empty when the controller has gone."""
        async with asyncio.timeout(20):
            line = await self._reader.readline()
        return json.loads(line) if line else {}

    async def leave(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


@pytest.fixture
async def dpu(stand_in: Start) -> Spdk:
    spdk = await stand_in("dpu")
    await nvmf.nvmf_create_transport(spdk.client, "VFIOUSER")
    return spdk


async def expose(spdk: Spdk, directory: Path, *, nqn: str = NQN, allow_any_host: bool = True) -> nvmf.ListenAddress:
    directory.mkdir(exist_ok=True)
    listener = nvmf.ListenAddress("VFIOUSER", str(directory))
    await nvmf.nvmf_create_subsystem(
        spdk.client, nqn=nqn, serial_number="F1", model_number="Disk", allow_any_host=allow_any_host
    )
    await nvmf.nvmf_subsystem_add_listener(spdk.client, nqn=nqn, listen_address=listener)
    return listener


async def test_a_guest_learns_what_its_kernel_would_see(dpu: Spdk, tmp_path: Path) -> None:
    await expose(dpu, tmp_path / "f")
    await bdev.bdev_malloc_create(dpu.client, name="m", num_blocks=2048, block_size=512)
    guest = await Guest.enter(tmp_path / "f")
    hello = await guest.event()
    expected = {"event": "controller", "nqn": NQN, "serial": "F1", "model": "Disk", "cntlid": 1, "firmware": "26.05"}
    assert expected.items() <= hello.items()
    uuid = "33333333-3333-4333-8333-333333333333"
    await nvmf.nvmf_subsystem_add_ns(
        dpu.client, nqn=NQN, bdev_name="m", nsid=2, uuid=uuid, nguid="AB" * 16, eui64="CD" * 8
    )
    added = await guest.event()
    assert (added["event"], added["nsid"], added["uuid"], added["nguid"], added["eui64"]) == (
        "namespace_add",
        2,
        uuid,
        "ab" * 16,
        "cd" * 8,
    )
    assert (added["size"], added["block_size"], added["read_only"]) == (MIB, 512, False)
    assert Path(added["file"]).stat().st_size == MIB
    [controller] = await nvmf.nvmf_subsystem_get_controllers(dpu.client, NQN)
    assert (controller.hostnqn, controller.hostid) == ("", "00000000-0000-0000-0000-000000000000")
    await nvmf.nvmf_subsystem_remove_ns(dpu.client, nqn=NQN, nsid=2)
    assert await guest.event() == {"event": "namespace_remove", "nsid": 2}
    await guest.leave()


async def test_a_host_list_keeps_every_guest_out(dpu: Spdk, tmp_path: Path) -> None:
    await expose(dpu, tmp_path / "f", allow_any_host=False)
    guest = await Guest.enter(tmp_path / "f")
    assert await guest.event() == {}
    await guest.leave()


async def test_one_guest_a_socket_and_the_next_when_it_has_left(dpu: Spdk, tmp_path: Path) -> None:
    await expose(dpu, tmp_path / "f")
    first = await Guest.enter(tmp_path / "f")
    assert (await first.event())["cntlid"] == 1
    second = await Guest.enter(tmp_path / "f")
    assert await second.event() == {}
    await first.leave()
    await second.leave()

    third = await Guest.enter(tmp_path / "f")
    hello = await third.event()
    while not hello:
        # The server may not have seen the first one leave.
        await third.leave()
        third = await Guest.enter(tmp_path / "f")
        hello = await third.event()
    assert hello["cntlid"] == 2
    await third.leave()


@pytest.mark.parametrize("how", ["remove_listener", "delete_subsystem", "kill"])
async def test_the_end_of_the_controller_is_the_end_of_the_connection(dpu: Spdk, tmp_path: Path, how: str) -> None:
    listener = await expose(dpu, tmp_path / "f")
    guest = await Guest.enter(tmp_path / "f")
    assert await guest.event()
    if how == "remove_listener":
        await nvmf.nvmf_subsystem_remove_listener(dpu.client, nqn=NQN, listen_address=listener)
    elif how == "delete_subsystem":
        await nvmf.nvmf_delete_subsystem(dpu.client, NQN)
    else:
        await dpu.process.kill()
    assert await guest.event() == {}
    assert (tmp_path / "f" / "cntrl").exists() == (how == "kill")
    await guest.leave()


async def test_a_socket_left_by_a_killed_process_is_in_the_way(dpu: Spdk, tmp_path: Path) -> None:
    await expose(dpu, tmp_path / "f")
    await dpu.process.kill()
    await dpu.process.start()
    await nvmf.nvmf_create_transport(dpu.client, "VFIOUSER")
    with pytest.raises(SpdkError) as caught:
        await expose(dpu, tmp_path / "f")
    assert caught.value.invalid_parameters
    (tmp_path / "f" / "cntrl").unlink()
    await nvmf.nvmf_delete_subsystem(dpu.client, NQN)
    await expose(dpu, tmp_path / "f")
    assert (tmp_path / "f" / "cntrl").exists()


async def test_a_volume_through_the_whole_chain(stand_in: Start, dpu: Spdk, tmp_path: Path) -> None:
    """Target's lvol, NVMe/TCP, encryption on the DPU, guest: the same bytes, the same uuid, growth and removal."""
    target = await stand_in("target", mode="target")
    await bdev.bdev_aio_create(target.client, name="aio", filename=target.file("aio.img", 64), block_size=4096)
    await lvol.bdev_lvol_create_lvstore(target.client, bdev_name="aio", lvs_name="lvs", cluster_sz=MIB)
    volume = await lvol.bdev_lvol_create(target.client, lvs_name="lvs", lvol_name="v", size_in_mib=8)
    await nvmf.nvmf_create_transport(target.client, "TCP")
    await nvmf.nvmf_create_subsystem(target.client, nqn=NQN, allow_any_host=True)
    await nvmf.nvmf_subsystem_add_ns(target.client, nqn=NQN, bdev_name=volume)
    port = str(free_port())
    address = nvmf.ListenAddress("TCP", "127.0.0.1", "IPv4", port)
    await nvmf.nvmf_subsystem_add_listener(target.client, nqn=NQN, listen_address=address)
    await nvme.bdev_nvme_attach_controller(
        dpu.client, name="N", trtype="TCP", adrfam="IPv4", traddr="127.0.0.1", trsvcid=port, subnqn=NQN
    )
    await expose(dpu, tmp_path / "f")
    guest = await Guest.enter(tmp_path / "f")
    await guest.event()

    await nvmf.nvmf_subsystem_add_ns(dpu.client, nqn=NQN, bdev_name="Nn1", nsid=1)
    added = await guest.event()
    assert (added["uuid"], added["size"], added["encrypted"]) == (volume, 8 * MIB, False)
    assert added["file"] == str(tmp_path / "aio.img.lvs" / f"{volume}.img")
    await lvol.bdev_lvol_resize(target.client, name=volume, size_in_mib=10)
    assert await guest.event() == {"event": "namespace_resize", "nsid": 1, "size": 10 * MIB}
    await nvmf.nvmf_subsystem_remove_ns(dpu.client, nqn=NQN, nsid=1)
    assert (await guest.event())["event"] == "namespace_remove"

    await accel.accel_crypto_key_create(dpu.client, name="k", cipher="AES_XTS", key="00" * 16, key2="11" * 16)
    await accel.bdev_crypto_create(dpu.client, base_bdev_name="Nn1", name="c", key_name="k")
    await nvmf.nvmf_subsystem_add_ns(dpu.client, nqn=NQN, bdev_name="c", nsid=2)
    added = await guest.event()
    assert (added["nsid"], added["encrypted"], added["size"]) == (2, True, 10 * MIB)
    assert added["file"] == str(tmp_path / "aio.img.lvs" / f"{volume}.img")
    await lvol.bdev_lvol_delete(target.client, volume)
    assert await guest.event() == {"event": "namespace_remove", "nsid": 2}
    await guest.leave()
