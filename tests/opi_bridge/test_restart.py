"""The bridge keeps nothing: a second one, or the same after SPDK's restart, tells the same."""

from foundation.daemon.serving import dial
from lab.ports import free_port
from opi_bridge.conformance.client import OpiClient, pci
from tests.dpu_rig.rig import DpuRig

NQN = "nqn.2014-08.org.nvmexpress:uuid:1b4e28ba-2fa1-11d2-883f-b9a761bde3fb"


async def _everything(api: OpiClient) -> dict[str, object]:
    result: dict[str, object] = {}
    for method in api.methods:
        if method.startswith("List"):
            parent = {}
            if method in ("ListNvmeControllers", "ListNvmeNamespaces"):
                parent = {"parent": "nvmeSubsystems/-"}
            elif method in ("ListNvmePaths", "ListNvmeRemoteNamespaces"):
                parent = {"parent": "nvmeRemoteControllers/-"}
            result[method] = await api(method, **parent)
    return result


async def test_a_new_bridge_tells_what_the_last_one_told(rig: DpuRig, api: OpiClient) -> None:
    remote = await rig.volume("far")
    await api(
        "CreateNvmeRemoteController",
        nvme_remote_controller_id="opi-nvme8",
        nvme_remote_controller={"multipath": "NVME_MULTIPATH_FAILOVER", "queue_size": "32", "tcp": {"ddgst": True}},
    )
    await api("CreateNvmeRemoteController", nvme_remote_controller={"multipath": "NVME_MULTIPATH_DISABLE"})
    await api(
        "CreateNvmePath",
        parent="nvmeRemoteControllers/opi-nvme8",
        nvme_path_id="way-one",
        nvme_path={
            "trtype": "NVME_TRANSPORT_TYPE_TCP",
            "traddr": "127.0.0.1",
            "fabrics": {
                "trsvcid": str(remote.ports[0]),
                "subnqn": remote.nqn,
                "hostnqn": "nqn.2026-11.io.dpu-offload:host.dpu-1",
            },
        },
    )
    disk = {"block_size": 512, "blocks_count": 16384}
    await api("CreateMallocVolume", malloc_volume_id="opi-malloc", malloc_volume=disk)
    await api("CreateNvmeSubsystem", nvme_subsystem_id="subsystem0", nvme_subsystem={"spec": {"nqn": NQN}})
    parent = "nvmeSubsystems/subsystem0"
    for identifier, volume, nsid in (("near", "opi-malloc", 7), ("far", "volumes/opi-nvme8n1", 0)):
        await api(
            "CreateNvmeNamespace",
            parent=parent,
            nvme_namespace_id=identifier,
            nvme_namespace={"spec": {"volume_name_ref": volume, "host_nsid": nsid}},
        )
    spec = {"trtype": "NVME_TRANSPORT_TYPE_PCIE", "pcie_id": pci(3), "nvme_controller_id": 17, "max_nsq": 4}
    await api("CreateNvmeController", parent=parent, nvme_controller_id="front", nvme_controller={"spec": spec})
    tcp = {"trtype": "NVME_TRANSPORT_TYPE_TCP", "fabrics_id": {"traddr": "127.0.0.1", "trsvcid": str(free_port())}}
    assert await api.code("CreateNvmeController", parent=parent, nvme_controller={"spec": tcp}) == "FAILED_PRECONDITION"
    limits = {"volume_name_ref": "opi-malloc", "limits": {"max": {"rw_bandwidth_mbs": "5"}}}
    await api("CreateQosVolume", qos_volume_id="slow", qos_volume=limits)
    before = await _everything(api)
    assert rig.bridge is not None
    await rig.bridge.aclose()
    await rig.start_bridge()
    async with dial(f"unix:{rig.bridge_socket}", name="opi-bridge") as channel:
        fresh = OpiClient(channel)
        await fresh.until_ready()
        assert await _everything(fresh) == before
        read = await fresh("GetNvmePath", name="nvmeRemoteControllers/opi-nvme8/nvmePaths/way-one")
        assert read["fabrics"]["subnqn"] == remote.nqn
        spaces = await fresh("ListNvmeRemoteNamespaces", parent="nvmeRemoteControllers/opi-nvme8")
        assert [one["uuid"] for one in spaces["nvme_remote_namespaces"]] == [remote.uuid]
        # The names still work, in every way in which a client may leave.
        path = "nvmeRemoteControllers/opi-nvme8/nvmePaths/way-one"
        assert await fresh.code("DeleteNvmePath", name=path) == "FAILED_PRECONDITION"
        for identifier in ("near", "far"):
            assert await fresh.code("DeleteNvmeNamespace", name=f"{parent}/nvmeNamespaces/{identifier}") == "OK"
        assert await fresh.code("DeleteNvmeController", name=f"{parent}/nvmeControllers/front") == "OK"
        assert await fresh.code("DeleteNvmeSubsystem", name=parent) == "OK"
        assert (
            await fresh.code("DeleteNvmeRemoteController", name="nvmeRemoteControllers/opi-nvme8")
            == "FAILED_PRECONDITION"
        )
        assert await fresh.code("DeleteNvmePath", name=path) == "OK"
        assert await fresh.code("DeleteNvmeRemoteController", name="nvmeRemoteControllers/opi-nvme8") == "OK"


