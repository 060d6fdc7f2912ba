"""What stands in a machine's annotation: written in time, found again, and of no use to others."""

from __future__ import annotations

import json

import pytest

from cni.controller.model.annotations import VM_NETWORKS
from tests.controller.stage import Northbound, Stage, node, pod
from tests.kubevirt.conftest import nodes
from tests.kubevirt.objects import interface, launcher, spec, vm, vmi
from tests.kubevirt.scene import LAN, TWO, addresses, run, stop


async def test_it_is_written_on_the_machine_and_survives_the_controller(northbound: Northbound) -> None:
    async with Stage(northbound.remote) as stage:
        stage.put("node", *nodes("dual"))
        stage.put("network", LAN)
        stage.put("vm", vm("m", TWO))
        run(stage, "a", on="n1", template=TWO, networks="lan")
        await stage.settle()
        kept, before = stage.machines["ns/m"], (addresses(stage), addresses(stage, "ns.lan_ns_vm_m"))
        assert kept == {
            "default": {"ips": ["10.1.1." + before[0].split()[1].split(".")[3] + "/24", before[0].split()[2] + "/64"]}
            | {"mac": before[0].split()[0]},
            "ns/lan": {"ips": [before[1].split()[1] + "/24"], "mac": before[1].split()[0]},
        }
    # Another controller, which finds the machine stopped; then others ask first.
    stopped = vm("m", TWO, **{VM_NETWORKS: json.dumps(kept)})
    async with Stage(northbound.remote) as stage:
        stage.put("vm", stopped)
        stage.put("network", LAN)
        stage.put("node", *nodes("dual"))
        others = [pod(f"p{index}", annotations={"k8s.v1.cni.cncf.io/networks": "lan"}) for index in range(40)]
        taken = {"dpu-offload.io/addresses": json.dumps({"ips": [before[0].split()[1]]})}
        stage.put("pod", *others, pod("greedy", annotations=taken))
        await stage.settle()
        assert [problem.reason for problem in stage.problems.values()] == ["AddressConflict"]
        stage.remove("pod", "ns/greedy")
        run(stage, "b", on="n2", template=TWO, networks="lan")
        await stage.settle()
        assert (addresses(stage), addresses(stage, "ns.lan_ns_vm_m")) == before
        assert not stage.problems


async def test_a_node_that_comes_later_finds_the_address_taken(northbound: Northbound) -> None:
    kept = {"default": {"ips": ["10.1.1.77/24"], "mac": "0a:58:0a:01:01:4d"}}
    async with Stage(northbound.remote) as stage:
        stage.put("vm", vm("m", **{VM_NETWORKS: json.dumps(kept)}))
        await stage.settle()
        stage.put("node", *nodes("v4"))
        stage.put("pod", pod("greedy", annotations={"dpu-offload.io/addresses": json.dumps({"ips": ["10.1.1.77"]})}))
        await stage.settle()
        assert [problem.reason for problem in stage.problems.values()] == ["AddressConflict"]
        run(stage, "a", on="n2")
        await stage.settle()
        assert addresses(stage) == "0a:58:0a:01:01:4d 10.1.1.77"


async def test_what_was_not_written_yet_is_found_in_the_database(northbound: Northbound) -> None:
    async with Stage(northbound.remote) as stage:
        stage.put("node", *nodes("dual"))
        stage.put("vm", vm("m", spec(interface("default", mac="02:00:00:00:00:07"))))
        run(stage, "a", on="n1", template=spec(interface("default", mac="02:00:00:00:00:07")))
        await stage.settle()
        before = addresses(stage)
    async with Stage(northbound.remote) as stage:
        stage.put("node", *nodes("dual"))
        stage.put("vm", vm("m"))
        run(stage, "b", on="n2")
        await stage.settle()
        assert addresses(stage) == before


