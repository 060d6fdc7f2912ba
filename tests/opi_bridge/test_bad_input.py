"""Requests that cannot be carried out: the code says why, and nothing has changed."""

import asyncio
import base64
from typing import Any

import grpc.aio
import pytest

from dpu_offload_stubs.card.v1 import card_pb2, card_pb2_grpc
from foundation.daemon.serving import dial
from opi_bridge.conformance.client import OpiClient, pci
from tests.dpu_rig.rig import DpuRig

NQN = "nqn.2026-11.io.dpu-offload:bad."
SUBSYSTEM, REMOTE = "nvmeSubsystems/s0", "nvmeRemoteControllers/r0"
PCIE = "NVME_TRANSPORT_TYPE_PCIE"
XTS_128, XTS_256 = "ENCRYPTION_TYPE_AES_XTS_128", "ENCRYPTION_TYPE_AES_XTS_256"


@pytest.fixture
async def bridge(rig: DpuRig, api: OpiClient) -> OpiClient:
    """With a free disk, one that is a namespace on a function, and a remote controller without paths."""
    for disk in ("free", "used"):
        await api("CreateMallocVolume", malloc_volume_id=disk, malloc_volume={"block_size": 512, "blocks_count": 4096})
    for number in (0, 1):
        spec = {"nqn": f"{NQN}{number}", "max_namespaces": "4"}
        await api("CreateNvmeSubsystem", nvme_subsystem_id=f"s{number}", nvme_subsystem={"spec": spec})
    await api("CreateNvmeNamespace", parent=SUBSYSTEM, nvme_namespace_id="n1", nvme_namespace=_namespace("used", 1))
    await api("CreateNvmeController", parent=SUBSYSTEM, nvme_controller_id="c1", nvme_controller=_controller(1))
    await api("CreateNvmeRemoteController", nvme_remote_controller_id="r0", nvme_remote_controller=_remote())
    return api


def _namespace(volume: str, nsid: int, **more: Any) -> dict[str, Any]:
    return {"spec": {"volume_name_ref": volume, "host_nsid": nsid, **more}}


def _controller(vf: int, **more: Any) -> dict[str, Any]:
    return {"spec": {"trtype": PCIE, "pcie_id": pci(vf), **more}}


def _remote(**more: Any) -> dict[str, Any]:
    return {"multipath": "NVME_MULTIPATH_MULTIPATH", **more}


def _path(address: str = "127.0.0.1", port: int = 4420, **more: Any) -> dict[str, Any]:
    fabrics = {"trsvcid": str(port), "subnqn": f"{NQN}far", **more}
    return {"trtype": "NVME_TRANSPORT_TYPE_TCP", "traddr": address, "fabrics": fabrics}


def _encrypted(volume: str, cipher: str, key: bytes) -> dict[str, Any]:
    return {"volume_name_ref": volume, "cipher": cipher, "key": base64.b64encode(key).decode()}


def _qos(volume: str = "free", **limits: Any) -> dict[str, Any]:
    return {"volume_name_ref": volume, "limits": limits}


def _bytes(length: int) -> bytes:
    return bytes(range(length))


def _at(name: str, body: dict[str, Any], mask: str) -> dict[str, Any]:
    return {"nvme_subsystem": {"name": name, **body}, "update_mask": mask}


