"""The attacher over a bridge which serves the OPI services alone: functions from configuration, looks on a beat."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dpu_offload_stubs.attacher.v1 import attacher_pb2 as pb
from dpu_offload_stubs.card.v1 import card_pb2_grpc
from lab.ports import free_port
from tests.dpu_rig.rig import DpuRig, Pair, eventually
from volume_attacher.config import FunctionConfig

KEYS = pb.Encryption(key="00112233445566778899aabbccddeeff", tweak_key="ffeeddccbbaa99887766554433221100")


@pytest.fixture
async def rig(tmp_path: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DpuRig]:
    monkeypatch.setattr(card_pb2_grpc, "add_CardServicer_to_server", lambda _servicer, _server: None)
    functions = tuple(FunctionConfig(virtual_function=number, vuid=f"V{number}") for number in (1, 2))
    rig = DpuRig(tmp_path, pair, attacher_options={"functions": functions, "poll_seconds": 0.1})
    await rig.start()
    yield rig
    await rig.stop()


async def test_attach_restore_and_detach(rig: DpuRig) -> None:
    volume = await rig.volume("a", ports=(free_port(), free_port()))
    attached = await rig.stub.Attach(volume.request(encryption=KEYS, qos=pb.Qos(read_write_iops=5000)))
    assert (attached.state, attached.function.vuid) == (pb.ATTACHMENT_STATE_ATTACHED, "V1")
    async with rig.guest(attached)() as guest:
        await guest.until(lambda g: 1 in g.namespaces)
        assert guest.namespaces[1]["uuid"] == volume.uuid
        assert guest.namespaces[1]["encrypted"]
    await rig.restart_dpu()

    async def back() -> bool:
        return (rig.sockets / "pf0vf1" / "cntrl").is_socket() and bool(
            (await rig.stub.Get(pb.GetRequest(volume_id=volume.id))).state == pb.ATTACHMENT_STATE_ATTACHED
        )

    await eventually(back, "the volume is back")
    await rig.stub.Detach(pb.DetachRequest(volume_id=volume.id))
    assert await rig.leftovers() == {}


async def test_one_path_of_two_is_enough(rig: DpuRig) -> None:
    volume = await rig.volume("a")
    volume.ports, volume.addresses = (free_port(), *volume.ports), ("127.0.0.1", *volume.addresses)
    attached = await rig.stub.Attach(volume.request())
    assert attached.state == pb.ATTACHMENT_STATE_DEGRADED
    await rig.stub.Detach(pb.DetachRequest(volume_id=volume.id))
    assert await rig.leftovers() == {}
