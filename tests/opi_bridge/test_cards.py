"""The same calls of the OPI API on every card, and what each card's process was told because of them."""

import base64
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

import opi_bridge.app
from dpu_offload_stubs.card.v1 import card_pb2, card_pb2_grpc
from foundation.daemon.running import Daemon
from foundation.daemon.serving import dial
from opi_bridge.config import CardConfig, OpiBridgeConfig, PhysicalFunction, QmpConfig
from opi_bridge.conformance.client import OpiClient, pci
from tests.opi_bridge.fake_cards import FakeCard, IntelNpi, Marvell, Snap3, Snap4
from tests.opi_bridge.fake_qemu import Qemu

NQN = "nqn.2026-11.io.dpu-offload:volume.main.a"
UUID = "11111111-2222-4333-8444-555555555555"
SUBSYSTEM = "nvmeSubsystems/s"
FIXED = [PhysicalFunction(virtual_functions=2)]
CARDS: dict[str, tuple[type[FakeCard], dict[str, Any]]] = {
    "snap4": (Snap4, {"hotplug_functions": 1}),
    "snap3": (Snap3, {}),
    "marvell": (Marvell, {"functions": FIXED}),
    "intel_npi": (IntelNpi, {"functions": FIXED}),
    "qemu": (Qemu, {"functions": FIXED, "qmp": lambda directory: _monitor(directory / "qmp")}),
}


def _monitor(path: Path) -> QmpConfig:
    return QmpConfig(socket=str(path), buses={"pf0vf1": "slot1", "pf0vf2": "slot2"}, wait_seconds=5)


@pytest.fixture(autouse=True)
def every_request_is_valid() -> None:
    """Not SPDK's schema but the fakes judge the requests here: they know their methods' parameters."""


@contextlib.asynccontextmanager
async def bridge(directory: Path, kind: Any, card: FakeCard) -> AsyncIterator[tuple[OpiClient, grpc.aio.Channel]]:
    await card.start(directory / "card.sock")
    options = {key: value(directory) if callable(value) else value for key, value in CARDS[kind][1].items()}
    config = OpiBridgeConfig(
        socket=str(directory / "bridge.sock"),
        spdk=f"unix:{directory / 'card.sock'}",
        card=CardConfig(kind=kind, **options),
        http="",
    )
    try:
        async with Daemon("opi-bridge") as daemon, dial(f"unix:{directory / 'bridge.sock'}", name="bridge") as channel:
            await opi_bridge.app.start(config, daemon)
            api = OpiClient(channel)
            await api.until_ready()
            yield api, channel
    finally:
        await card.stop()


async def make(api: OpiClient, vf: int, *, pf: int = 0, controller_first: bool = False, **spec: Any) -> None:
    await api("CreateNvmeSubsystem", nvme_subsystem_id="s", nvme_subsystem={"spec": {"nqn": NQN, "serial_number": "S"}})
    namespace = {"spec": {"volume_name_ref": "disk0", "host_nsid": 1, "uuid": UUID}}
    controller = {"spec": {"trtype": "NVME_TRANSPORT_TYPE_PCIE", "pcie_id": pci(vf, pf=pf), **spec}}
    calls: list[tuple[str, dict[str, Any]]] = [
        ("CreateNvmeNamespace", {"nvme_namespace_id": "ns1", "nvme_namespace": namespace}),
        ("CreateNvmeController", {"nvme_controller_id": "c1", "nvme_controller": controller}),
    ]
    for method, fields in reversed(calls) if controller_first else calls:
        await api(method, parent=SUBSYSTEM, **fields)


async def unmake(api: OpiClient) -> None:
    for name in ("nvmeNamespaces/ns1", "nvmeControllers/c1"):
        kind = f"N{name[1:].partition('s/')[0]}"
        assert await api.code(f"Delete{kind}", name=f"{SUBSYSTEM}/{name}") == "OK"
    assert await api.code("DeleteNvmeSubsystem", name=SUBSYSTEM) == "OK"


