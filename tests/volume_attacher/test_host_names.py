"""Targets that are called by name: names that move, and names that nobody resolves any more."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from dpu_offload_stubs.attacher.v1 import attacher_pb2 as pb
from lab.ports import free_port
from tests.dpu_rig.rig import DpuRig, Volume, eventually

NAME = "storage.example"


class Names:
    """What NAME resolves to; "" for nothing."""

    address = "127.0.0.1"


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    found = Names()
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *more: Any, **options: Any) -> Any:
        if host == NAME:
            if not found.address:
                raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
            host = found.address
        return resolve(host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return found


async def _volume(rig: DpuRig) -> Volume:
    volume = await rig.volume("a")
    volume.addresses = (NAME,)
    return volume


async def test_detaching_needs_no_name_service(rig: DpuRig, names: Names) -> None:
    volume = await _volume(rig)
    await rig.stub.Attach(volume.request())
    names.address = ""
    await rig.stub.Detach(pb.DetachRequest(volume_id=volume.id))
    assert await rig.leftovers() == {}


async def test_detaching_finds_the_path_under_the_address_that_the_name_had(rig: DpuRig, names: Names) -> None:
    volume = await _volume(rig)
    await rig.stub.Attach(volume.request())
    names.address = "127.0.0.2"
    await rig.stub.Detach(pb.DetachRequest(volume_id=volume.id))
    assert await rig.leftovers() == {}


async def test_a_target_that_moves_to_another_address_is_followed(rig: DpuRig, names: Names) -> None:
    volume = await _volume(rig)
    attached = await rig.stub.Attach(volume.request())
    await rig.unlisten(volume, volume.ports[0])
    address = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.2", "trsvcid": str(volume.ports[0])}
    await rig.at_target.call("nvmf_subsystem_add_listener", {"nqn": volume.nqn, "listen_address": address})
    names.address = "127.0.0.2"

    async def followed() -> bool:
        shown = await rig.stub.Get(pb.GetRequest(volume_id=volume.id))
        where = [path.path.address for path in shown.paths]
        return bool(shown.state == pb.ATTACHMENT_STATE_ATTACHED and where == ["127.0.0.2"])

    await eventually(followed, "the volume is reached where its target is now")
    shown = await rig.stub.Get(pb.GetRequest(volume_id=volume.id))
    assert (shown.function, shown.nsid) == (attached.function, attached.nsid)
    await rig.stub.Detach(pb.DetachRequest(volume_id=volume.id))
    assert await rig.leftovers() == {}


async def test_two_names_of_one_address_are_one_path(rig: DpuRig, names: Names) -> None:
    port = free_port()
    volume = await rig.volume("a", ports=(port,))
    volume.ports, volume.addresses = (port, port), (NAME, "127.0.0.1")
    attached = await rig.stub.Attach(volume.request())
    assert attached.state == pb.ATTACHMENT_STATE_ATTACHED
    shown = await rig.stub.Get(pb.GetRequest(volume_id=volume.id))
    assert shown.state == pb.ATTACHMENT_STATE_ATTACHED, shown.reason
    await rig.stub.Detach(pb.DetachRequest(volume_id=volume.id))
    assert await rig.leftovers() == {}
