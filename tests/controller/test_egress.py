"""Addresses that a namespace has outside of the cluster.

Subjects: one gateway has each address, another takes over when its node goes or is not ready, bad annotations. That
nodes are reached directly all the same is among the packets of `test_services`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from cni.controller.model.annotations import GATEWAY
from cni.controller.rows import Owner
from foundation.ovsdb import Row
from tests.controller.stage import Northbound, Stage, node, pod


@pytest.fixture
def northbound() -> Iterator[Northbound]:
    server = Northbound()
    yield server
    server.remove()


@pytest.fixture
async def stage(northbound: Northbound) -> AsyncIterator[Stage]:
    async with Stage(northbound.remote, ranges=["10.1.0.0/16"]) as stage:
        stage.put("node", gateway_node("n1"), gateway_node("n2"))
        yield stage


def gateway_node(name: str) -> dict[str, Any]:
    index = name[1:]
    made = node(name, f"10.1.{index}.0/24", ip=f"192.0.2.{index}")
    text = json.dumps({"ips": [f"192.0.2.10{index}/24"], "nextHops": ["192.0.2.254"]})
    made["metadata"]["annotations"] = {GATEWAY: text}
    return made


def rerouting(stage: Stage) -> list[Row]:
    return [row for row in stage.rows("Logical_Router_Policy") if row["action"] == "reroute"]


async def test_a_namespaces_own_addresses_outside(stage: Stage) -> None:
    annotations = {"dpu-offload.io/egress-ips": '["192.0.2.200"]'}
    stage.put("namespace", {"metadata": {"name": "ns", "annotations": annotations}})
    stage.put("pod", pod("a", on="n1"), pod("b", on="n2"), pod("c", namespace="other"))
    await stage.settle()
    assert stage.problems == {}
    policies = rerouting(stage)
    address = stage.annotations["ns/a"]["default"]["ips"][0].partition("/")[0]
    assert len(policies) == 2
    assert any(f"ip4.src == {address} && ip4.dst != {{10.1.0.0/16}}" in row["match"] for row in policies)
    nats = {row.uuid: row for row in stage.rows("NAT") if row["external_ip"] == "192.0.2.200"}
    (owner,) = {name for name, row in stage.named("Logical_Router").items() if row["nat"] & set(nats)}
    # The node that has the address goes; the other gateway takes over.
    stage.remove("node", owner.removeprefix("gateway_"))
    await stage.settle()
    (heir,) = {
        name
        for name, row in stage.named("Logical_Router").items()
        if any(nat.uuid in row["nat"] for nat in stage.rows("NAT") if nat["external_ip"] == "192.0.2.200")
    }
    assert heir != owner
    stage.put("namespace", {"metadata": {"name": "ns"}})
    await stage.settle()
    assert not rerouting(stage)


async def test_an_address_leaves_a_node_that_is_not_ready(stage: Stage) -> None:
    annotations = {"dpu-offload.io/egress-ips": '["192.0.2.200"]'}
    stage.put("namespace", {"metadata": {"name": "ns", "annotations": annotations}})
    stage.put("pod", pod("a", on="n1"))

    def holder() -> str:
        (nat,) = (row for row in stage.rows("NAT") if row["external_ip"] == "192.0.2.200")
        (name,) = (name for name, row in stage.named("Logical_Router").items() if nat.uuid in row["nat"])
        return name.removeprefix("gateway_")

    await stage.settle()
    first = holder()
    other = {"n1": "n2", "n2": "n1"}[first]
    for status, wanted in (("Unknown", other), ("False", other), ("True", first)):
        made = gateway_node(first)
        made["status"]["conditions"] = [
            {"type": "Ready", "status": status},
            {"type": "DiskPressure", "status": "False"},
        ]
        stage.put("node", made)
        await stage.settle()
        assert holder() == wanted
    for name in ("n1", "n2"):
        made = gateway_node(name)
        made["status"]["conditions"] = [{"type": "Ready", "status": "Unknown"}]
        stage.put("node", made)
    await stage.settle()
    assert holder() == first, "better an address of a node that may be down than none"


@pytest.mark.parametrize(
    ("text", "message"),
    [("[", "is not of the form"), ('["nonsense"]', "is not of the form"), ('["198.51.100.1"]', "no gateway is in")],
)
async def test_bad_egress_addresses(stage: Stage, text: str, message: str) -> None:
    stage.put("namespace", {"metadata": {"name": "ns", "annotations": {"dpu-offload.io/egress-ips": text}}})
    stage.put("pod", pod("a"))
    await stage.settle()
    assert message in str(stage.problems[Owner("namespace", "ns")])
    assert "ns_a" in stage.named("Logical_Switch_Port")
