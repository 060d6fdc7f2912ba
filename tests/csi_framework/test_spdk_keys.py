"""Secrets of hosts on an SPDK target: by keyring, replaced while in use, gone with the host."""

import base64
import binascii
import stat
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from csi import identity
from csi.errors import FailedPrecondition
from csi.framework.backend import HostKeys, SizeRange, Volume, VolumeSpec
from csi.framework.backends.spdk import SpdkBackend
from csi.framework.backends.spdk.config import SpdkParameters
from foundation.spdk.client import SpdkClient
from foundation.spdk.errors import SpdkError
from lab.spdk.process import SpdkProcess
from tests.csi_rig.target import PORT, SECURE_PORT, Target

HOST = identity.host_nqn("one")


def key(letter: bytes, prefix: str = "DHHC-1:00:") -> str:
    raw = letter * 32
    return f"{prefix}{base64.b64encode(raw + binascii.crc32(raw).to_bytes(4, 'little')).decode()}:"


async def make(backend: SpdkBackend) -> Volume:
    return await backend.create(
        VolumeSpec(token=identity.hashed("a"), size=SizeRange(16 << 20), parameters=SpdkParameters())
    )


async def state(raw: SpdkClient, volume: Volume) -> tuple[list[dict[str, Any]], set[str]]:
    nqn = identity.subsystem_nqn(identity.VolumeId("spdk", volume.key))
    (found,) = await raw.call("nvmf_get_subsystems", {"nqn": nqn})
    keys = {each["name"] for each in await raw.call("keyring_get_keys") if not each["removed"]}
    return found["hosts"], keys


async def test_keys_come_rotate_and_go(backend: SpdkBackend, raw: SpdkClient, keys: Path) -> None:
    volume = await make(backend)
    first = HostKeys(dhchap_key=key(b"a"), dhchap_ctrlr_key=key(b"b"))
    await backend.grant(volume.key, HOST, keys=first, shared=False)
    hosts, before = await state(raw, volume)
    assert len(before) == 2
    assert {hosts[0]["dhchap_key"], hosts[0]["dhchap_ctrlr_key"]} == before
    for path in keys.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.read_text() in (first.dhchap_key, first.dhchap_ctrlr_key)
        assert path.read_text() not in path.name
    await backend.grant(volume.key, HOST, keys=first, shared=False)
    assert (await state(raw, volume))[1] == before

    second = HostKeys(dhchap_key=key(b"c"), dhchap_ctrlr_key=key(b"d"))
    await backend.grant(volume.key, HOST, keys=second, shared=False)
    hosts, after = await state(raw, volume)
    assert len(hosts) == 1
    assert not after & before
    assert {hosts[0]["dhchap_key"], hosts[0]["dhchap_ctrlr_key"]} == after
    assert {path.name for path in keys.iterdir()} == after

    await backend.revoke(volume.key, HOST)
    hosts, none = await state(raw, volume)
    assert (hosts, none, list(keys.iterdir())) == ([], set(), [])


async def test_two_hosts_have_keys_of_their_own(backend: SpdkBackend, raw: SpdkClient, keys: Path) -> None:
    volume = await make(backend)
    other = identity.host_nqn("two")
    for host, letter in ((HOST, b"a"), (other, b"b")):
        await backend.grant(volume.key, host, keys=HostKeys(dhchap_key=key(letter)), shared=True)
    await backend.revoke(volume.key, HOST)
    hosts, left = await state(raw, volume)
    assert [host["nqn"] for host in hosts] == [other]
    assert {path.name for path in keys.iterdir()} == left == {hosts[0]["dhchap_key"]}


@pytest.fixture
async def dpu(running: Target) -> AsyncIterator[SpdkClient]:
    """An SPDK of the target's kind that connects to it."""
    with tempfile.TemporaryDirectory(prefix="dpu-", dir="/tmp") as directory:
        async with (
            SpdkProcess(Path(directory), binary=running.binary, core_mask="0x2") as process,
            SpdkClient(process.address) as client,
        ):
            yield client


async def connected(dpu: SpdkClient, keys: Path, volume: Volume, *, port: int, psk: str = "") -> bool:
    """Whether a host gets in; it leaves again."""
    trid = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": str(port)}
    path = {
        "name": "c",
        "subnqn": identity.subsystem_nqn(identity.VolumeId("spdk", volume.key)),
        "hostnqn": HOST,
        **trid,
    }
    if psk:
        file = keys / "of the host"
        file.touch(0o600)
        file.write_text(psk)
        await dpu.call("keyring_file_add_key", {"name": "psk", "path": str(file)})
        path["psk"] = "psk"
    try:
        await dpu.call("bdev_nvme_attach_controller", path)
    except SpdkError:
        return False
    else:
        await dpu.call("bdev_nvme_detach_controller", {"name": "c"})
        return True
    finally:
        if psk:
            await dpu.call("keyring_file_remove_key", {"name": "psk"})