BAD, MISSING, STATE, CANNOT = "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "UNIMPLEMENTED"
CASES: list[tuple[str, dict[str, Any], str]] = [
    # Parents that are not there, or no parents.
    ("CreateNvmeNamespace", {"parent": "nvmeSubsystems/no", "nvme_namespace": _namespace("free", 1)}, MISSING),
    ("CreateNvmeController", {"parent": "nvmeSubsystems/no", "nvme_controller": _controller(2)}, MISSING),
    ("CreateNvmePath", {"parent": "nvmeRemoteControllers/no", "nvme_path": _path()}, MISSING),
    ("CreateNvmeNamespace", {"parent": REMOTE, "nvme_namespace": _namespace("free", 1)}, BAD),
    ("CreateNvmePath", {"parent": "", "nvme_path": _path()}, BAD),
    ("ListNvmePaths", {"parent": "nvmeRemoteControllers/no"}, MISSING),
    # NSIDs, and volumes that cannot be namespaces.
    ("CreateNvmeNamespace", {"parent": SUBSYSTEM, "nvme_namespace": _namespace("free", -1)}, BAD),
    ("CreateNvmeNamespace", {"parent": SUBSYSTEM, "nvme_namespace": _namespace("free", 5)}, BAD),
    ("CreateNvmeNamespace", {"parent": SUBSYSTEM, "nvme_namespace": _namespace("free", 1)}, "ALREADY_EXISTS"),
    ("CreateNvmeNamespace", {"parent": SUBSYSTEM, "nvme_namespace": _namespace("used", 2)}, STATE),
    ("CreateNvmeNamespace", {"parent": "nvmeSubsystems/s1", "nvme_namespace": _namespace("used", 1)}, STATE),
    ("CreateNvmeNamespace", {"parent": SUBSYSTEM, "nvme_namespace": _namespace("no", 2)}, MISSING),
    ("CreateNvmeNamespace", {"parent": SUBSYSTEM, "nvme_namespace": _namespace("", 2)}, BAD),
    ("CreateNvmeNamespace", {"parent": SUBSYSTEM, "nvme_namespace": _namespace("free", 2, uuid="x")}, BAD),
    ("CreateNvmeNamespace", {"parent": SUBSYSTEM, "nvme_namespace": _namespace("free", 2, nguid="12")}, BAD),
    ("GetNvmeNamespace", {"name": f"{SUBSYSTEM}/nvmeNamespaces/ns0"}, MISSING),
    ("DeleteNvmeNamespace", {"name": f"{SUBSYSTEM}/nvmeNamespaces/ns0"}, MISSING),
    ("DeleteMallocVolume", {"name": "mallocVolumes/used"}, STATE),
    # Functions.
    ("CreateNvmeController", {"parent": "nvmeSubsystems/s1", "nvme_controller": _controller(1)}, "ALREADY_EXISTS"),
    ("CreateNvmeController", {"parent": SUBSYSTEM, "nvme_controller": _controller(9)}, BAD),
    ("CreateNvmeController", {"parent": SUBSYSTEM, "nvme_controller": _controller(-1)}, BAD),
    ("CreateNvmeController", {"parent": SUBSYSTEM, "nvme_controller": {"spec": {"trtype": PCIE}}}, BAD),
    ("CreateNvmeController", {"parent": SUBSYSTEM, "nvme_controller": _controller(2, max_nsq=70000)}, BAD),
    ("CreateNvmeController", {"parent": SUBSYSTEM, "nvme_controller": _controller(2, sqes=-1)}, BAD),
    (
        "CreateNvmeController",
        {"parent": SUBSYSTEM, "nvme_controller": _controller(2, max_limit={"rw_iops_kiops": "1"})},
        CANNOT,
    ),
    ("CreateVirtioBlk", {"virtio_blk": {"pcie_id": pci(99), "volume_name_ref": "free"}}, BAD),
    ("CreateVirtioBlk", {"virtio_blk": {"pcie_id": pci(2), "volume_name_ref": "used"}}, STATE),
    ("CreateVirtioBlk", {"virtio_blk": {"pcie_id": pci(2), "volume_name_ref": "no"}}, MISSING),
    ("DeleteNvmeSubsystem", {"name": SUBSYSTEM}, STATE),
    # Ciphers and keys.
    ("CreateEncryptedVolume", {"encrypted_volume": _encrypted("free", XTS_128, _bytes(31))}, BAD),
    ("CreateEncryptedVolume", {"encrypted_volume": _encrypted("free", XTS_128, _bytes(64))}, BAD),
    ("CreateEncryptedVolume", {"encrypted_volume": _encrypted("free", XTS_256, _bytes(32))}, BAD),
    ("CreateEncryptedVolume", {"encrypted_volume": _encrypted("free", XTS_128, bytes(32))}, BAD),
    ("CreateEncryptedVolume", {"encrypted_volume": _encrypted("free", XTS_128, b"")}, BAD),
    ("CreateEncryptedVolume", {"encrypted_volume": {"volume_name_ref": "free", "key": "AAAA"}}, BAD),
    ("CreateEncryptedVolume", {"encrypted_volume": _encrypted("free", "ENCRYPTION_TYPE_AES_CBC_128", _bytes(17))}, BAD),
    (
        "CreateEncryptedVolume",
        {"encrypted_volume": _encrypted("free", "ENCRYPTION_TYPE_AES_CBC_128", _bytes(16))},
        CANNOT,
    ),
    ("CreateEncryptedVolume", {"encrypted_volume": _encrypted("used", XTS_128, _bytes(32))}, STATE),
    ("CreateEncryptedVolume", {"encrypted_volume": _encrypted("no", XTS_128, _bytes(32))}, MISSING),
    # Limits.
    ("CreateQosVolume", {"qos_volume": _qos(max={"rw_iops_kiops": str(2**62)})}, BAD),
    ("CreateQosVolume", {"qos_volume": _qos(max={"rw_bandwidth_mbs": str(2**50)})}, BAD),
    ("CreateQosVolume", {"qos_volume": _qos()}, BAD),
    ("CreateQosVolume", {"qos_volume": _qos(max={"rw_iops_kiops": "-1"})}, BAD),
    ("CreateQosVolume", {"qos_volume": _qos(min={"rw_iops_kiops": "1"})}, CANNOT),
    ("CreateQosVolume", {"qos_volume": _qos(max={"rd_iops_kiops": "1"})}, CANNOT),
    ("CreateQosVolume", {"qos_volume": _qos("no", max={"rw_iops_kiops": "1"})}, MISSING),
    # Remote ends.
    ("CreateNvmeRemoteController", {"nvme_remote_controller": {}}, BAD),
    ("CreateNvmeRemoteController", {"nvme_remote_controller": _remote(io_queues_count="-1")}, BAD),
    ("CreateNvmePath", {"parent": REMOTE, "nvme_path": _path("storage.example.org")}, BAD),
    ("CreateNvmePath", {"parent": REMOTE, "nvme_path": _path(port=0)}, BAD),
    ("CreateNvmePath", {"parent": REMOTE, "nvme_path": _path(port=65536)}, BAD),
    ("CreateNvmePath", {"parent": REMOTE, "nvme_path": _path(subnqn="no nqn")}, BAD),
    ("CreateNvmePath", {"parent": REMOTE, "nvme_path": _path(adrfam="NVME_ADDRESS_FAMILY_IPV6")}, BAD),
    ("CreateNvmePath", {"parent": REMOTE, "nvme_path": {"trtype": "NVME_TRANSPORT_TYPE_FC", "traddr": "x"}}, BAD),
    # Masks.
    ("UpdateNvmeSubsystem", _at(SUBSYSTEM, {"spec": {"nqn": NQN}}, "noSuchField"), BAD),
    ("UpdateNvmeSubsystem", _at(SUBSYSTEM, {"spec": {"nqn": NQN}}, "spec.nope"), BAD),
    ("UpdateNvmeSubsystem", _at(SUBSYSTEM, {"spec": {"nqn": NQN}}, "spec.nqn.deeper"), BAD),
    ("UpdateNvmeSubsystem", _at(SUBSYSTEM, {"spec": {"nqn": f"{NQN}other"}}, "spec.nqn"), STATE),
    ("UpdateNvmeSubsystem", _at(SUBSYSTEM, {}, "*"), BAD),
    ("UpdateNvmeSubsystem", _at("nvmeSubsystems/no", {"spec": {"nqn": f"{NQN}x"}}, "spec.nqn"), MISSING),
]


