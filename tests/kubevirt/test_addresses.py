"""What a machine keeps: its addresses and MACs, on the default network and beside it, whether it runs or not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cni.controller.model.annotations import VM_NETWORKS
from cni.controller.translate.names import vm_owner
from tests.controller.stage import Northbound, Stage, node, pod
from tests.kubevirt.conftest import nodes
from tests.kubevirt.objects import interface, launcher, migration, spec, vm, vmi
from tests.kubevirt.scene import LAN, TWO, addresses, port, run, stop


async def test_a_machine_keeps_its_address_while_it_is_stopped(stage: Stage) -> None:
    stage.put("vm", vm("m"))
    run(stage, "a", on="n1")
    await stage.settle()
    before = addresses(stage)
    stop(stage, "a")
    # Everybody else who comes now gets something else, whatever they ask for.
    taken = before.split()[1]
    stage.put("pod", pod("greedy", annotations={"dpu-offload.io/addresses": json.dumps({"ips": [taken]})}))
    await stage.settle()
    assert "ns_vm_m" not in stage.named("Logical_Switch_Port")
    (problem,) = stage.problems.values()
    assert problem.reason == "AddressConflict"
    run(stage, "b", on="n2")
    await stage.settle()
    assert addresses(stage) == before
    assert stage.annotations["ns/b"]["default"]["gateways"] == ["10.1.1.1", "fd01:1::1"]
    assert port(stage)["options"] == {"requested-chassis": "n2"}


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


async def test_an_instance_without_a_machine_gives_back_what_it_had(stage: Stage) -> None:
    run(stage, "a", on="n1")
    await stage.settle()
    before = addresses(stage).split()[1]
    assert stage.machines["ns/m"]["default"]["ips"][0].startswith(before)
    stop(stage, "a")
    stage.put("pod", pod("next", annotations={"dpu-offload.io/addresses": json.dumps({"ips": [before]})}))
    await stage.settle()
    assert addresses(stage, "ns_next").split()[1] == before


async def test_deleting_the_machine_frees_its_addresses_when_its_last_pod_has_gone(stage: Stage) -> None:
    stage.put("network", LAN)
    stage.put("vm", vm("m", TWO))
    run(stage, "a", on="n1", template=TWO, networks="lan")
    await stage.settle()
    before, beside = addresses(stage).split()[1], addresses(stage, "ns.lan_ns_vm_m").split()[1]
    stage.remove("vm", "ns/m")
    stage.remove("vmi", "ns/m")
    await stage.settle()
    assert addresses(stage).split()[1] == before
    stage.remove("pod", "ns/a")
    wanted = {
        "dpu-offload.io/addresses": json.dumps({"ips": [before]}),
        "k8s.v1.cni.cncf.io/networks": json.dumps([{"name": "lan", "ips": [beside]}]),
    }
    stage.put("pod", pod("next", annotations=wanted))
    await stage.settle()
    assert not stage.problems
    assert addresses(stage, "ns.lan_ns_next").split()[1] == beside
    assert len(stage.core.world.machines) == 0


async def test_the_mac_in_its_spec_is_honoured_and_a_change_of_it_too(stage: Stage) -> None:
    stage.put("network", LAN)
    for mac in ("02:00:00:00:00:07", "02:00:00:00:00:08"):
        template = spec(
            interface("default", mac=mac), interface("blue", "sriov", mac=f"{mac[:-2]}a0"), networks={"blue": "ns/lan"}
        )
        stage.put("vm", vm("m", template))
        run(stage, "a", on="n1", template=template, networks='[{"name": "lan", "mac": "' + f'{mac[:-2]}a0"' + "}]")
        await stage.settle()
        assert addresses(stage).split()[0] == mac
        assert addresses(stage, "ns.lan_ns_vm_m").split()[0] == f"{mac[:-2]}a0"
        stop(stage, "a")
        await stage.settle()
    # What it has given up, somebody else may have.
    stage.put("vmi", vmi("heir", spec(interface("default", mac="02:00:00:00:00:07")), on="n1"))
    stage.put("pod", launcher("heir", "h", on="n1"))
    await stage.settle()
    assert not stage.problems


async def test_a_mac_that_another_has_is_reported_on_the_machine(stage: Stage) -> None:
    template = spec(interface("default", mac="02:00:00:00:00:07"))
    for name in ("m", "twin"):
        stage.put("vmi", vmi(name, template, on="n1"))
        stage.put("pod", launcher(name, f"of-{name}", on="n1"))
        await stage.settle()
    problem = stage.problems.pop(vm_owner("ns/twin"))
    assert problem.reason == "AddressConflict"
    assert "02:00:00:00:00:07" in str(problem)
    assert "ns/of-twin" not in stage.annotations
    stage.remove("pod", "ns/of-m")
    stage.remove("vmi", "ns/m")
    await stage.settle()
    assert addresses(stage, "ns_vm_twin").split()[0] == "02:00:00:00:00:07"
    assert not stage.problems


@pytest.mark.parametrize("mac", ["02:00:00:00:00", "01:00:00:00:00:01", "00:00:00:00:00:00", "nonsense"])
async def test_a_mac_that_cannot_be_is_refused(stage: Stage, mac: str) -> None:
    run(stage, "a", on="n1", template=spec(interface("default", mac=mac)))
    await stage.settle()
    assert stage.problems[vm_owner("ns/m")].reason == "InvalidAddressRequest"


async def test_a_claim_keeps_the_address_and_the_spec_the_mac(northbound: Northbound) -> None:
    mac = "02:00:00:00:00:0a"
    template = spec(interface("default"), interface("blue", mac=mac), networks={"blue": "lan"})
    claim: dict[str, Any] = {
        "metadata": {"name": "m.blue", "namespace": "ns"},
        "spec": {"network": "lan", "interface": "blue"},
    }
    asked = json.dumps([{"name": "lan", "mac": mac, "ipam-claim-reference": "m.blue"}])
    before = ""
    for _ in range(2):
        async with Stage(northbound.remote) as stage:
            stage.put("node", *nodes("v4"))
            stage.put("network", LAN)
            stage.put("ipamclaim", claim)
            stage.put("vm", vm("m", template))
            run(stage, "a", on="n1", template=template, networks=asked)
            await stage.settle()
            assert not stage.problems
            before = before or addresses(stage, "ns.lan_ns_vm_m")
            assert addresses(stage, "ns.lan_ns_vm_m") == before
            assert before.split()[0] == mac
            claim["status"] = {"ips": list(stage.claims["ns/m.blue"])} if stage.claims else claim["status"]


async def test_another_network_in_the_machines_place_frees_the_old_address(stage: Stage) -> None:
    other = {"metadata": {"name": "other", "namespace": "ns"}, "spec": LAN["spec"]}
    stage.put("network", LAN, other)
    stage.put("vm", vm("m", TWO))
    run(stage, "a", on="n1", template=TWO, networks="lan")
    await stage.settle()
    old = addresses(stage, "ns.lan_ns_vm_m").split()[1]
    stop(stage, "a")
    template = spec(interface("default"), interface("blue", "sriov"), networks={"blue": "other"})
    stage.put("vm", vm("m", template, **{VM_NETWORKS: json.dumps(stage.machines["ns/m"])}))
    run(stage, "b", on="n1", template=template, networks="other")
    await stage.settle()
    assert set(stage.machines["ns/m"]) == {"default", "ns/other"}
    wanted = json.dumps([{"name": "lan", "ips": [old]}])
    stage.put("pod", pod("next", annotations={"k8s.v1.cni.cncf.io/networks": wanted}))
    await stage.settle()
    assert not stage.problems
    assert addresses(stage, "ns.lan_ns_next").split()[1] == old


async def test_a_new_subnet_gives_a_new_address_at_the_next_start(stage: Stage) -> None:
    stage.put("network", LAN)
    stage.put("vm", vm("m", TWO))
    run(stage, "a", on="n1", template=TWO, networks="lan")
    await stage.settle()
    stop(stage, "a")
    moved = {**LAN, "spec": {"config": LAN["spec"]["config"].replace("10.9.0.0/24", "10.7.0.0/24")}}
    stage.put("network", moved)
    run(stage, "b", on="n1", template=TWO, networks="lan")
    await stage.settle()
    assert not stage.problems
    assert addresses(stage, "ns.lan_ns_vm_m").split()[1].startswith("10.7.0.")


async def test_an_interface_comes_and_goes_while_the_machine_runs(stage: Stage) -> None:
    stage.put("network", LAN)
    stage.put("vm", vm("m"))
    run(stage, "a", on="n1", created=1)
    await stage.settle()
    run(stage, "a", on="n1", template=TWO, networks="lan", created=1)
    await stage.settle()
    plugged = addresses(stage, "ns.lan_ns_vm_m")
    assert stage.annotations["ns/a"]["ns/lan"]["dhcp"] is True
    assert stage.annotations["ns/a"]["ns/lan"]["port"] == "ns.lan_ns_vm_m"
    run(stage, "a", on="n1", created=1)
    await stage.settle()
    assert "ns.lan_ns_vm_m" not in stage.named("Logical_Switch_Port")
    assert set(stage.annotations["ns/a"]) == {"default"}
    run(stage, "a", on="n1", template=TWO, networks="lan", created=1)
    await stage.settle()
    assert addresses(stage, "ns.lan_ns_vm_m").split()[0] == plugged.split()[0]


async def test_an_interface_that_only_the_target_has_is_plugged_by_the_migration(stage: Stage) -> None:
    stage.put("network", LAN)
    run(stage, "a", on="n1", created=1)
    stage.put("vmi", vmi("m", TWO, on="n1"))
    stage.put("vmmigration", migration("j1", "m"))
    stage.put("pod", launcher("m", "b", on="n2", job="j1", networks="lan", created=2))
    await stage.settle()
    assert port(stage, "ns.lan_ns_vm_m")["options"]["requested-chassis"] == "n1,n2"
    assert set(stage.annotations["ns/a"]) == {"default"}
    assert set(stage.annotations["ns/b"]) == {"default", "ns/lan"}


async def test_an_edited_machine_changes_with_its_next_start(stage: Stage) -> None:
    old, new = (spec(interface("default", mac=f"02:00:00:00:00:{last}")) for last in ("07", "08"))
    stage.put("vm", vm("m", old))
    run(stage, "a", on="n1", template=old)
    await stage.settle()
    stage.put("vm", vm("m", new))
    await stage.settle()
    assert addresses(stage).split()[0] == "02:00:00:00:00:07"
    stop(stage, "a")
    # The new pod may be seen before its instance is.
    stage.put("pod", launcher("m", "b", on="n1"))
    await stage.settle()
    assert addresses(stage).split()[0] == "02:00:00:00:00:08"


async def test_a_launcher_waits_for_its_instance(stage: Stage) -> None:
    stage.put("pod", launcher("m", "a", on="n1"))
    await stage.settle()
    assert stage.problems[vm_owner("ns/m")].reason == "VirtualMachineInstanceMissing"
    assert "ns/a" not in stage.annotations
    stage.put("vmi", vmi("m", spec(interface("default", "masquerade")), on="n1"))
    await stage.settle()
    assert not stage.problems
    assert "dhcp" not in stage.annotations["ns/a"]["default"]


@pytest.mark.parametrize(
    ("given", "dhcp"),
    [
        (interface("default"), True),
        (interface("default", "sriov"), True),
        (interface("default", plugin="l2bridge"), True),
        (interface("default", "masquerade"), False),
        (interface("default", "passt"), False),
        (interface("default", plugin="passt"), False),
        (interface("default", plugin="slirp"), False),
        (interface("default", state="absent"), False),
    ],
)
async def test_which_bindings_leave_the_address_to_the_guest(stage: Stage, given: dict[str, Any], dhcp: bool) -> None:
    run(stage, "a", on="n1", template=spec(given))
    await stage.settle()
    assert stage.annotations["ns/a"]["default"].get("dhcp", False) is dhcp
    assert bool(port(stage)["dhcpv4_options"]) is dhcp


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


async def test_a_deleted_namespace_leaves_nothing(stage: Stage) -> None:
    """Its objects go in any order, the pod's last."""
    stage.put("namespace", {"metadata": {"name": "ns"}})
    stage.put("network", LAN)
    stage.put("vm", vm("m", TWO))
    run(stage, "a", on="n1", template=TWO, networks="lan")
    stage.put("vmmigration", migration("j1", "m"))
    await stage.settle()
    for kind, key in (
        ("network", "ns/lan"),
        ("vm", "ns/m"),
        ("namespace", "ns"),
        ("vmi", "ns/m"),
        ("pod", "ns/a"),
        ("vmmigration", "ns/j1"),
    ):
        stage.remove(kind, key)
        await stage.settle()
    assert not stage.problems
    assert [row for row in stage.rows("Logical_Switch_Port") if row["external_ids"].get("vm")] == []
    assert list(stage.rows("DHCP_Options")) == []
    assert len(stage.core.world.machines) == 0
    assert len(stage.core.world.pools["n1"]) == 0