async def test_a_create_whose_caller_went_away_can_be_repeated_and_undone(rig: DpuRig, api: OpiClient) -> None:
    body = {"nvme_subsystem_id": "s0", "nvme_subsystem": {"spec": {"nqn": NQN, "serial_number": "S"}}}
    async with dial(f"unix:{rig.bridge_socket}", name="opi-bridge") as channel:
        for method in ("nvmf_create_subsystem", "bdev_null_create"):
            await rig.fault(do="delay", method=method, seconds=0.4, times=1)
            hasty = OpiClient(channel, seconds=0.1)
            assert await hasty.code("CreateNvmeSubsystem", **body) in ("DEADLINE_EXCEEDED", "CANCELLED")
            await rig.fault(do="clear")
            assert rig.bridge is not None
            await rig.bridge.aclose()
            await rig.start_bridge()
            await api.until_ready()
            assert (await api("CreateNvmeSubsystem", **body))["name"] == "nvmeSubsystems/s0"
            other = {**body, "nvme_subsystem_id": "s1"}
            assert await api.code("CreateNvmeSubsystem", **other) == "ALREADY_EXISTS"
            await api("DeleteNvmeSubsystem", name="nvmeSubsystems/s0")
            assert await rig.leftovers() == {}


async def test_a_subsystem_that_nobody_has_named_gets_a_name_if_it_is_as_wanted(rig: DpuRig, api: OpiClient) -> None:
    await rig.at_dpu.call("nvmf_create_subsystem", {"nqn": NQN, "serial_number": "S"})
    wrong = {"nvme_subsystem_id": "s0", "nvme_subsystem": {"spec": {"nqn": NQN, "serial_number": "T"}}}
    right = {"nvme_subsystem_id": "s0", "nvme_subsystem": {"spec": {"nqn": NQN, "serial_number": "S"}}}
    assert await api.code("CreateNvmeSubsystem", **wrong) == "ALREADY_EXISTS"
    assert (await api("CreateNvmeSubsystem", **right))["name"] == "nvmeSubsystems/s0"
    await api("DeleteNvmeSubsystem", name="nvmeSubsystems/s0")
    assert await rig.leftovers() == {}


async def test_subsystems_of_others_are_shown_under_ids_that_last(rig: DpuRig, api: OpiClient) -> None:
    await rig.at_dpu.call("nvmf_create_subsystem", {"nqn": "nqn.2020-01.com.Example:Some_One"})
    listed = (await api("ListNvmeSubsystems"))["nvme_subsystems"]
    assert [item["spec"]["nqn"] for item in listed] == ["nqn.2020-01.com.Example:Some_One"]
    name = listed[0]["name"]
    assert (await api("GetNvmeSubsystem", name=name))["name"] == name
    assert await api.code("DeleteNvmeSubsystem", name=name) == "OK"


async def test_after_spdk_was_killed_nothing_is_there_and_everything_can_be_made_again(
    rig: DpuRig, api: OpiClient
) -> None:
    body = {"nvme_subsystem_id": "s0", "nvme_subsystem": {"spec": {"nqn": NQN}}}
    await api("CreateNvmeSubsystem", **body)
    spec = {"trtype": "NVME_TRANSPORT_TYPE_PCIE", "pcie_id": pci(1)}
    create = {"parent": "nvmeSubsystems/s0", "nvme_controller_id": "c0", "nvme_controller": {"spec": spec}}
    await api("CreateNvmeController", **create)
    assert (rig.sockets / "pf0vf1" / "cntrl").exists()
    await rig.restart_dpu()
    await api.until_ready()
    assert await api("ListNvmeSubsystems") == {}
    await api("CreateNvmeSubsystem", **body)
    # The killed process left its socket behind.
    await api("CreateNvmeController", **create)
