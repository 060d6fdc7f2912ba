"""How a volume can be attached: policies, several paths, encryption, limits, keys."""

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from dpu_offload_stubs.attacher.v1 import attacher_pb2 as pb
from lab.ports import free_port
from tests.dpu_rig.rig import HOST_NQN, DpuRig, Pair, eventually

KEY, TWEAK = "00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100"
SHARED, HOTPLUG = pb.FUNCTION_POLICY_SHARED_CONTROLLER, pb.FUNCTION_POLICY_HOTPLUG


@pytest.fixture
async def rig(tmp_path: Path, pair: Pair) -> AsyncIterator[DpuRig]:
    rig = DpuRig(tmp_path, pair, functions=3, hotplug=2)
    await rig.start()
    yield rig
    await rig.stop()


async def _code(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    code: grpc.StatusCode = caught.value.code()
    return code


def _dhchap(seed: int) -> str:
    """A secret in NVMe's interchange format: base64 of 32 bytes with their CRC-32."""
    raw = bytes((seed + number) % 256 for number in range(32))
    return f"DHHC-1:01:{base64.b64encode(raw + binascii.crc32(raw).to_bytes(4, 'little')).decode()}:"


async def test_a_hotplug_policy_takes_hotplug_functions_only(rig: DpuRig) -> None:
    volumes = [await rig.volume(f"v{number}") for number in range(3)]
    attached = [await rig.stub.Attach(one.request(function_policy=HOTPLUG)) for one in volumes[:2]]
    assert {(one.function.physical_function, one.function.virtual_function) for one in attached} == {(1, 1), (1, 2)}
    third = volumes[2].request(function_policy=HOTPLUG)
    assert await _code(rig.stub.Attach(third)) is grpc.StatusCode.RESOURCE_EXHAUSTED
    static = await rig.stub.Attach(volumes[2].request())
    assert static.function.physical_function == 0


async def test_volumes_share_a_controller_and_no_nsid_comes_back_while_it_lives(rig: DpuRig) -> None:
    volumes = [await rig.volume(f"v{number}") for number in range(4)]
    first = await rig.stub.Attach(volumes[0].request(function_policy=SHARED))
    async with rig.guest(first)() as guest:
        others = await asyncio.gather(*(rig.stub.Attach(one.request(function_policy=SHARED)) for one in volumes[1:3]))
        assert {one.function.virtual_function for one in others} == {first.function.virtual_function}
        assert {one.subsystem_nqn for one in (first, *others)} == {first.subsystem_nqn}
        assert sorted(one.nsid for one in (first, *others)) == [1, 2, 3]
        await guest.until(lambda g: len(g.namespaces) == 3)
        for one in (first, *others):
            assert guest.namespaces[one.nsid]["uuid"] == one.namespace_uuid
        assert rig.attacher is not None
        await rig.stub.Detach(pb.DetachRequest(volume_id=next(one.volume_id for one in others if one.nsid == 3)))
        await rig.attacher.aclose()
        await rig.start_attacher()
        fourth = await rig.stub.Attach(volumes[3].request(function_policy=SHARED))
        assert fourth.nsid == 4
        await guest.until(lambda g: 4 in g.namespaces)
        assert not guest.gone.is_set()
    for volume in volumes:
        await rig.stub.Detach(pb.DetachRequest(volume_id=volume.id))
    assert await rig.leftovers() == {}


async def test_a_shared_controller_comes_back_whole_after_spdk_was_killed(rig: DpuRig) -> None:
    volumes = [await rig.volume(f"v{number}") for number in range(3)]
    for volume in volumes:
        await rig.stub.Attach(volume.request(function_policy=SHARED))
    await rig.stub.Detach(pb.DetachRequest(volume_id=volumes[0].id))
    before = {one.volume_id: one for one in (await rig.stub.List(pb.ListRequest())).attachments}
    await rig.restart_dpu()

    async def back() -> bool:
        return {one.volume_id: one for one in (await rig.stub.List(pb.ListRequest())).attachments} == before

    await eventually(back, "both namespaces are back under their NSIDs")
    for volume in volumes:
        await rig.stub.Detach(pb.DetachRequest(volume_id=volume.id))
    assert await rig.leftovers() == {}


async def test_several_paths_make_one_disk_that_outlives_one_of_them(rig: DpuRig) -> None:
    volume = await rig.volume("a", ports=(free_port(), free_port()))
    attached = await rig.stub.Attach(volume.request())
    assert [path.connected for path in attached.paths] == [True, True]
    await rig.unlisten(volume, volume.ports[1])

    async def state(wanted: int) -> bool:
        return bool((await rig.stub.Get(pb.GetRequest(volume_id=volume.id))).state == wanted)

    await eventually(lambda: state(pb.ATTACHMENT_STATE_DEGRADED), "one path is lost")
    shown = await rig.stub.Get(pb.GetRequest(volume_id=volume.id))
    assert "a path is lost" in shown.reason
    assert {path.path.port: path.connected for path in shown.paths} == dict(
        zip(volume.ports, (True, False), strict=True)
    )
    await rig.listen(volume, volume.ports[1])
    await eventually(lambda: state(pb.ATTACHMENT_STATE_ATTACHED), "both paths work again")
    await rig.stub.Detach(pb.DetachRequest(volume_id=volume.id))
    assert await rig.leftovers() == {}


async def test_a_path_that_was_away_at_first_is_opened_later(rig: DpuRig) -> None:
    late = free_port()
    volume = await rig.volume("a")
    volume.ports, volume.addresses = (*volume.ports, late), (*volume.addresses, "127.0.0.1")
    attached = await rig.stub.Attach(volume.request())
    assert attached.state == pb.ATTACHMENT_STATE_DEGRADED
    await rig.listen(volume, late)

    async def whole() -> bool:
        shown = await rig.stub.Get(pb.GetRequest(volume_id=volume.id))
        return bool(shown.state == pb.ATTACHMENT_STATE_ATTACHED and len(shown.paths) == 2)

    await eventually(whole, "the second path is there")


async def test_a_target_whose_access_list_dropped_this_dpu_is_reported(rig: DpuRig) -> None:
    volume = await rig.volume("a")
    await rig.stub.Attach(volume.request())
    await rig.at_target.call("nvmf_subsystem_remove_host", {"nqn": volume.nqn, "host": HOST_NQN})

    async def degraded() -> bool:
        shown = await rig.stub.Get(pb.GetRequest(volume_id=volume.id))
        return bool(shown.state == pb.ATTACHMENT_STATE_DEGRADED and "no path works" in shown.reason)

    await eventually(degraded, "the loss is reported")
    await rig.stub.Detach(pb.DetachRequest(volume_id=volume.id))
    assert await rig.leftovers() == {}


async def test_encryption_on_the_dpu(rig: DpuRig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    volume = await rig.volume("a")
    keys = pb.Encryption(key=KEY, tweak_key=TWEAK)
    attached = await rig.stub.Attach(volume.request(encryption=keys))
    async with rig.guest(attached)() as guest:
        await guest.until(lambda g: 1 in g.namespaces)
        assert guest.namespaces[1]["encrypted"] is True
        assert guest.namespaces[1]["uuid"] == volume.uuid
    assert await _code(rig.stub.Attach(volume.request())) is grpc.StatusCode.ALREADY_EXISTS
    await rig.restart_dpu()

    async def back() -> bool:
        return bool((await rig.stub.Get(pb.GetRequest(volume_id=volume.id))).state == pb.ATTACHMENT_STATE_ATTACHED)

    await eventually(back, "the encrypted volume is back, with keys kept in memory only")
    stored = b"".join(path.read_bytes() for path in (rig.directory / "state").rglob("*") if path.is_file())
    for secret in (KEY, TWEAK):
        assert secret not in caplog.text
        assert secret.encode() not in stored
    await rig.stub.Detach(pb.DetachRequest(volume_id=volume.id))
    assert await rig.leftovers() == {}


async def test_without_its_keys_an_encrypted_volume_waits_for_the_next_call(rig: DpuRig) -> None:
    volume = await rig.volume("a")
    request = volume.request(encryption=pb.Encryption(key=KEY, tweak_key=TWEAK))
    before = await rig.stub.Attach(request)
    assert rig.attacher is not None
    await rig.attacher.aclose()
    await rig.restart_dpu()
    await rig.start_attacher()

    async def waits() -> bool:
        shown = await rig.stub.Get(pb.GetRequest(volume_id=volume.id))
        return bool(shown.state == pb.ATTACHMENT_STATE_FAILED and "next Attach call" in shown.reason)

    await eventually(waits, "it says what it lacks")
    after = await rig.stub.Attach(request)
    assert (after.function, after.state) == (before.function, pb.ATTACHMENT_STATE_ATTACHED)


async def test_limits_are_set_and_come_back(rig: DpuRig) -> None:
    volume = await rig.volume("a")
    limits = pb.Qos(read_write_iops=5000, read_mb_per_second=20)
    await rig.stub.Attach(volume.request(qos=limits))

    async def limited() -> bool:
        for bdev in await rig.at_dpu.call("bdev_get_bdevs"):
            if bdev["uuid"] == volume.uuid:
                return bool(
                    bdev["assigned_rate_limits"]
                    == {"rw_ios_per_sec": 5000, "rw_mbytes_per_sec": 0, "r_mbytes_per_sec": 20, "w_mbytes_per_sec": 0}
                )
        return False

    assert await limited()
    await rig.restart_dpu()
    await eventually(limited, "the limits are back")
    await eventually_attached(rig, volume.id)
    await rig.stub.Detach(pb.DetachRequest(volume_id=volume.id))
    assert await rig.leftovers() == {}


async def eventually_attached(rig: DpuRig, volume_id: str) -> None:
    async def attached() -> bool:
        return bool((await rig.stub.Get(pb.GetRequest(volume_id=volume_id))).state == pb.ATTACHMENT_STATE_ATTACHED)

    await eventually(attached, f"{volume_id} is attached")


async def test_authentication_with_keys_that_are_rotated(rig: DpuRig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    old, new = _dhchap(1), _dhchap(7)
    volume = await rig.volume("a", admit=False)
    await _admit(rig, volume.nqn, "old", old)
    wrong = volume.request(credentials=pb.Credentials(dhchap_key=new))
    assert await _code(rig.stub.Attach(wrong)) is grpc.StatusCode.UNAVAILABLE
    assert await rig.leftovers() == {}
    await rig.stub.Attach(volume.request(credentials=pb.Credentials(dhchap_key=old)))
    await _target_key(rig, "new", new)
    await rig.at_target.call("nvmf_subsystem_set_keys", {"nqn": volume.nqn, "host": HOST_NQN, "dhchap_key": "new"})
    await rig.stub.Attach(volume.request(credentials=pb.Credentials(dhchap_key=new)))
    names = [key["name"] for key in await rig.at_dpu.call("keyring_get_keys") if not key.get("removed")]
    assert len(names) == 1, "the old key is gone from the keyring"
    await eventually_attached(rig, volume.id)
    for secret in (old, new):
        assert secret not in caplog.text
    await rig.stub.Detach(pb.DetachRequest(volume_id=volume.id))
    assert await rig.leftovers() == {}


async def _target_key(rig: DpuRig, name: str, secret: str) -> None:
    path = rig.directory / f"target-{name}.key"
    path.touch(mode=0o600)
    path.write_text(secret)
    await rig.at_target.call("keyring_file_add_key", {"name": name, "path": str(path)})


async def _admit(rig: DpuRig, nqn: str, name: str, secret: str) -> None:
    await _target_key(rig, name, secret)
    await rig.at_target.call("nvmf_subsystem_add_host", {"nqn": nqn, "host": HOST_NQN, "dhchap_key": name})


PSK = "NVMeTLSkey-1:01:VRLbtnN9AQb2WXW3c9+wEf/DRLz0QuLdbYvEhwtdWwNf9LrZ:"
OTHER_PSK = "NVMeTLSkey-1:01:ozaikZgnKOtM5q2ZVEcW5ZVwB0PjBYf9OLfXLx5oBDpXbUSF:"


async def test_a_tls_key_that_changes_while_connected_is_refused(rig: DpuRig) -> None:
    volume = await rig.volume("a", admit=False)
    await _target_key(rig, "psk", PSK)
    await rig.at_target.call("nvmf_subsystem_add_host", {"nqn": volume.nqn, "host": HOST_NQN, "psk": "psk"})
    address = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": str(free_port())}
    secure = {"nqn": volume.nqn, "listen_address": address, "secure_channel": True}
    await rig.at_target.call("nvmf_subsystem_add_listener", secure)
    volume.ports = (int(address["trsvcid"]),)
    request = volume.request(credentials=pb.Credentials(tls_psk=PSK))
    await rig.stub.Attach(request)
    other = volume.request(credentials=pb.Credentials(tls_psk=OTHER_PSK))
    assert await _code(rig.stub.Attach(other)) is grpc.StatusCode.FAILED_PRECONDITION
    # The same as before, and after a restart of the attacher, which knows no keys then.
    assert (await rig.stub.Attach(request)).state == pb.ATTACHMENT_STATE_ATTACHED
    assert rig.attacher is not None
    await rig.attacher.aclose()
    await rig.start_attacher()
    assert await _code(rig.stub.Attach(other)) is grpc.StatusCode.FAILED_PRECONDITION
    assert (await rig.stub.Attach(request)).state == pb.ATTACHMENT_STATE_ATTACHED
    await rig.stub.Detach(pb.DetachRequest(volume_id=volume.id))
    assert await rig.leftovers() == {}


def _where(vf: int, *, pf: int = 0, vuid: str = "") -> pb.Function:
    return pb.Function(physical_function=pf, virtual_function=vf, vuid=vuid)


async def test_a_function_asked_for_by_name_is_taken_or_refused(rig: DpuRig) -> None:
    volumes = [await rig.volume(f"v{number}") for number in range(4)]
    attached = await rig.stub.Attach(volumes[0].request(function=_where(2)))
    assert attached.function.virtual_function == 2
    # A VUID says more than the numbers.
    attached = await rig.stub.Attach(volumes[1].request(function=_where(1, vuid="TEST0.3")))
    assert attached.function.virtual_function == 3
    before = sorted((await rig.stub.List(pb.ListRequest())).attachments, key=lambda one: one.volume_id)
    third = volumes[2]
    for where, code in (
        (_where(2), grpc.StatusCode.FAILED_PRECONDITION),
        (_where(9), grpc.StatusCode.INVALID_ARGUMENT),
        (_where(1, vuid="unknown"), grpc.StatusCode.INVALID_ARGUMENT),
    ):
        assert await _code(rig.stub.Attach(third.request(function=where))) is code
    assert await _code(rig.stub.Attach(third.request(nsid=1))) is grpc.StatusCode.INVALID_ARGUMENT
    assert await _code(rig.stub.Attach(third.request(function=_where(1), nsid=2))) is grpc.StatusCode.INVALID_ARGUMENT
    # Attached already: there or not there.
    assert (await rig.stub.Attach(volumes[0].request(function=_where(2)))).function.virtual_function == 2
    elsewhere = volumes[0].request(function=_where(1))
    assert await _code(rig.stub.Attach(elsewhere)) is grpc.StatusCode.ALREADY_EXISTS
    after = sorted((await rig.stub.List(pb.ListRequest())).attachments, key=lambda one: one.volume_id)
    assert after == before


async def test_a_function_with_somebody_elses_controller_is_not_given_by_name(rig: DpuRig) -> None:
    volume = await rig.volume("a")
    nqn = "nqn.2026-11.io.dpu-offload:somebody.else"
    place = rig.sockets / "pf0vf1"
    place.mkdir(parents=True)
    await rig.at_dpu.call("nvmf_create_subsystem", {"nqn": nqn})
    address = {"trtype": "VFIOUSER", "traddr": str(place), "trsvcid": "0"}
    await rig.at_dpu.call("nvmf_subsystem_add_listener", {"nqn": nqn, "listen_address": address})
    assert await _code(rig.stub.Attach(volume.request(function=_where(1)))) is grpc.StatusCode.FAILED_PRECONDITION
    assert (await rig.stub.Attach(volume.request())).function.virtual_function == 2


async def test_an_nsid_of_the_shared_controller_is_taken_or_refused(rig: DpuRig) -> None:
    volumes = [await rig.volume(f"v{number}") for number in range(3)]
    first = await rig.stub.Attach(volumes[0].request(function_policy=SHARED, function=_where(2), nsid=7))
    assert (first.function.virtual_function, first.nsid) == (2, 7)
    same = volumes[1].request(function_policy=SHARED, function=_where(2), nsid=7)
    assert await _code(rig.stub.Attach(same)) is grpc.StatusCode.FAILED_PRECONDITION
    own = volumes[1].request(function=_where(2))
    assert await _code(rig.stub.Attach(own)) is grpc.StatusCode.FAILED_PRECONDITION
    second = await rig.stub.Attach(volumes[1].request(function_policy=SHARED))
    assert (second.function.virtual_function, second.nsid) == (2, 8)
    third = await rig.stub.Attach(volumes[2].request(function_policy=SHARED, function=_where(2), nsid=3))
    assert third.nsid == 3
