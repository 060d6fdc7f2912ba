"""IPAMClaims: whose address it is, from the first start of a machine to the end of the claim."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cni.controller.translate.names import pod_owner, vm_owner
from tests.controller.stage import Northbound, Stage, pod
from tests.kubevirt.conftest import nodes
from tests.kubevirt.objects import interface, launcher, migration, spec, vm, vmi
from tests.kubevirt.scene import addresses, network, run, stop

SUBNETS = {"v4": "10.9.0.0/24", "v6": "fd09::/64", "dual": "10.9.0.0/24,fd09::/64"}
TWO = spec(interface("default"), interface("blue"), networks={"blue": "lan"})
PORT = "ns.lan_ns_vm_m"


def lan(families: str = "dual") -> dict[str, Any]:
    return network("lan", topology="layer2", subnets=SUBNETS[families])


def claim(name: str = "m.blue", *ips: str, of: str = "lan") -> dict[str, Any]:
    body: dict[str, Any] = {
        "metadata": {"name": name, "namespace": "ns"},
        "spec": {"network": of, "interface": "blue"},
    }
    return {**body, "status": {"ips": list(ips)}} if ips else body


def asked(claim: str = "m.blue", **more: Any) -> str:
    """What KubeVirt's ipam-controller has Multus attach."""
    return json.dumps([{"name": "lan", **({"ipam-claim-reference": claim} if claim else {}), **more}])


def given(stage: Stage, name: str = PORT) -> tuple[str, ...]:
    return tuple(addresses(stage, name).split()[1:])


@pytest.mark.parametrize("families", SUBNETS)
async def test_a_claim_has_the_address_through_stops_and_restarts(northbound: Northbound, families: str) -> None:
    written: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    for on in ("n1", "n2", "n1"):
        async with Stage(northbound.remote) as stage:
            stage.put("node", *nodes(families))
            stage.put("network", lan(families))
            stage.put("ipamclaim", claim("m.blue", *written))
            others = [pod(f"p{index}", annotations={"k8s.v1.cni.cncf.io/networks": "lan"}) for index in range(5)]
            stage.put("pod", *others)
            stage.put("vm", vm("m", TWO))
            run(stage, "a", on=on, template=TWO, networks=asked())
            await stage.settle()
            assert not stage.problems
            before = before or given(stage)
            assert given(stage) == before
            assert len(before) == 1 + (families == "dual")
            # Told once; the machine's own annotation leaves it to the claim.
            assert ("ns/m.blue" in stage.claims) is not bool(written)
            written = written or stage.claims["ns/m.blue"]
            assert set(stage.machines["ns/m"]) == {"default"}
            stage.put("ipamclaim", claim("m.blue", *written))
            stop(stage, "a")
            taken = json.dumps([{"name": "lan", "ips": [before[0]]}])
            stage.put("pod", pod("greedy", annotations={"k8s.v1.cni.cncf.io/networks": taken}))
            await stage.settle()
            assert stage.problems[pod_owner("ns/greedy")].reason == "AddressConflict"


async def test_an_address_that_the_claim_does_not_name_yet_survives_the_controller(northbound: Northbound) -> None:
    before: tuple[str, ...] = ()
    for known in range(3):
        async with Stage(northbound.remote) as stage:
            stage.put("node", *nodes("dual"))
            stage.put("network", lan())
            stage.put("ipamclaim", claim())
            others = [
                pod(f"p{index}", annotations={"k8s.v1.cni.cncf.io/networks": "lan"}) for index in range(known * 9)
            ]
            stage.put("pod", *others)
            stage.put("vm", vm("m", TWO))
            run(stage, "a", on="n1", template=TWO, networks=asked())
            await stage.settle()
            before = before or given(stage)
            assert given(stage) == before
            assert [each.partition("/")[0] for each in stage.claims["ns/m.blue"]] == list(before)


async def test_a_claim_that_comes_with_an_address_gives_it(stage: Stage) -> None:
    stage.put("network", lan())
    stage.put("ipamclaim", claim("m.blue", "10.9.0.77/24", "fd09::4d/64"))
    run(stage, "a", on="n1", template=TWO, networks=asked())
    await stage.settle()
    assert given(stage) == ("10.9.0.77", "fd09::4d")
    assert stage.claims == {}