async def test_an_instance_made_anew_under_its_name_is_another_one(stage: Stage) -> None:
    """Without a VirtualMachine nothing outlives the instance and its pods; with one everything does."""
    run(stage, "a", on="n1", created=1)
    await stage.settle()
    before = addresses(stage)
    # The new instance is there before the old pod has gone.
    stage.remove("vmi", "ns/m")
    fresh = vmi("m", spec(interface("default", mac="02:00:00:00:00:09")), on="n2")
    fresh["metadata"]["uid"] = "another"
    stage.put("vmi", fresh)
    stage.put("pod", launcher("m", "b", on="n2", created=2))
    await stage.settle()
    assert port(stage)["options"] == {"requested-chassis": "n2"}
    assert addresses(stage).split()[0] == "02:00:00:00:00:09"
    assert addresses(stage).split()[1:] == before.split()[1:]
    stage.remove("pod", "ns/a")
    await stage.settle()
    assert port(stage)["options"] == {"requested-chassis": "n2"}


async def test_an_interface_that_is_unplugged_while_the_machine_moves_goes_with_its_source(stage: Stage) -> None:
    """KubeVirt leaves it away in the target's pod; the guest has it until it has moved."""
    stage.put("network", LAN)
    stage.put("vm", vm("m", TWO))
    run(stage, "a", on="n1", template=TWO, networks="lan", created=1)
    await stage.settle()
    had = addresses(stage, "ns.lan_ns_vm_m")
    without = spec(interface("default"), interface("blue", "sriov", state="absent"), networks={"blue": "lan"})
    stage.put("vm", vm("m", without))
    stage.put("vmi", vmi("m", without, on="n1"))
    stage.put("vmmigration", migration("j1", "m"))
    stage.put("pod", launcher("m", "b", on="n2", job="j1", created=2))
    await stage.settle()
    assert addresses(stage, "ns.lan_ns_vm_m") == had
    assert set(stage.annotations["ns/b"]) == {"default"}
    stage.put("vmmigration", migration("j1", "m", "Succeeded"))
    await stage.settle()
    assert "ns.lan_ns_vm_m" not in stage.named("Logical_Switch_Port")
    assert set(stage.machines["ns/m"]) == {"default"}
    stage.remove("pod", "ns/a")
    await stage.settle()
    wanted = json.dumps([{"name": "lan", "ips": [had.split()[1]]}])
    stage.put("pod", pod("next", annotations={"k8s.v1.cni.cncf.io/networks": wanted}))
    await stage.settle()
    assert not stage.problems