async def _everything(rig: DpuRig) -> list[Any]:
    methods = ("bdev_get_bdevs", "nvmf_get_subsystems", "bdev_nvme_get_controllers", "keyring_get_keys")
    methods += ("accel_crypto_keys_get", "vhost_get_controllers")
    return list(await asyncio.gather(*(rig.at_dpu.call(method) for method in methods)))


async def test_each_is_refused_with_its_code_and_nothing_changes(rig: DpuRig, bridge: OpiClient) -> None:
    before = await _everything(rig)
    for method, fields, code in CASES:
        assert await bridge.code(method, **fields) == code, f"{method} {fields}"
        assert await _everything(rig) == before, f"{method} {fields} has changed something"


async def test_a_page_token_fits_its_own_list_only(bridge: OpiClient) -> None:
    page = await bridge("ListNvmeSubsystems", page_size=1)
    token = page["next_page_token"]
    assert len((await bridge("ListNvmeSubsystems", page_token=token))["nvme_subsystems"]) == 1
    for method, fields in (
        ("ListMallocVolumes", {}),
        ("ListNvmeNamespaces", {"parent": SUBSYSTEM}),
        ("ListNvmeSubsystems", {"page_token": f"{token}AA"}),
        ("ListNvmeSubsystems", {"page_token": token[:-2]}),
    ):
        assert await bridge.code(method, **{"page_token": token, **fields}) == BAD


HUGE = "x" * (10 << 20)
LARGE: list[tuple[str, dict[str, Any]]] = [
    ("CreateNvmeSubsystem", {"nvme_subsystem": {"spec": {"nqn": NQN + HUGE}}}),
    ("CreateNvmeNamespace", {"parent": SUBSYSTEM, "nvme_namespace": _namespace(HUGE, 2)}),
    ("CreateAioVolume", {"aio_volume": {"block_size": "512", "filename": f"/{HUGE}"}}),
    ("GetNvmeSubsystem", {"name": HUGE}),
    ("ListNvmeSubsystems", {"page_token": HUGE}),
]


async def test_ten_megabytes_are_refused_and_change_nothing(rig: DpuRig, bridge: OpiClient) -> None:
    before = await _everything(rig)
    for method, fields in LARGE:
        assert await bridge.code(method, **fields) == "RESOURCE_EXHAUSTED", method
    async with dial(f"unix:{rig.bridge_socket}", name="opi-bridge", deadline=30) as channel:
        card: Any = card_pb2_grpc.CardStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await card.DeleteAll(card_pb2.DeleteAllRequest(first=card_pb2.Chain(names=[HUGE])))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await _everything(rig) == before


async def test_half_a_megabyte_of_a_name_is_too_much_for_the_card(rig: DpuRig, bridge: OpiClient) -> None:
    """It passes gRPC, and would be over what SPDK reads at once."""
    before = await _everything(rig)
    fields = {"aio_volume": {"block_size": "512", "filename": "/" + "x" * (1 << 19)}}
    assert await bridge.code("CreateAioVolume", **fields) == BAD
    assert await _everything(rig) == before
