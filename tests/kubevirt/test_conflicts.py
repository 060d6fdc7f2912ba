"""MACs: whose they are, in whatever spelling, on which networks, and who is told when two want the same."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cni.controller.translate.names import pod_owner, vm_owner
from tests.controller.stage import Stage, pod
from tests.kubevirt.objects import interface, launcher, spec, vm, vmi
from tests.kubevirt.scene import LAN, addresses, network, run, stop

MAC = "02:00:00:00:00:07"
BARE = network("bare", topology="layer2")
"""A network that gives no addresses."""


def start(stage: Stage, name: str, template: dict[str, Any], *, on: str = "n1", networks: str = "") -> None:
    stage.put("vm", vm(name, template))
    stage.put("vmi", vmi(name, template, on=on))
    stage.put("pod", launcher(name, f"of-{name}", on=on, networks=networks))


def end(stage: Stage, name: str) -> None:
    stage.remove("pod", f"ns/of-{name}")
    stage.remove("vmi", f"ns/{name}")
    stage.remove("vm", f"ns/{name}")


def beside(mac: str, nad: str) -> tuple[dict[str, Any], str]:
    """A template with a NIC of this MAC on a secondary network, and what its pod asks for."""
    template = spec(interface("default"), interface("blue", mac=mac), networks={"blue": nad})
    return template, json.dumps([{"name": nad, "mac": mac}])


@pytest.mark.parametrize("bare", [BARE, LAN], ids=["without addresses", "with addresses"])
async def test_a_mac_is_one_machines_on_a_secondary_network_too(stage: Stage, bare: dict[str, Any]) -> None:
    name = bare["metadata"]["name"]
    stage.put("network", bare)
    template, asked = beside(MAC, name)
    start(stage, "m", template, networks=asked)
    await stage.settle()
    start(stage, "twin", template, on="n2", networks=asked)
    await stage.settle()
    assert stage.problems[vm_owner("ns/twin")].reason == "AddressConflict"
    assert addresses(stage, "ns_vm_twin")
    assert f"ns.{name}_ns_vm_twin" not in stage.named("Logical_Switch_Port")
    end(stage, "m")
    await stage.settle()
    assert not stage.problems
    assert MAC in str(stage.named("Logical_Switch_Port")[f"ns.{name}_ns_vm_twin"]["addresses"])


@pytest.mark.parametrize("mac", ["02:00:00:00:00", "01:00:00:00:00:01", "nonsense"])
@pytest.mark.parametrize("nad", ["bare", "lan"])
async def test_a_mac_that_cannot_be_is_refused_on_a_secondary_network(stage: Stage, mac: str, nad: str) -> None:
    stage.put("network", BARE, LAN)
    template, asked = beside(mac, nad)
    start(stage, "m", template, networks=asked)
    stage.put("pod", pod("plain", annotations={"k8s.v1.cni.cncf.io/networks": asked}))
    await stage.settle()
    for owner in (vm_owner("ns/m"), pod_owner("ns/plain")):
        assert stage.problems[owner].reason == "InvalidAddressRequest"
    assert stage.core.engine.failures == 0
    assert addresses(stage)


@pytest.mark.parametrize("spelt", ["02-00-00-AB-CD-EF", "02:00:00:AB:CD:EF", "02:00:00:ab:cd:ef"])
async def test_the_spelling_of_a_mac_does_not_matter(stage: Stage, spelt: str) -> None:
    stage.put("network", LAN, BARE)
    template = spec(
        interface("default", mac=spelt),
        interface("blue", mac=spelt),
        interface("red", mac=spelt),
        networks={"blue": "lan", "red": "bare"},
    )
    asked = json.dumps([{"name": "lan", "mac": spelt}, {"name": "bare", "mac": spelt}])
    for _ in range(2):
        run(stage, "a", on="n1", template=template, networks=asked, created=1)
        await stage.settle()
        for name in ("ns_vm_m", "ns.lan_ns_vm_m"):
            assert addresses(stage, name).split()[0] == "02:00:00:ab:cd:ef"
        assert "02:00:00:ab:cd:ef" in stage.named("Logical_Switch_Port")["ns.bare_ns_vm_m"]["addresses"]
        assert not stage.problems
        template["domain"]["devices"]["interfaces"][0]["macAddress"] = spelt.lower().replace("-", ":")


async def test_a_mac_that_its_owner_gives_up_goes_to_who_waits_for_it(stage: Stage) -> None:
    stage.put("network", LAN)
    asked = json.dumps([{"name": "lan", "mac": MAC}])
    both = spec(interface("default", mac=MAC), interface("blue", mac=MAC), networks={"blue": "lan"})
    start(stage, "m", both, networks=asked)
    await stage.settle()
    start(stage, "twin", both, networks=asked)
    await stage.settle()
    assert vm_owner("ns/twin") in stage.problems
    other = json.loads(json.dumps(both).replace(MAC, "02:00:00:00:00:08"))
    stage.remove("pod", "ns/of-m")
    stage.remove("vmi", "ns/m")
    start(stage, "m", other, networks=asked.replace(MAC, "02:00:00:00:00:08"))
    await stage.settle()
    assert not stage.problems
    for name in ("ns_vm_twin", "ns.lan_ns_vm_twin"):
        assert addresses(stage, name).startswith(MAC)


async def test_a_mac_behind_masquerade_is_the_guests_own_affair(stage: Stage) -> None:
    template = spec(interface("default", "masquerade", mac=MAC))
    for name in ("m", "twin"):
        start(stage, name, template)
    await stage.settle()
    assert not stage.problems
    assert addresses(stage).split()[0] != addresses(stage, "ns_vm_twin").split()[0]
    assert MAC not in addresses(stage)


async def test_what_a_refused_part_leaves_is_served_and_kept(stage: Stage) -> None:
    """One network that cannot be must not cost a guest its others."""
    stage.put("network", LAN)
    stage.put("vm", vm("m"))
    run(stage, "a", on="n1", networks="missing,lan", created=1)
    stage.put("pod", pod("plain", annotations={"k8s.v1.cni.cncf.io/networks": "missing,lan"}))
    await stage.settle()
    assert stage.problems[vm_owner("ns/m")].reason == "NetworkMissing"
    assert stage.problems[pod_owner("ns/plain")].reason == "NetworkMissing"
    before = addresses(stage), addresses(stage, "ns.lan_ns_vm_m")
    assert addresses(stage, "ns.lan_ns_plain")
    assert set(stage.machines["ns/m"]) == {"default", "ns/lan"}
    assert set(stage.annotations["ns/a"]) == set(stage.annotations["ns/plain"]) == {"default", "ns/lan"}
    stop(stage, "a")
    run(stage, "b", on="n1", networks="lan")
    await stage.settle()
    assert (addresses(stage), addresses(stage, "ns.lan_ns_vm_m")) == before


async def test_a_network_that_goes_while_a_guest_runs_takes_only_its_own_port(stage: Stage) -> None:
    stage.put("network", LAN, BARE)
    stage.put("vm", vm("m"))
    run(stage, "a", on="n1", networks="bare,lan", created=1)
    await stage.settle()
    before = addresses(stage, "ns.lan_ns_vm_m")
    stage.remove("network", "ns/bare")
    await stage.settle()
    assert stage.problems[vm_owner("ns/m")].reason == "NetworkMissing"
    assert addresses(stage, "ns.lan_ns_vm_m") == before
    stage.put("network", BARE)
    await stage.settle()
    assert not stage.problems
    assert "ns.bare_ns_vm_m" in stage.named("Logical_Switch_Port")


async def test_two_machines_with_one_mac_are_told_wherever_they_run(stage: Stage) -> None:
    template = spec(interface("default", mac=MAC))
    start(stage, "m", template, on="n1")
    await stage.settle()
    start(stage, "twin", template, on="n2")
    await stage.settle()
    assert stage.problems[vm_owner("ns/twin")].reason == "AddressConflict"
    assert "ns/m" in str(stage.problems[vm_owner("ns/twin")])
    assert addresses(stage).startswith(MAC)
    end(stage, "m")
    await stage.settle()
    assert not stage.problems
    assert addresses(stage, "ns_vm_twin").startswith(MAC)