@pytest.mark.parametrize("ips", [("10.8.0.77/24",), ("nonsense",), ("10.9.0.255/24", "fd09::4d/64")])
async def test_a_claims_address_that_cannot_be_is_replaced_and_said_so(stage: Stage, ips: tuple[str, ...]) -> None:
    stage.put("network", lan())
    stage.put("ipamclaim", claim("m.blue", *ips))
    run(stage, "a", on="n1", template=TWO, networks=asked())
    await stage.settle()
    assert len(given(stage)) == 2
    assert [each.partition("/")[0] for each in stage.claims["ns/m.blue"]] == list(given(stage))


async def test_a_claim_that_somebody_emptied_is_written_again(stage: Stage) -> None:
    stage.put("network", lan())
    stage.put("ipamclaim", claim())
    run(stage, "a", on="n1", template=TWO, networks=asked())
    await stage.settle()
    before, written = given(stage), stage.claims.pop("ns/m.blue")
    stage.put("ipamclaim", claim("m.blue", *written))
    await stage.settle()
    assert stage.claims == {}
    stage.put("ipamclaim", claim())
    await stage.settle()
    assert stage.claims["ns/m.blue"] == written
    assert given(stage) == before


async def test_a_claim_that_is_missing_is_told_and_made_up_for(stage: Stage) -> None:
    stage.put("network", lan())
    run(stage, "a", on="n1", template=TWO, networks=asked())
    await stage.settle()
    assert "IPAMClaim ns/m.blue" in str(stage.problems[vm_owner("ns/m")])
    assert addresses(stage)
    stage.put("ipamclaim", claim())
    await stage.settle()
    assert not stage.problems
    assert given(stage)


async def test_a_claim_for_another_network_is_refused(stage: Stage) -> None:
    stage.put("network", lan())
    stage.put("ipamclaim", claim(of="elsewhere"))
    run(stage, "a", on="n1", template=TWO, networks=asked())
    await stage.settle()
    problem = str(stage.problems[vm_owner("ns/m")])
    assert "elsewhere" in problem
    assert "ns/m.blue" in problem
    assert stage.claims == {}
    stage.put("ipamclaim", claim())
    await stage.settle()
    assert not stage.problems


async def test_deleting_a_claim_takes_nothing_from_a_guest_that_runs(stage: Stage) -> None:
    stage.put("network", lan())
    stage.put("ipamclaim", claim())
    stage.put("vm", vm("m", TWO))
    run(stage, "a", on="n1", template=TWO, networks=asked(), created=1)
    await stage.settle()
    before = given(stage)
    stage.remove("ipamclaim", "ns/m.blue")
    # Whatever makes its rows anew, and whoever asks for its address.
    run(stage, "a", on="n1", template=TWO, networks=asked(), created=1, labels={"another": "label"})
    taken = json.dumps([{"name": "lan", "ips": [before[0]]}])
    stage.put("pod", pod("greedy", annotations={"k8s.v1.cni.cncf.io/networks": taken}))
    await stage.settle()
    assert given(stage) == before
    assert stage.problems[pod_owner("ns/greedy")].reason == "AddressConflict"
    # It moves; then it ends.
    stage.put("vmmigration", migration("j1", "m"))
    stage.put("pod", launcher("m", "b", on="n2", job="j1", networks=asked(), created=2))
    await stage.settle()
    stage.put("vmmigration", migration("j1", "m", "Succeeded"))
    stage.remove("pod", "ns/a")
    await stage.settle()
    assert given(stage) == before
    stop(stage, "b")
    await stage.settle()
    assert not stage.problems
    assert given(stage, "ns.lan_ns_greedy")[0] == before[0]
    run(stage, "c", on="n1", template=TWO, networks=asked())
    await stage.settle()
    assert "IPAMClaim ns/m.blue" in str(stage.problems[vm_owner("ns/m")])


async def test_deleting_a_claim_that_nobody_uses_frees_its_address(stage: Stage) -> None:
    stage.put("network", lan())
    stage.put("ipamclaim", claim("m.blue", "10.9.0.77/24", "fd09::4d/64"))
    taken = json.dumps([{"name": "lan", "ips": ["10.9.0.77"]}])
    stage.put("pod", pod("greedy", annotations={"k8s.v1.cni.cncf.io/networks": taken}))
    await stage.settle()
    assert stage.problems[pod_owner("ns/greedy")].reason == "AddressConflict"
    stage.remove("ipamclaim", "ns/m.blue")
    await stage.settle()
    assert not stage.problems
    assert given(stage, "ns.lan_ns_greedy")[0] == "10.9.0.77"


