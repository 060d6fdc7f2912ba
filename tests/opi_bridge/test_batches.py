"""Many resources in one call of the card service."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2

from dpu_offload_stubs.card.v1 import card_pb2 as pb
from dpu_offload_stubs.card.v1 import card_pb2_grpc
from foundation.daemon.serving import dial
from lab.ports import free_port
from opi_bridge.conformance.client import OpiClient
from tests.dpu_rig.rig import HOST_NQN, DpuRig, Volume
from volume_attacher import opi_requests as opi
from volume_attacher.model import Place, Portal

NQN = "nqn.2026-11.io.dpu-offload:volume.batch"


@pytest.fixture
async def card(rig: DpuRig, api: OpiClient) -> AsyncIterator[Any]:
    async with dial(f"unix:{rig.bridge_socket}", name="opi-bridge", deadline=30) as channel:
        yield card_pb2_grpc.CardStub(channel)


def _path(volume: Volume, port: int, *, any_of: bool = True) -> pb.Creation:
    path = opi.path("r", Portal("tcp", "127.0.0.1", port), nqn=volume.nqn, host_nqn=HOST_NQN)
    return opi.creation(path, any_of=any_of)


def _request(volume: Volume, *paths: pb.Creation) -> pb.CreateAllRequest:
    storage = [opi.creation(opi.remote_controller("r")), *paths, pb.Creation(wait=opi.wait("r", 1, volume.uuid))]
    host = [opi.creation(opi.subsystem("s", NQN, serial="S", namespaces=1))]
    then = [
        opi.creation(opi.namespace("s", 1, uuid=volume.uuid, volume="rn1")),
        opi.creation(opi.controller("s", Place(0, 0, 1))),
    ]
    return pb.CreateAllRequest(
        first=[pb.CreationChain(creations=storage), pb.CreationChain(creations=host)],
        then=pb.CreationChain(creations=then),
    )


async def test_all_are_made_and_found_made(rig: DpuRig, card: Any, api: OpiClient) -> None:
    volume = await rig.volume("far")
    away = free_port()
    for _ in range(2):  # twice, which changes nothing
        made = (await card.CreateAll(_request(volume, _path(volume, away), _path(volume, volume.ports[0])))).created
        assert [bool(one.refused) for one in made] == [False, True, False, False, False, False, False]
        assert made[3].namespace.volume == "rn1"
        assert made[3].namespace.size_bytes == 8 << 20
    assert (await api("GetNvmeNamespace", name="nvmeSubsystems/s/nvmeNamespaces/ns1"))["spec"]["uuid"] == volume.uuid


async def _code(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    code: grpc.StatusCode = caught.value.code()
    return code


async def test_a_refusal_ends_its_chain_and_what_comes_after(rig: DpuRig, card: Any, api: OpiClient) -> None:
    volume = await rig.volume("far")
    request = _request(volume, _path(volume, free_port()), _path(volume, free_port()))
    assert await _code(card.CreateAll(request)) is grpc.StatusCode.UNAVAILABLE
    assert (await api("GetNvmeSubsystem", name="nvmeSubsystems/s"))["spec"]["nqn"] == NQN, "the other chain went on"
    assert await api("ListNvmeNamespaces", parent="nvmeSubsystems/s") == {}, "nothing that needs both"


STRANGE = [
    pb.Creation(),
    pb.Creation(create=any_pb2.Any(type_url="type.googleapis.com/opi_api.storage.v1.DeleteNvmePathRequest")),
    pb.Creation(create=any_pb2.Any(type_url="no type")),
    pb.Creation(
        create=any_pb2.Any(type_url="x/opi_api.storage.v1.CreateNvmeSubsystemRequest", value=b"\xff\xff not a message")
    ),
    pb.Creation(options=pb.SetRemoteControllerOptionsRequest(name="Capital")),
    pb.Creation(wait=pb.WaitRemoteNamespaceRequest(remote_controller="nvmeRemoteControllers/r")),
]


@pytest.mark.parametrize("strange", STRANGE)
async def test_an_element_that_means_nothing_is_refused(rig: DpuRig, card: Any, strange: pb.Creation) -> None:
    request = pb.CreateAllRequest(then=pb.CreationChain(creations=[strange]))
    assert await _code(card.CreateAll(request)) is grpc.StatusCode.INVALID_ARGUMENT
    assert await rig.leftovers() == {}


@pytest.mark.parametrize("name", ["", "nvmeSubsystems", "nvmeRemoteNamespaces/a", "nvmeSubsystems/Capital"])
async def test_a_name_of_nothing_that_can_be_deleted_is_refused(card: Any, name: str) -> None:
    request = pb.DeleteAllRequest(first=pb.Chain(names=[name]))
    assert await _code(card.DeleteAll(request)) is grpc.StatusCode.INVALID_ARGUMENT
