"""What services, policies and gateways make of a machine while it moves: one backend, one port, never none."""

from __future__ import annotations

import json
from typing import Any

from tests.controller.stage import Northbound, Stage, contents, node
from tests.kubevirt.conftest import FAMILIES, nodes
from tests.kubevirt.objects import launcher, migration, vm, vmi
from tests.kubevirt.scene import addresses, port, run, stop

LABELS = {"app": "db"}


def policy(name: str = "p", **spec: Any) -> dict[str, Any]:
    chosen = {"podSelector": {"matchLabels": LABELS}, "policyTypes": ["Ingress"], **spec}
    return {"metadata": {"name": name, "namespace": "ns"}, "spec": chosen}


def service(*, ips: list[str]) -> dict[str, Any]:
    ports = [{"name": "sql", "port": 5432, "protocol": "TCP"}]
    return {
        "metadata": {"name": "db", "namespace": "ns"},
        "spec": {"clusterIP": ips[0], "clusterIPs": ips, "ports": ports},
    }


def piece(stage: Stage, *pods: tuple[str, str, bool], family: int = 4) -> dict[str, Any]:
    """The slice of a family: pods with node and readiness, all of which have the machine's address."""
    address = next(each for each in addresses(stage).split()[1:] if (":" in each) == (family == 6))
    return {
        "metadata": {"name": f"db-{family}", "namespace": "ns", "labels": {"kubernetes.io/service-name": "db"}},
        "addressType": f"IPv{family}",
        "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}],
        "endpoints": [
            {
                "addresses": [address],
                "nodeName": on,
                "conditions": {"ready": ready, "serving": ready, "terminating": not ready},
                "targetRef": {"kind": "Pod", "name": name, "namespace": "ns"},
            }
            for name, on, ready in pods
        ],
    }


def backends(stage: Stage) -> set[str]:
    return {text for row in stage.rows("Load_Balancer") for text in row["vips"].values()}


async def test_a_service_has_one_backend_for_both_pods_of_a_machine(stage: Stage) -> None:
    """KubeVirt's pods have the same labels and the same address: the slices name it twice."""
    stage.put("service", service(ips=["10.96.0.7", "fd96::7"]))
    run(stage, "a", on="n1", created=1)
    await stage.settle()
    v4, v6 = addresses(stage).split()[1:]
    expected = {f"{v4}:5432", f"[{v6}]:5432"}
    for pods in (
        [("a", "n1", True)],
        [("a", "n1", True), ("b", "n2", True)],
        [("a", "n1", False), ("b", "n2", True)],
        [("a", "n1", True), ("b", "n2", False)],
        [("b", "n2", True)],
    ):
        stage.put("endpointslice", piece(stage, *pods), piece(stage, *pods, family=6))
        await stage.settle()
        assert backends(stage) == expected


async def test_a_migration_moves_no_row_of_a_policy(stage: Stage) -> None:
    stage.put("namespace", {"metadata": {"name": "ns"}})
    peer = {"from": [{"podSelector": {"matchLabels": LABELS}}]}
    stage.put("networkpolicy", policy(), policy("q", podSelector={}, ingress=[peer]))
    run(stage, "a", on="n1", created=1, labels=LABELS)
    await stage.settle()

    def seen() -> tuple[dict[str, frozenset[str]], dict[str, set[str]]]:
        groups = {row["name"]: row["ports"] for row in stage.rows("Port_Group") if row["ports"]}
        return groups, {row["name"]: set(row["addresses"]) for row in stage.rows("Address_Set") if row["addresses"]}

    before = seen()
    assert any(port(stage).uuid in ports for ports in before[0].values())
    assert any(set(addresses(stage).split()[1:2]) == each for each in before[1].values())
    stage.put("vmmigration", migration("j1", "m"))
    stage.put("pod", launcher("m", "b", on="n2", job="j1", created=2, labels=LABELS))
    await stage.settle()
    assert seen() == before
    stage.put("vmmigration", migration("j1", "m", "Succeeded"))
    await stage.settle()
    assert seen() == before
    stage.put("pod", launcher("m", "a", on="n1", created=1, labels=LABELS, phase="Succeeded"))
    await stage.settle()
    assert seen() == before
    stage.remove("pod", "ns/a")
    await stage.settle()
    assert seen() == before
    # Its labels are those of the pod with the guest.
    stage.put("pod", launcher("m", "b", on="n2", job="j1", created=2))
    await stage.settle()
    assert seen() != before


async def away(stage: Stage) -> None:
    """The machine has an address of n1 and runs on n2."""
    stage.put("vm", vm("m"))
    run(stage, "a", on="n1", labels=LABELS)
    await stage.settle()
    stop(stage, "a")
    run(stage, "b", on="n2", labels=LABELS)
    await stage.settle()


async def again(stage: Stage, northbound: Northbound, *objects: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """What a controller makes of it that is started now."""
    async with Stage(northbound.remote) as another:
        another.put("node", *nodes("dual"))
        for kind, each in objects:
            another.put(kind, each)
        another.put("vm", vm("m", **{"dpu-offload.io/vm-networks": json.dumps(stage.machines["ns/m"])}))
        another.put("vmi", vmi("m", on="n2"))
        another.put("pod", launcher("m", "b", on="n2", labels=LABELS))
        await another.settle()
        return contents(another)


async def test_probes_of_a_guest_away_from_home_come_and_go_with_policies(stage: Stage, northbound: Northbound) -> None:
    await away(stage)

    def probes() -> list[str]:
        return [row["match"] for row in stage.rows("ACL") if 'outport == "ns_vm_m"' in row["match"]]

    assert probes() == []
    stage.put("namespace", {"metadata": {"name": "ns"}}, {"metadata": {"name": "elsewhere"}})
    other = {**policy(), "metadata": {"name": "p", "namespace": "elsewhere"}}
    stage.put("networkpolicy", other)
    await stage.settle()
    assert len(probes()) == 1
    there = [("namespace", {"metadata": {"name": name}}) for name in ("ns", "elsewhere")]
    assert await again(stage, northbound, *there, ("networkpolicy", other)) == contents(stage)
    stage.remove("networkpolicy", "elsewhere/p")
    await stage.settle()
    assert probes() == []


def gateway(index: int, last: int) -> dict[str, Any]:
    text = {"ips": [f"192.0.2.{last}/24"], "nextHops": ["192.0.2.254"], "physicalNetwork": "physnet1"}
    found = node(f"n{index}", *(each.format(index) for each in FAMILIES["dual"]), ip=f"192.0.2.{index}")
    found["metadata"]["annotations"] = {"dpu-offload.io/gateway": json.dumps(text)}
    return found


async def test_a_guest_away_from_home_follows_the_gateway_where_it_is(stage: Stage, northbound: Northbound) -> None:
    await away(stage)
    own = addresses(stage).split()[1]

    def outside() -> list[str]:
        return [row["external_ip"] for row in stage.rows("NAT") if row["logical_ip"] == own]

    assert outside() == []
    for last in (12, 13):
        stage.put("node", gateway(2, last))
        await stage.settle()
        assert outside() == [f"192.0.2.{last}"]
    assert await again(stage, northbound, ("node", gateway(2, 13))) == contents(stage)
    stage.put("node", node("n2", *(each.format(2) for each in FAMILIES["dual"]), ip="192.0.2.2"))
    await stage.settle()
    assert outside() == []
