"""A machine's interfaces: plugged, unplugged, bound this way or that, on one network and then on another."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cni.controller.model.annotations import VM_NETWORKS
from cni.controller.translate.names import vm_owner
from tests.controller.stage import Stage, pod
from tests.kubevirt.objects import interface, launcher, migration, spec, vm, vmi
from tests.kubevirt.scene import LAN, TWO, addresses, port, run, stop


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


@pytest.mark.parametrize("left", ["vm.kubevirt.io/name", "kubevirt.io/domain"])
async def test_a_launcher_is_known_by_label_or_annotation(stage: Stage, left: str) -> None:
    """Older versions of KubeVirt lack the one, other tools strip the other."""
    stage.put("vmi", vmi("m", on="n1"))
    made = launcher("m", "a", on="n1")
    for texts in (made["metadata"]["labels"], made["metadata"]["annotations"]):
        texts.pop(left, None)
    stage.put("pod", made)
    await stage.settle()
    assert port(stage)["options"] == {"requested-chassis": "n1"}
    assert "ns_a" not in stage.named("Logical_Switch_Port")