async def test_an_address_by_wish_is_the_machines_and_a_new_wish_moves_it(stage: Stage) -> None:
    def wish(*ips: str) -> dict[str, str]:
        return {"dpu-offload.io/addresses": json.dumps({"ips": list(ips)})}

    stage.put("vm", vm("m"))
    run(stage, "a", on="n1", annotations=wish("10.1.2.50", "fd01:2::50"))
    await stage.settle()
    assert addresses(stage).split()[1:] == ["10.1.2.50", "fd01:2::50"]
    assert port(stage).uuid in stage.named("Logical_Switch")["n2"]["ports"]
    stop(stage, "a")
    # Without a wish it keeps what it has; with one that cannot be it does too.
    run(stage, "b", on="n3", created=10)
    await stage.settle()
    assert addresses(stage).split()[1:] == ["10.1.2.50", "fd01:2::50"]
    for wrong, reason in (
        (wish("10.1.2.51", "10.1.2.52"), "InvalidAddressRequest"),
        (wish("192.0.2.1"), "InvalidAddressRequest"),
        (wish("10.1.1.1"), "InvalidAddressRequest"),
        ({"dpu-offload.io/addresses": "nonsense"}, "InvalidNetworkAnnotation"),
    ):
        stop(stage, "b")
        run(stage, "b", on="n3", created=10, annotations=wrong)
        await stage.settle()
        assert stage.problems[vm_owner("ns/m")].reason == reason
        assert stage.machines["ns/m"]["default"]["ips"] == ["10.1.2.50/24", "fd01:2::50/64"]
    stop(stage, "b")
    run(stage, "c", on="n3", annotations=wish("10.1.1.60"))
    await stage.settle()
    assert not stage.problems
    assert addresses(stage).split()[1] == "10.1.1.60"
    stage.put("pod", pod("heir", on="n2", annotations=wish("10.1.2.50", "fd01:2::50")))
    await stage.settle()
    assert not stage.problems