async def test_source_and_target_of_a_migration_have_one_claim(stage: Stage) -> None:
    stage.put("network", lan())
    stage.put("ipamclaim", claim())
    run(stage, "a", on="n1", template=TWO, networks=asked(), created=1)
    await stage.settle()
    before = given(stage)
    stage.put("vmmigration", migration("j1", "m"))
    stage.put("pod", launcher("m", "b", on="n2", job="j1", networks=asked(), created=2))
    await stage.settle()
    assert stage.annotations["ns/a"]["ns/lan"] == stage.annotations["ns/b"]["ns/lan"]
    assert given(stage) == before
    stage.put("vmmigration", migration("j1", "m", "Succeeded"))
    stage.remove("pod", "ns/a")
    await stage.settle()
    assert given(stage) == before
    assert not stage.problems


async def test_a_claim_is_one_machines_at_a_time(stage: Stage) -> None:
    stage.put("network", lan())
    stage.put("ipamclaim", claim())
    run(stage, "a", on="n1", template=TWO, networks=asked())
    await stage.settle()
    before = given(stage)
    stage.put("vmi", vmi("twin", TWO, on="n2"))
    stage.put("pod", launcher("twin", "t", on="n2", networks=asked()))
    stage.put("pod", pod("plain", annotations={"k8s.v1.cni.cncf.io/networks": asked()}))
    await stage.settle()
    for owner in (vm_owner("ns/twin"), pod_owner("ns/plain")):
        assert stage.problems[owner].reason == "AddressConflict"
        assert "ns/m.blue" in str(stage.problems[owner])
    stage.remove("pod", "ns/plain")
    stop(stage, "a")
    await stage.settle()
    assert not stage.problems
    assert given(stage, "ns.lan_ns_vm_twin") == before


@pytest.mark.parametrize(
    "config", [{"topology": "layer2", "subnets": "10.9.0.0/24"}, {"topology": "layer3", "subnets": "10.9.0.0/16"}]
)
async def test_a_machine_that_gets_a_claim_later_keeps_its_address(stage: Stage, config: dict[str, str]) -> None:
    stage.put("network", network("lan", **config))
    stage.put("vm", vm("m", TWO))
    run(stage, "a", on="n1", template=TWO, networks=asked(""))
    await stage.settle()
    before = addresses(stage, PORT)
    stop(stage, "a")
    stage.put("ipamclaim", claim())
    run(stage, "b", on="n2", template=TWO, networks=asked())
    await stage.settle()
    assert addresses(stage, PORT) == before
    assert [each.partition("/")[0] for each in stage.claims["ns/m.blue"]] == before.split()[1:]


@pytest.mark.parametrize("topology", ["layer3", "localnet"])
async def test_a_claim_holds_on_other_topologies(northbound: Northbound, topology: str) -> None:
    written: tuple[str, ...] = ()
    seen = set()
    config = network("lan", topology=topology, subnets="10.8.0.0/16")
    for on in ("n1", "n2"):
        async with Stage(northbound.remote) as stage:
            stage.put("node", *nodes("dual"))
            stage.put("network", config)
            stage.put("ipamclaim", claim("m.blue", *written))
            stage.put("vm", vm("m", TWO))
            run(stage, f"on-{on}", on=on, template=TWO, networks=asked())
            await stage.settle()
            written = written or stage.claims["ns/m.blue"]
            seen.add(addresses(stage, PORT))
            assert not stage.problems
            stop(stage, f"on-{on}")
            await stage.settle()
    assert len(seen) == 1


async def test_a_claim_on_a_network_without_addresses_gets_none(stage: Stage) -> None:
    stage.put("network", network("lan", topology="layer2"))
    stage.put("ipamclaim", claim())
    run(stage, "a", on="n1", template=TWO, networks=asked())
    await stage.settle()
    assert not stage.problems
    assert stage.claims == {}


async def test_the_claims_of_a_deleted_machine_go_with_it(stage: Stage) -> None:
    """The claim's owner is the machine: Kubernetes removes it after."""
    stage.put("network", lan())
    stage.put("ipamclaim", claim())
    stage.put("vm", vm("m", TWO))
    run(stage, "a", on="n1", template=TWO, networks=asked())
    await stage.settle()
    before = given(stage)
    stop(stage, "a")
    stage.remove("vm", "ns/m")
    stage.remove("ipamclaim", "ns/m.blue")
    taken = json.dumps([{"name": "lan", "ips": list(before)}])
    stage.put("pod", pod("next", annotations={"k8s.v1.cni.cncf.io/networks": taken}))
    await stage.settle()
    assert not stage.problems
    assert given(stage, "ns.lan_ns_next") == before
