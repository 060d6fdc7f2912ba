"""Names that the bridge keeps inside SPDK go when what they name is gone, or never came."""

from lab.ports import free_port
from opi_bridge.conformance.client import OpiClient
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