@pytest.mark.parametrize("name", ["a-clone", "z-clone"])
@pytest.mark.parametrize("runs", [True, False], ids=["the original runs", "the original is stopped"])
async def test_a_copied_annotation_takes_no_address_from_its_owner(
    northbound: Northbound, name: str, runs: bool
) -> None:
    """Whoever copies a VirtualMachine copies its annotations; the controller may be restarted before it saw that."""
    original = {**vm("m"), "metadata": {**vm("m")["metadata"], "creationTimestamp": "2026-11-22T01:00:00Z"}}
    stage: Stage
    async with Stage(northbound.remote) as stage:
        stage.put("node", *nodes("dual"))
        stage.put("vm", original)
        run(stage, "a", on="n1")
        await stage.settle()
        before, kept = addresses(stage), stage.machines["ns/m"]
    annotation = {VM_NETWORKS: json.dumps(kept)}
    original["metadata"]["annotations"] = annotation
    clone = {**vm(name, **annotation)}
    clone["metadata"]["creationTimestamp"] = "2026-11-22T02:00:00Z"
    async with Stage(northbound.remote) as stage:
        stage.put("node", *nodes("dual"))
        stage.put("vm", *sorted((original, clone), key=lambda each: str(each["metadata"]["name"])))
        if runs:
            run(stage, "a", on="n1")
        await stage.settle()
        assert stage.machines[f"ns/{name}"] == {}
        run(stage, "a", on="n1")
        stage.put("vmi", vmi(name, on="n1"))
        stage.put("pod", launcher(name, "of-clone", on="n1"))
        await stage.settle()
        assert addresses(stage) == before
        assert addresses(stage, f"ns_vm_{name}").split()[0] != before.split()[0]
        assert not stage.problems


async def test_a_machine_from_a_backup_takes_no_address_from_a_pod(northbound: Northbound) -> None:
    kept = {"default": {"ips": ["10.1.1.77/24"], "mac": "0a:58:0a:01:01:4d"}}
    has = pod("p", annotations={"dpu-offload.io/addresses": json.dumps({"ips": ["10.1.1.77"]})}, networks=kept, uid="p")
    async with Stage(northbound.remote) as stage:
        stage.put("node", *nodes("v4"))
        stage.put("vm", vm("m", **{VM_NETWORKS: json.dumps(kept)}))
        stage.put("pod", has)
        await stage.settle()
        assert addresses(stage, "ns_p").split()[1] == "10.1.1.77"
        assert stage.machines["ns/m"] == {}
        run(stage, "a", on="n1")
        await stage.settle()
        assert addresses(stage).split()[1] != "10.1.1.77"
        assert not stage.problems


async def test_an_annotation_that_got_lost_is_written_again_while_the_machine_is_stopped(stage: Stage) -> None:
    stage.put("network", LAN)
    stage.put("vm", vm("m", TWO))
    run(stage, "a", on="n1", template=TWO, networks="lan")
    await stage.settle()
    kept = stage.machines.pop("ns/m")
    stage.put("vm", vm("m", TWO, **{VM_NETWORKS: json.dumps(kept)}))
    stop(stage, "a")
    await stage.settle()
    assert stage.machines.pop("ns/m") == kept
    for text in ({}, {VM_NETWORKS: "nonsense"}):
        stage.put("vm", vm("m", TWO, **text))
        await stage.settle()
        assert stage.machines.pop("ns/m") == kept


async def test_nothing_is_written_on_a_machine_that_has_nothing(stage: Stage) -> None:
    stage.put("vm", vm("m"))
    await stage.settle()
    assert stage.machines == {}


async def test_what_waits_for_its_network_or_node_is_not_forgotten(stage: Stage) -> None:
    kept = {
        "default": {"ips": ["10.1.9.5/24"], "mac": "0a:58:0a:01:09:05"},
        "ns/lan": {"ips": ["10.9.0.5/24"], "mac": "0a:58:0a:09:00:05"},
    }
    stage.put("vm", vm("m", TWO, **{VM_NETWORKS: json.dumps(kept)}))
    await stage.settle()
    assert stage.machines["ns/m"] == kept
    stage.put("network", LAN)
    stage.put("node", node("n9", "10.1.9.0/24"))
    run(stage, "a", on="n1", template=TWO, networks="lan")
    await stage.settle()
    assert addresses(stage) == "0a:58:0a:01:09:05 10.1.9.5"
    assert addresses(stage, "ns.lan_ns_vm_m") == "0a:58:0a:09:00:05 10.9.0.5"