@pytest.mark.parametrize("kind", CARDS)
@pytest.mark.parametrize("controller_first", [False, True])
async def test_every_card_does_what_the_api_says(tmp_path: Path, kind: str, controller_first: bool) -> None:
    card = CARDS[kind][0]()
    async with bridge(tmp_path, kind, card) as (api, channel):
        for _ in range(2):  # twice, which changes nothing
            await make(api, 1, controller_first=controller_first)
        functions = (await card_pb2_grpc.CardStub(channel).ListFunctions(card_pb2.ListFunctionsRequest())).functions
        assert [f.virtual_function for f in functions if f.subsystem_nqn == NQN] == [1]
        shown = await api("GetNvmeNamespace", name=f"{SUBSYSTEM}/nvmeNamespaces/ns1")
        assert (shown["spec"]["uuid"], shown["spec"]["volume_name_ref"]) == (UUID, "disk0")
        other = {"spec": {"nqn": f"{NQN}2"}}
        await api("CreateNvmeSubsystem", nvme_subsystem_id="other", nvme_subsystem=other)
        taken = {"spec": {"trtype": "NVME_TRANSPORT_TYPE_PCIE", "pcie_id": pci(1)}}
        wrong = {"spec": {"trtype": "NVME_TRANSPORT_TYPE_PCIE", "pcie_id": pci(99)}}
        parent = "nvmeSubsystems/other"
        assert await api.code("CreateNvmeController", parent=parent, nvme_controller=taken) == "ALREADY_EXISTS"
        assert await api.code("CreateNvmeController", parent=parent, nvme_controller=wrong) == "INVALID_ARGUMENT"
        assert await api.code("DeleteNvmeSubsystem", name=SUBSYSTEM) == "FAILED_PRECONDITION"
        await api("DeleteNvmeSubsystem", name=parent)
        await unmake(api)
        assert await api("ListNvmeSubsystems") == {}
        assert card.bdevs == {}


@pytest.mark.parametrize(("said", "has"), [([], ["tcp"]), (["tcp", "rdma"], ["tcp", "rdma"])])
async def test_transports_are_the_settings_or_the_cards_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str], has: list[str]
) -> None:
    monkeypatch.setitem(CARDS["marvell"][1], "transports", said)
    async with bridge(tmp_path, "marvell", Marvell()) as (_, channel):
        known = await card_pb2_grpc.CardStub(channel).GetCapabilities(card_pb2.GetCapabilitiesRequest())
        assert list(known.transports) == has


async def test_snap4_shows_a_controller_only_when_it_is_whole(tmp_path: Path) -> None:
    card = Snap4()
    async with bridge(tmp_path, "snap4", card) as (api, channel):
        stub = card_pb2_grpc.CardStub(channel)
        functions = (await stub.ListFunctions(card_pb2.ListFunctionsRequest())).functions
        # A hot-plug function has its VUID before the host has given it an address.
        assert [(f.vuid, f.pci_address, f.hotplug) for f in functions][-1] == ("HP1", "", True)
        assert (await stub.GetCapabilities(card_pb2.GetCapabilitiesRequest())).suspend
        card.log.clear()
        await make(api, 0, pf=1)
        assert [method for method, _ in card.log if method.startswith("nvme_")] == [
            "nvme_subsystem_create",
            "nvme_namespace_create",
            "nvme_controller_create",
            "nvme_controller_attach_ns",
            "nvme_controller_resume",
            "nvme_controller_hotplug",
        ]
        created = next(params for method, params in card.log if method == "nvme_controller_create")
        assert created == {"nqn": NQN, "vuid": "HP1", "suspended": True}
        card.log.clear()
        await unmake(api)
        assert [method for method, _ in card.log if method.startswith("nvme_")] == [
            "nvme_controller_detach_ns",
            "nvme_namespace_destroy",
            "nvme_controller_hotunplug",
            "nvme_controller_destroy",
            "nvme_subsystem_destroy",
        ]


