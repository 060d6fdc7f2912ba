"""What a machine keeps: its addresses and MACs, on the default network and beside it, whether it runs or not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cni.controller.translate.names import vm_owner
from tests.controller.stage import Northbound, Stage, pod
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


async def test_instances_of_a_replica_set_are_machines_of_their_own(stage: Stage) -> None:
    """Their names differ, and no VirtualMachine stands behind them."""
    template = spec(interface("default"), interface("blue", "sriov"), networks={"blue": "lan"})
    stage.put("network", LAN)
    for name in ("web-a", "web-b"):
        body = vmi(name, template, on="n1")
        body["metadata"]["ownerReferences"] = [
            {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceReplicaSet", "name": "web", "uid": "u"}
        ]
        stage.put("vmi", body)
        stage.put("pod", launcher(name, f"of-{name}", on="n1", networks="lan"))
    await stage.settle()
    assert not stage.problems
    assert set(stage.machines) == {"ns/web-a", "ns/web-b"}
    seen = [addresses(stage, f"{prefix}ns_vm_{name}") for prefix in ("", "ns.lan_") for name in ("web-a", "web-b")]
    assert len(set(" ".join(seen).split())) == len(" ".join(seen).split())
    stage.remove("pod", "ns/of-web-a")
    stage.remove("vmi", "ns/web-a")
    wanted = {"dpu-offload.io/addresses": json.dumps({"ips": seen[0].split()[1:]})}
    stage.put("pod", pod("heir", annotations=wanted))
    await stage.settle()
    assert not stage.problems
