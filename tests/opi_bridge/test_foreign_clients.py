"""What other projects' clients send, in their order and with their habits, re-expressed from descriptions of them.

The OPI project's test script sends JSON with ids of its own and takes bare bdev names for volumes; its Python client
leaves out every optional field; a CSI driver built on the API creates remote controller, path, subsystem, controller,
then namespace, in that order, and takes them down backwards.
"""

import base64

import pytest

from opi_bridge.conformance.client import OpiClient, pci
from tests.dpu_rig.rig import DpuRig


async def test_the_opi_projects_script(api: OpiClient, rig: DpuRig) -> None:
    """Create, read and delete each kind; names with the service's own prefix; volumes as `volumes/{id}`."""
    aio = rig.directory / "aio.img"
    with aio.open("wb") as disk:
        disk.truncate(1 << 20)
    disks = {"block_size": 512, "blocks_count": 1024}
    await api("CreateMallocVolume", malloc_volume_id="mallocvolume0", malloc_volume=disks)
    await api("CreateNullVolume", null_volume_id="nullvolume0", null_volume=disks)
    body = {"block_size": 512, "blocks_count": 12, "filename": str(aio)}
    await api("CreateAioVolume", aio_volume_id="aiovolume0", aio_volume=body)
    assert (await api("GetAioVolume", name="//storage.opiproject.org/volumes/aiovolume0"))["filename"] == str(aio)
    assert (await api("GetNullVolume", name="volumes/nullvolume0"))["name"] == "nullVolumes/nullvolume0"
    for kind in ("Malloc", "Null", "Aio"):
        assert len((await api(f"List{kind}Volumes"))[f"{kind.lower()}_volumes"]) == 1
        assert "stats" in await api(f"Stats{kind}Volume", name=f"volumes/{kind.lower()}volume0")

    spec = {"nqn": "nqn.2022-09.io.spdk:opitest1", "serial_number": "myserial1", "model_number": "mymodel1"}
    spec |= {"max_namespaces": "11"}
    await api("CreateNvmeSubsystem", nvme_subsystem={"spec": spec}, nvme_subsystem_id="subsystem1")
    read = await api("GetNvmeSubsystem", name="//storage.opiproject.org/nvmeSubsystems/subsystem1")
    assert read["spec"] == spec
    assert read["status"]["firmware_revision"]
    parent = "nvmeSubsystems/subsystem1"
    volume = {"spec": {"volume_name_ref": "mallocvolume0", "host_nsid": 1}}
    await api("CreateNvmeNamespace", parent=parent, nvme_namespace=volume, nvme_namespace_id="namespace1")
    endpoint = {"spec": {"pcie_id": pci(2), "trtype": "NVME_TRANSPORT_TYPE_PCIE", "nvme_controller_id": 2}}
    await api("CreateNvmeController", parent=parent, nvme_controller=endpoint, nvme_controller_id="controller1")
    for kind, identifier in (("Namespace", "namespace1"), ("Controller", "controller1")):
        name = f"{parent}/nvme{kind}s/{identifier}"
        assert (await api(f"GetNvme{kind}", name=name))["name"] == name
    await api("DeleteNvmeNamespace", name=f"{parent}/nvmeNamespaces/namespace1")
    await api("DeleteNvmeController", name=f"{parent}/nvmeControllers/controller1")
    await api("DeleteNvmeSubsystem", name=parent)

    key = {"key": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWU=", "cipher": "ENCRYPTION_TYPE_AES_XTS_128"}
    encrypted = {"volume_name_ref": "volumes/mallocvolume0", **key}
    await api("CreateEncryptedVolume", encrypted_volume_id="encrypted0", encrypted_volume=encrypted)
    assert (await api("ListEncryptedVolumes", parent="volumes"))["encrypted_volumes"][0]["volume_name_ref"]
    await api("DeleteEncryptedVolume", name="volumes/encrypted0")
    blk = {"pcie_id": pci(4), "volume_name_ref": "mallocvolume0"}
    await api("CreateVirtioBlk", virtio_blk_id="virtioblk0", virtio_blk=blk)
    await api("DeleteVirtioBlk", name="virtioBlks/virtioblk0")
    for kind in ("Malloc", "Null", "Aio"):
        await api(f"Delete{kind}Volume", name=f"volumes/{kind.lower()}volume0")
    assert await rig.leftovers() == {}


async def test_a_csi_driver_that_makes_the_namespace_last(api: OpiClient, rig: DpuRig) -> None:
    far = await rig.volume("far")
    remote, subsystem = "nvmeRemoteControllers/nvmetcp12", "nvmeSubsystems/subsys12"
    await api(
        "CreateNvmeRemoteController",
        nvme_remote_controller_id="nvmetcp12",
        nvme_remote_controller={"multipath": "NVME_MULTIPATH_MULTIPATH"},
    )
    fabrics = {"trsvcid": str(far.ports[0]), "subnqn": far.nqn, "adrfam": "NVME_ADDRESS_FAMILY_IPV4"}
    path = {"trtype": "NVME_TRANSPORT_TYPE_TCP", "traddr": "127.0.0.1", "fabrics": fabrics}
    # It sends no host NQN of its own, so the target must admit whichever SPDK makes up.
    await rig.at_target.call("nvmf_subsystem_allow_any_host", {"nqn": far.nqn, "allow_any_host": True})
    made = await api("CreateNvmePath", parent=remote, nvme_path=path)
    await api("CreateNvmeSubsystem", nvme_subsystem_id="subsys12", nvme_subsystem={"spec": {"nqn": far.nqn}})
    endpoint = {"spec": {"pcie_id": pci(5), "trtype": "NVME_TRANSPORT_TYPE_PCIE"}}
    controller = await api("CreateNvmeController", parent=subsystem, nvme_controller=endpoint)
    # It refers to the volume by its uuid, which SPDK takes for a name.
    body = {"spec": {"volume_name_ref": far.uuid, "host_nsid": 29}}
    namespace = await api("CreateNvmeNamespace", parent=subsystem, nvme_namespace=body)
    for kind, name in (("Namespace", namespace["name"]), ("Controller", controller["name"])):
        await api(f"DeleteNvme{kind}", name=name)
    await api("DeleteNvmeSubsystem", name=subsystem)
    await api("DeleteNvmePath", name=made["name"])
    await api("DeleteNvmeRemoteController", name=remote)
    assert await rig.leftovers() == {}


async def test_messages_with_nothing_optional(api: OpiClient, rig: DpuRig) -> None:
    """Ids made by the server, everything found again by listing."""
    await api("CreateNvmeSubsystem", nvme_subsystem={"spec": {"nqn": "nqn.2022-09.io.spdk:bare"}})
    (subsystem,) = (await api("ListNvmeSubsystems"))["nvme_subsystems"]
    await api("CreateMallocVolume", malloc_volume={"block_size": 4096, "blocks_count": 256})
    (volume,) = (await api("ListMallocVolumes"))["malloc_volumes"]
    namespace = {"spec": {"volume_name_ref": volume["name"]}}
    await api("CreateNvmeNamespace", parent=subsystem["name"], nvme_namespace=namespace)
    (shown,) = (await api("ListNvmeNamespaces", parent=subsystem["name"]))["nvme_namespaces"]
    assert shown["spec"]["host_nsid"] == 1
    for kind, name in (("NvmeNamespace", shown["name"]), ("NvmeSubsystem", subsystem["name"])):
        await api(f"Delete{kind}", name=name)
    await api("DeleteMallocVolume", name=volume["name"])
    assert await rig.leftovers() == {}


async def test_keys_are_nowhere_to_be_read(
    api: OpiClient, rig: DpuRig, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("DEBUG")
    await api("CreateMallocVolume", malloc_volume_id="m0", malloc_volume={"block_size": 512, "blocks_count": 2048})
    key = bytes(range(100, 132))
    body = {"volume_name_ref": "m0", "cipher": "ENCRYPTION_TYPE_AES_XTS_128"}
    body["key"] = base64.b64encode(key).decode()
    made = await api("CreateEncryptedVolume", encrypted_volume_id="e0", encrypted_volume=body)
    assert await api.code("CreateEncryptedVolume", encrypted_volume_id="e0", encrypted_volume=body) == "OK"
    read = await api("GetEncryptedVolume", name="volumes/e0")
    assert "key" not in made
    assert "key" not in read
    wrong = {**body, "key": base64.b64encode(key[:20]).decode()}
    assert (
        await api.code("CreateEncryptedVolume", encrypted_volume_id="e1", encrypted_volume=wrong) == "INVALID_ARGUMENT"
    )
    told = caplog.text + "".join(capfd.readouterr())
    for form in (key.hex(), key[:16].hex(), key[16:].hex(), body["key"]):
        assert form not in told
    await api("DeleteEncryptedVolume", name="volumes/e0")
    await api("DeleteMallocVolume", name="volumes/m0")
    assert await rig.leftovers() == {}