async def test_snap3_puts_onto_a_controller_what_was_made_before_it(tmp_path: Path) -> None:
    card = Snap3()
    async with bridge(tmp_path, "snap3", card) as (api, _):
        await make(api, 1)
        told = [entry for entry in card.log if entry[0].startswith("controller_nvme")]
        assert [method for method, _ in told] == ["controller_nvme_create", "controller_nvme_namespace_attach"]
        assert told[0][1] == {"emulation_manager": "mlx5_0", "nqn": NQN, "pf_id": 0, "vf_id": 0}
        assert told[1][1]["uuid"] == UUID


async def test_marvells_error_inside_a_success_is_an_error(tmp_path: Path) -> None:
    async with bridge(tmp_path, "marvell", Marvell()) as (api, _):
        await api("CreateNvmeSubsystem", nvme_subsystem_id="s", nvme_subsystem={"spec": {"nqn": NQN}})
        namespace = {"spec": {"volume_name_ref": "refused"}}
        assert await api.code("CreateNvmeNamespace", parent=SUBSYSTEM, nvme_namespace=namespace) == "INTERNAL"
        assert "nvme_namespaces" not in await api("ListNvmeNamespaces", parent=SUBSYSTEM)


async def test_intel_limits_a_controller_and_counts_its_admin_queue(tmp_path: Path) -> None:
    card = IntelNpi()
    async with bridge(tmp_path, "intel_npi", card) as (api, _):
        limit = {"max_limit": {"rd_iops_kiops": "2", "wr_bandwidth_mbs": "7"}, "min_limit": {"rd_bandwidth_mbs": "1"}}
        await make(api, 2, max_nsq=4, max_ncq=4, **limit)
        listener = next(params for method, params in card.log if method == "nvmf_subsystem_add_listener")
        assert listener["listen_address"] == {"trtype": "npi", "traddr": "0.2"}
        assert listener["max_qpairs"] == 5
        limits = next(params for method, params in card.log if method == "npi_qos_bw_iops_limit")
        assert (limits["max_read_iops"], limits["max_write_bw"], limits["min_read_bw"]) == (2000, 7, 1)
        read = await api("GetNvmeController", name=f"{SUBSYSTEM}/nvmeControllers/c1")
        assert read["spec"]["max_limit"] == limit["max_limit"]
        await unmake(api)
        await api("CreateNvmeSubsystem", nvme_subsystem_id="s", nvme_subsystem={"spec": {"nqn": NQN}})
        unequal = {"trtype": "NVME_TRANSPORT_TYPE_PCIE", "pcie_id": pci(1), "max_nsq": 4, "max_ncq": 3}
        code = await api.code("CreateNvmeController", parent=SUBSYSTEM, nvme_controller={"spec": unequal})
        assert code == "INVALID_ARGUMENT"


async def test_intel_encrypts_in_the_card(tmp_path: Path) -> None:
    card = IntelNpi()
    uuid = "99999999-2222-4333-8444-555555555555"
    async with bridge(tmp_path, "intel_npi", card) as (api, channel):
        card.bdevs["disk0"] = {"name": "disk0", "product_name": "NVMe disk", "uuid": uuid, "claimed": False}
        key = bytes(range(32))
        body = {"volume_name_ref": "disk0", "cipher": "ENCRYPTION_TYPE_AES_XTS_128"}
        create = {"encrypted_volume_id": "e0", "encrypted_volume": {**body, "key": base64.b64encode(key).decode()}}
        for _ in range(2):
            made = await api("CreateEncryptedVolume", **create)
            assert made == {"name": "encryptedVolumes/e0", **body}
        assert card.keys == {uuid: (key[:16].hex(), key[16:].hex())}
        other = {**body, "key": base64.b64encode(key[::-1]).decode()}
        code = await api.code("CreateEncryptedVolume", encrypted_volume_id="e0", encrypted_volume=other)
        assert code == "ALREADY_EXISTS"
        code = await api.code("CreateEncryptedVolume", encrypted_volume_id="e1", encrypted_volume=other)
        assert code == "FAILED_PRECONDITION"
        await api("CreateNvmeSubsystem", nvme_subsystem_id="s", nvme_subsystem={"spec": {"nqn": NQN}})
        namespace = {"spec": {"volume_name_ref": "encryptedVolumes/e0", "host_nsid": 1}}
        await api("CreateNvmeNamespace", parent=SUBSYSTEM, nvme_namespace_id="ns1", nvme_namespace=namespace)
        assert card.subsystems[NQN]["namespaces"][0]["bdev_name"] == "disk0"
        state = await card_pb2_grpc.CardStub(channel).GetState(card_pb2.GetStateRequest())
        assert list(state.encrypted_volumes) == ["e0"]
        card.bdevs["disk0"]["claimed"] = True
        assert await api.code("DeleteEncryptedVolume", name="volumes/e0") == "FAILED_PRECONDITION"
        card.bdevs["disk0"]["claimed"] = False
        await api("DeleteNvmeNamespace", name=f"{SUBSYSTEM}/nvmeNamespaces/ns1")
        await api("DeleteEncryptedVolume", name="volumes/e0")
        assert card.keys == {}
        assert await api.code("GetEncryptedVolume", name="volumes/e0") == "NOT_FOUND"
        refused = {**body, "key": base64.b64encode(bytes(16) + key[16:]).decode()}
        code = await api.code("CreateEncryptedVolume", encrypted_volume_id="e0", encrypted_volume=refused)
        assert code == "INTERNAL"
        assert await api("ListEncryptedVolumes", parent="volumes") == {}


