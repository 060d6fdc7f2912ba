"""Secrets of hosts on an SPDK target: by keyring, replaced while in use, gone with the host."""

import base64
import binascii
import stat
from pathlib import Path
from typing import Any

from csi import identity
from csi.framework.backend import HostKeys, SizeRange, Volume, VolumeSpec
from csi.framework.backends.spdk import SpdkBackend
from csi.framework.backends.spdk.config import SpdkParameters
from foundation.spdk.client import SpdkClient

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


async def test_nothing_shows_a_secret() -> None:
    keys = HostKeys(dhchap_key=key(b"a"), dhchap_ctrlr_key=key(b"b"), tls_psk=key(b"c", "NVMeTLSkey-1:01:"))
    assert "DHHC" not in repr(keys)
    assert "NVMeTLS" not in f"{keys}"
    assert keys
    assert not HostKeys()