async def test_a_host_with_a_tls_key_gets_in_by_tls_and_in_no_other_way(
    backend: SpdkBackend, dpu: SpdkClient, tmp_path: Path
) -> None:
    volume = await make(backend)
    old, new = (key(letter, "NVMeTLSkey-1:01:") for letter in (b"o", b"n"))
    await backend.grant(volume.key, HOST, keys=HostKeys(tls_psk=old), shared=False)
    assert await connected(dpu, tmp_path, volume, port=SECURE_PORT, psk=old)
    assert not await connected(dpu, tmp_path, volume, port=SECURE_PORT)
    assert not await connected(dpu, tmp_path, volume, port=PORT)
    await backend.grant(volume.key, HOST, keys=HostKeys(tls_psk=old), shared=False)
    for other in (HostKeys(tls_psk=new), HostKeys()):
        with pytest.raises(FailedPrecondition, match="publish it again"):
            await backend.grant(volume.key, HOST, keys=other, shared=False)
    assert await connected(dpu, tmp_path, volume, port=SECURE_PORT, psk=old), "it must not be locked out meanwhile"
    await backend.revoke(volume.key, HOST)
    await backend.grant(volume.key, HOST, keys=HostKeys(tls_psk=new), shared=False)
    assert await connected(dpu, tmp_path, volume, port=SECURE_PORT, psk=new)
    assert not await connected(dpu, tmp_path, volume, port=SECURE_PORT, psk=old)
    seen = await backend.get(volume.key)
    assert (seen.exported, seen.hosts) == (True, (HOST,))
    await backend.revoke(volume.key, HOST)
    assert (await backend.get(volume.key)).exported
    await backend.grant(volume.key, HOST, keys=HostKeys(), shared=False)
    assert await connected(dpu, tmp_path, volume, port=PORT)
    assert not await connected(dpu, tmp_path, volume, port=SECURE_PORT, psk=new)


async def test_tls_comes_back_after_a_restart_of_the_target(
    backend: SpdkBackend, target: Target, dpu: SpdkClient, tmp_path: Path
) -> None:
    volume = await make(backend)
    psk = key(b"p", "NVMeTLSkey-1:01:")
    await backend.grant(volume.key, HOST, keys=HostKeys(tls_psk=psk), shared=False)
    await target.restart()
    await backend.converge({volume.key: {HOST: HostKeys(tls_psk=psk)}}, {})
    assert await connected(dpu, tmp_path, volume, port=SECURE_PORT, psk=psk)
    assert not await connected(dpu, tmp_path, volume, port=PORT)


async def test_after_a_group_snapshot_tls_is_asked_for_as_before(
    backend: SpdkBackend, raw: SpdkClient, dpu: SpdkClient, tmp_path: Path
) -> None:
    """The snapshot interrupts all connections; also when it was killed in between, nobody gets in without TLS."""
    volume, psk = await make(backend), key(b"p", "NVMeTLSkey-1:01:")
    other = await backend.create(
        VolumeSpec(token=identity.hashed("b"), size=SizeRange(16 << 20), parameters=SpdkParameters())
    )
    await backend.grant(volume.key, HOST, keys=HostKeys(tls_psk=psk), shared=False)
    await backend.snapshot_group(identity.hashed("g"), [volume.key, other.key])
    assert await connected(dpu, tmp_path, volume, port=SECURE_PORT, psk=psk)
    nqn = identity.subsystem_nqn(identity.VolumeId("spdk", volume.key))
    address = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": str(SECURE_PORT)}
    await raw.call("nvmf_subsystem_remove_listener", {"nqn": nqn, "listen_address": address})
    await backend.converge({}, {})
    assert not await connected(dpu, tmp_path, volume, port=PORT)
    assert await connected(dpu, tmp_path, volume, port=SECURE_PORT, psk=psk)


async def test_nobody_shares_a_volume_in_clear_with_one_who_encrypts(backend: SpdkBackend, raw: SpdkClient) -> None:
    volume = await make(backend)
    psk = key(b"p", "NVMeTLSkey-1:01:")
    await backend.grant(volume.key, HOST, keys=HostKeys(tls_psk=psk), shared=True)
    with pytest.raises(FailedPrecondition, match="with TLS"):
        await backend.grant(volume.key, identity.host_nqn("two"), keys=HostKeys(), shared=True)
    hosts, _ = await state(raw, volume)
    assert [host["nqn"] for host in hosts] == [HOST]


async def test_nothing_shows_a_secret() -> None:
    keys = HostKeys(dhchap_key=key(b"a"), dhchap_ctrlr_key=key(b"b"), tls_psk=key(b"c", "NVMeTLSkey-1:01:"))
    assert "DHHC" not in repr(keys)
    assert "NVMeTLS" not in f"{keys}"
    assert keys
    assert not HostKeys()