async def test_qemu_gets_a_controller_with_its_namespace(tmp_path: Path) -> None:
    card = Qemu()
    async with bridge(tmp_path, "qemu", card) as (api, _):
        await make(api, 2, controller_first=True)
        assert list(card.monitor.devices.values()) == [
            {"driver": "nvme", "id": "dpu-port0-pf0-vf2", "bus": "slot2", "drive": "dpu-0-0-2", "serial": "S"}
        ]
        file = {"driver": "file", "filename": str(tmp_path / "disk0.img")}
        assert list(card.monitor.nodes.values()) == [{"driver": "raw", "node-name": "dpu-0-0-2", "file": file}]
        second = {"spec": {"volume_name_ref": "disk1", "host_nsid": 2}}
        assert await api.code("CreateNvmeNamespace", parent=SUBSYSTEM, nvme_namespace=second) == "UNIMPLEMENTED"
        card.monitor.lets_go = False
        name = f"{SUBSYSTEM}/nvmeNamespaces/ns1"
        assert await api.code("DeleteNvmeNamespace", name=name) == "UNAVAILABLE"
        assert card.disks, "the guest still has it"
        card.monitor.lets_go = True
        await unmake(api)
        assert (card.monitor.devices, card.monitor.nodes, card.disks) == ({}, {}, {})


async def test_what_a_dead_spdk_left_in_the_guest_is_replaced(tmp_path: Path) -> None:
    card = Qemu()
    async with bridge(tmp_path, "qemu", card) as (api, _):
        card.monitor.nodes["dpu-0-0-1"] = {"node-name": "dpu-0-0-1"}
        card.monitor.devices["dpu-port0-pf0-vf1"] = {"id": "dpu-port0-pf0-vf1", "drive": "dpu-0-0-1", "serial": "old"}
        await make(api, 1)
        assert card.monitor.devices["dpu-port0-pf0-vf1"]["serial"] == "S"


async def test_a_volume_that_cannot_be_a_block_device_is_no_disk(tmp_path: Path) -> None:
    card = Qemu()
    async with bridge(tmp_path, "qemu", card) as (api, _):
        await api("CreateNvmeSubsystem", nvme_subsystem_id="s", nvme_subsystem={"spec": {"nqn": NQN}})
        body = {"spec": {"volume_name_ref": "refused", "host_nsid": 1}}
        await api("CreateNvmeNamespace", parent=SUBSYSTEM, nvme_namespace_id="ns1", nvme_namespace=body)
        controller = {"spec": {"trtype": "NVME_TRANSPORT_TYPE_PCIE", "pcie_id": pci(1)}}
        assert await api.code("CreateNvmeController", parent=SUBSYSTEM, nvme_controller=controller) == "INTERNAL"
        assert "nvme_controllers" not in await api("ListNvmeControllers", parent=SUBSYSTEM)
        assert card.monitor.devices == {}
