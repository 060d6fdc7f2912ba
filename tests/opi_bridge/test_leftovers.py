"""Names that the bridge keeps inside SPDK go when what they name is gone, or never came."""

from typing import Any

import grpc
import pytest

from lab.ports import free_port
from opi_bridge.conformance.client import OpiClient, Refused, pci
from tests.dpu_rig.rig import DpuRig

NQN = "nqn.2026-11.io.dpu-offload:left"
REMOTE, SUBSYSTEM = "nvmeRemoteControllers/r0", "nvmeSubsystems/s0"


async def _entries(rig: DpuRig) -> list[str]:
    return [bdev["name"] for bdev in await rig.at_dpu.call("bdev_get_bdevs") if bdev["name"].startswith("opi/")]


async def test_a_path_that_could_not_be_opened_leaves_no_name_behind(rig: DpuRig, api: OpiClient) -> None:
    remote = {"multipath": "NVME_MULTIPATH_MULTIPATH"}
    await api("CreateNvmeRemoteController", nvme_remote_controller_id="r0", nvme_remote_controller=remote)
    before = await _entries(rig)
    fabrics = {"trsvcid": str(free_port()), "subnqn": NQN}
    path = {"trtype": "NVME_TRANSPORT_TYPE_TCP", "traddr": "127.0.0.1", "fabrics": fabrics}
    assert await api.code("CreateNvmePath", parent=REMOTE, nvme_path_id="p0", nvme_path=path) == "UNAVAILABLE"
    assert await _entries(rig) == before
    await api("DeleteNvmeRemoteController", name=REMOTE)
    assert await _entries(rig) == []


async def test_a_namespace_that_went_with_its_volume_takes_its_name_along(rig: DpuRig, api: OpiClient) -> None:
    volume = {"block_size": 512, "blocks_count": 4096}
    await api("CreateMallocVolume", malloc_volume_id="m0", malloc_volume=volume)
    spec = {"nqn": NQN, "max_namespaces": "4"}
    await api("CreateNvmeSubsystem", nvme_subsystem_id="s0", nvme_subsystem={"spec": spec})
    namespace = {"spec": {"volume_name_ref": "m0", "host_nsid": 1}}
    await api("CreateNvmeNamespace", parent=SUBSYSTEM, nvme_namespace_id="disk", nvme_namespace=namespace)
    await rig.at_dpu.call("bdev_malloc_delete", {"name": "m0"})
    await api("DeleteNvmeSubsystem", name=SUBSYSTEM)
    assert await _entries(rig) == []


async def test_what_others_named_is_listed_only_if_it_can_be_got(rig: DpuRig, api: OpiClient) -> None:
    for name in ("m0", "M1"):
        await rig.at_dpu.call("bdev_malloc_create", {"name": name, "num_blocks": 4096, "block_size": 512})
        await rig.at_dpu.call("vhost_create_blk_controller", {"ctrlr": f"{name}x", "dev_name": name})
    for number, name in enumerate(("c0", "C1")):
        key = {"cipher": "AES_XTS", "key": "0" * 32, "key2": f"{number + 1:032x}", "name": f"k{number}"}
        await rig.at_dpu.call("accel_crypto_key_create", key)
        base = {"name": f"b{number}", "num_blocks": 4096, "block_size": 512}
        await rig.at_dpu.call("bdev_malloc_create", base)
        crypto = {"base_bdev_name": f"b{number}", "name": name, "key_name": f"k{number}"}
        await rig.at_dpu.call("bdev_crypto_create", crypto)
    listed = await api("ListVirtioBlks")
    assert [one["name"] for one in listed["virtio_blks"]] == ["virtioBlks/m0x"]
    encrypted = (await api("ListEncryptedVolumes", parent="volumes"))["encrypted_volumes"]
    assert [one["name"] for one in encrypted] == ["encryptedVolumes/c0"]
    assert await api("GetVirtioBlk", name="virtioBlks/m0x") == listed["virtio_blks"][0]
    uuid = (await rig.at_dpu.call("bdev_get_bdevs", {"name": "c0"}))[0]["uuid"]
    assert await api.code("DeleteEncryptedVolume", name=f"encryptedVolumes/{uuid}") == "NOT_FOUND"


def _on(vf: int) -> dict[str, Any]:
    return {"spec": {"trtype": "NVME_TRANSPORT_TYPE_PCIE", "pcie_id": pci(vf)}}


async def test_a_file_where_a_functions_directory_belongs_is_said_and_harms_nothing(
    rig: DpuRig, api: OpiClient
) -> None:
    await api("CreateNvmeSubsystem", nvme_subsystem_id="s0", nvme_subsystem={"spec": {"nqn": NQN}})
    rig.sockets.mkdir()
    (rig.sockets / "pf0vf1").write_text("in the way")
    create = {"parent": SUBSYSTEM, "nvme_controller_id": "c0", "nvme_controller": _on(1)}
    with pytest.raises(Refused, match=r"ALREADY_EXISTS.*pf0vf1") as caught:
        await api("CreateNvmeController", **create)
    assert caught.value.code is grpc.StatusCode.ALREADY_EXISTS
    assert (rig.sockets / "pf0vf1").read_text() == "in the way"
    await api("DeleteNvmeController", name=f"{SUBSYSTEM}/nvmeControllers/port0-pf0-vf1", allow_missing=True)
    await api("DeleteNvmeSubsystem", name=SUBSYSTEM)
    assert await _entries(rig) == []


async def test_a_strangers_file_beside_a_functions_socket_stays_and_holds_nothing_up(
    rig: DpuRig, api: OpiClient
) -> None:
    await api("CreateNvmeSubsystem", nvme_subsystem_id="s0", nvme_subsystem={"spec": {"nqn": NQN}})
    await api("CreateNvmeController", parent=SUBSYSTEM, nvme_controller_id="c0", nvme_controller=_on(1))
    (rig.sockets / "pf0vf1" / "note").write_text("mine")
    await api("DeleteNvmeController", name=f"{SUBSYSTEM}/nvmeControllers/c0")
    assert [path.name for path in (rig.sockets / "pf0vf1").iterdir()] == ["note"]
    await api("DeleteNvmeSubsystem", name=SUBSYSTEM)
    assert await _entries(rig) == []
