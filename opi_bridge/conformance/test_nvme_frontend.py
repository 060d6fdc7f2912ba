"""Subsystem, namespace and controller together, on a real function of the card."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from opi_bridge.conformance.client import OpiClient, pci

NQN = "nqn.2026-11.io.dpu-offload:conf.front"
SUBSYSTEM = "nvmeSubsystems/conf-front"
UUID = "11111111-2222-4333-8444-555555555555"


def controller(pf: int, vf: int, **more: Any) -> dict[str, Any]:
    return {"spec": {"trtype": "NVME_TRANSPORT_TYPE_PCIE", "pcie_id": pci(vf, pf=pf), **more}}


def namespace(volume: str = "volumes/conf-front", nsid: int = 1, **more: Any) -> dict[str, Any]:
    return {"spec": {"volume_name_ref": volume, "host_nsid": nsid, **more}}


async def _clean(api: OpiClient) -> None:
    for collection, kind in (("nvmeControllers", "NvmeController"), ("nvmeNamespaces", "NvmeNamespace")):
        if await api.code(f"List{kind}s", parent=SUBSYSTEM) != "OK":
            continue
        for item in (await api(f"List{kind}s", parent=SUBSYSTEM)).get(f"nvme_{collection[4:].lower()}", ()):
            await api(f"Delete{kind}", name=item["name"], allow_missing=True)
    await api("DeleteNvmeSubsystem", name=SUBSYSTEM, allow_missing=True)
    await api("DeleteMallocVolume", name="mallocVolumes/conf-front", allow_missing=True)


@pytest.fixture
async def subsystem(api: OpiClient) -> AsyncIterator[str]:
    await _clean(api)
    disk = {"block_size": 512, "blocks_count": 16384}
    await api("CreateMallocVolume", malloc_volume_id="conf-front", malloc_volume=disk)
    spec = {"nqn": NQN, "serial_number": "CONF", "model_number": "Conformance", "max_namespaces": 4}
    await api("CreateNvmeSubsystem", nvme_subsystem_id="conf-front", nvme_subsystem={"spec": spec})
    yield SUBSYSTEM
    await _clean(api)


async def test_namespace_first_then_controller(api: OpiClient, subsystem: str, function: tuple[int, int]) -> None:
    made = await api(
        "CreateNvmeNamespace",
        parent=subsystem,
        nvme_namespace_id="n1",
        nvme_namespace=namespace(uuid=UUID, nguid=UUID.replace("-", "").upper(), eui64="-2"),
    )
    assert made["name"] == f"{subsystem}/nvmeNamespaces/n1"
    read = await api("GetNvmeNamespace", name=made["name"])
    assert read["spec"]["uuid"] == UUID
    assert read["spec"]["nguid"].replace("-", "").lower() == UUID.replace("-", "")
    assert read["spec"]["eui64"] == "-2"
    assert read["status"] == {"state": "STATE_ENABLED", "oper_state": "OPER_STATE_ONLINE"}
    shown = await api(
        "CreateNvmeController",
        parent=subsystem,
        nvme_controller_id="c1",
        nvme_controller=controller(*function, max_nsq=5, max_ncq=5),
    )
    read = await api("GetNvmeController", name=shown["name"])
    assert read["spec"]["pcie_id"] == pci(function[1], pf=function[0])
    assert (read["spec"]["max_nsq"], read["status"]) == (5, {"active": True})
    for kind, name in (("NvmeNamespace", made["name"]), ("NvmeController", shown["name"])):
        assert "stats" in await api(f"Stats{kind}", name=name)
    assert "stats" in await api("StatsNvmeSubsystem", name=subsystem)
    listed = await api("ListNvmeNamespaces", parent=subsystem)
    assert [item["name"] for item in listed["nvme_namespaces"]] == [made["name"]]
    assert await api.code("DeleteNvmeSubsystem", name=subsystem) == "FAILED_PRECONDITION"
    assert await api.code("DeleteNvmeNamespace", name=made["name"]) == "OK"
    assert await api.code("DeleteNvmeController", name=shown["name"]) == "OK"
    assert await api.code("DeleteNvmeSubsystem", name=subsystem) == "OK"


async def test_controller_first_then_namespace(api: OpiClient, subsystem: str, function: tuple[int, int]) -> None:
    await api("CreateNvmeController", parent=subsystem, nvme_controller_id="c1", nvme_controller=controller(*function))
    made = await api("CreateNvmeNamespace", parent=subsystem, nvme_namespace=namespace(nsid=0))
    assert made["spec"]["host_nsid"] == 1
    repeated = await api(
        "CreateNvmeController", parent=subsystem, nvme_controller_id="c1", nvme_controller=controller(*function)
    )
    assert repeated["name"] == f"{subsystem}/nvmeControllers/c1"


async def test_what_is_in_use_or_impossible_is_refused(
    api: OpiClient, subsystem: str, function: tuple[int, int]
) -> None:
    create = {"parent": subsystem, "nvme_namespace_id": "n1"}
    await api("CreateNvmeNamespace", **create, nvme_namespace=namespace())
    again = {"parent": subsystem, "nvme_namespace_id": "n2"}
    code = api.code
    # The volume is claimed, the NSID is used, too high, negative; the volume is missing.
    assert await code("CreateNvmeNamespace", **again, nvme_namespace=namespace(nsid=2)) == "FAILED_PRECONDITION"
    assert await code("CreateNvmeNamespace", **again, nvme_namespace=namespace()) == "ALREADY_EXISTS"
    assert await code("CreateNvmeNamespace", **again, nvme_namespace=namespace(nsid=-1)) == "INVALID_ARGUMENT"
    assert await code("CreateNvmeNamespace", **again, nvme_namespace=namespace(nsid=99)) == "INVALID_ARGUMENT"
    assert await code("CreateNvmeNamespace", **again, nvme_namespace=namespace("volumes/no", 2)) == "NOT_FOUND"
    assert await code("CreateNvmeNamespace", **create, nvme_namespace=namespace(uuid=UUID)) == "ALREADY_EXISTS"
    for wrong in ({"uuid": "no"}, {"nguid": "12"}):
        assert (
            await code("CreateNvmeNamespace", **again, nvme_namespace=namespace(nsid=2, **wrong)) == "INVALID_ARGUMENT"
        )
    assert await code("DeleteMallocVolume", name="mallocVolumes/conf-front") == "FAILED_PRECONDITION"
    # A parent that is not there.
    for kind, body in (("NvmeNamespace", namespace()), ("NvmeController", controller(*function))):
        field = "nvme_namespace" if kind == "NvmeNamespace" else "nvme_controller"
        assert await code(f"Create{kind}", parent="nvmeSubsystems/no", **{field: body}) == "NOT_FOUND"
        assert await code(f"List{kind}s", parent="nvmeSubsystems/no") == "NOT_FOUND"
    # A function out of range, one that is used, and endpoints that say too little.
    new = {"parent": subsystem, "nvme_controller_id": "c1"}
    for vf in (4096, -1):
        assert (
            await code("CreateNvmeController", **new, nvme_controller=controller(function[0], vf)) == "INVALID_ARGUMENT"
        )
    for spec in (
        {"trtype": "NVME_TRANSPORT_TYPE_PCIE"},
        {"trtype": "NVME_TRANSPORT_TYPE_PCIE", "pcie_id": {"port_id": 0, "physical_function": 0}},
        {"trtype": "NVME_TRANSPORT_TYPE_TCP", "pcie_id": pci(1)},
        {"trtype": "NVME_TRANSPORT_TYPE_FC", "pcie_id": pci(1)},
        {"pcie_id": pci(1)},
    ):
        assert await code("CreateNvmeController", **new, nvme_controller={"spec": spec}) == "INVALID_ARGUMENT"
    await api("CreateNvmeController", **new, nvme_controller=controller(*function))
    other = {"nqn": f"{NQN}-other"}
    await api("CreateNvmeSubsystem", nvme_subsystem_id="conf-other", nvme_subsystem={"spec": other})
    try:
        taken = {"parent": "nvmeSubsystems/conf-other", "nvme_controller": controller(*function)}
        assert await code("CreateNvmeController", **taken) in ("ALREADY_EXISTS", "FAILED_PRECONDITION")
        same = {"nvme_subsystem_id": "conf-third", "nvme_subsystem": {"spec": other}}
        assert await code("CreateNvmeSubsystem", **same) == "ALREADY_EXISTS"
    finally:
        await api("DeleteNvmeSubsystem", name="nvmeSubsystems/conf-other")
    # Nothing of all that has left a trace.
    listed = await api("ListNvmeNamespaces", parent=subsystem)
    assert [item["name"] for item in listed["nvme_namespaces"]] == [f"{subsystem}/nvmeNamespaces/n1"]


async def test_what_cannot_change_is_not_changed_by_an_update(api: OpiClient, subsystem: str) -> None:
    wanted = {"name": subsystem, "spec": {"nqn": f"{NQN}-new"}}
    assert await api.code("UpdateNvmeSubsystem", nvme_subsystem=wanted, update_mask="spec.nqn") == "FAILED_PRECONDITION"
    assert (await api("GetNvmeSubsystem", name=subsystem))["spec"]["nqn"] == NQN
