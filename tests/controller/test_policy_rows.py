"""Policies into ACLs, groups and sets, by what is then in a real northbound database.

Subjects: the pair of refusal and allowance with its priorities and sides, one ACL a rule, shared groups and sets of
equal selectors (every combination of absent and empty ones), logging by namespace, changes that keep the row,
policyTypes left out, pods on the host's network, namespaces that come after the policy.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from cni.controller.model.annotations import ACL_LOGGING
from cni.controller.model.policy import POLICY_FOR
from foundation.ovsdb import Row
from tests.controller.stage import Northbound, Stage, node, pod

Json = dict[str, Any]


@pytest.fixture
def northbound() -> Iterator[Northbound]:
    server = Northbound()
    yield server
    server.remove()


@pytest.fixture
async def stage(northbound: Northbound) -> AsyncIterator[Stage]:
    async with Stage(northbound.remote) as stage:
        stage.put("node", node("n1", "10.1.0.0/24"))
        for name in ("ns", "other"):
            stage.put("namespace", {"metadata": {"name": name, "labels": {"name": name}}})
        stage.put("pod", pod("a", labels={"app": "a"}), pod("b", labels={"app": "b"}))
        stage.put("pod", pod("c", namespace="other", labels={"app": "a"}))
        stage.put("pod", pod("host", host_network=True, labels={"app": "a"}, ip="192.0.2.1"))
        yield stage


def policy(name: str, **spec: Any) -> Json:
    return {"metadata": {"name": name, "namespace": "ns"}, "spec": {"podSelector": {}, **spec}}


def acls(stage: Stage, name: str) -> dict[str, Row]:
    """A policy's ACLs by part."""
    return {
        row["external_ids"]["dpu-offload.io/part"]: row
        for row in stage.rows("ACL")
        if row["external_ids"]["dpu-offload.io/key"] == f"ns/{name}"
    }


async def test_the_pair_of_each_direction(stage: Stage) -> None:
    stage.put("networkpolicy", policy("p", policyTypes=["Ingress", "Egress"], ingress=[{}], egress=[{}]))
    await stage.settle()
    found = acls(stage, "p")
    shape = {part: (row["priority"], row["direction"], row["action"], row["options"]) for part, row in found.items()}
    after = {"apply-after-lb": "true"}
    assert shape == {
        "ingress.deny": (1000, "to-lport", "drop", {}),
        "ingress.0.0": (1001, "to-lport", "allow-related", {}),
        "egress.deny": (1000, "from-lport", "drop", after),
        "egress.0.0": (1001, "from-lport", "allow-related", after),
    }
    (group,) = (row for row in stage.rows("Port_Group") if row["acls"])
    assert group["acls"] == {row.uuid for row in found.values()}
    ports = stage.named("Logical_Switch_Port")
    assert group["ports"] == {ports["ns_a"].uuid, ports["ns_b"].uuid}
    assert found["ingress.deny"]["match"] == f"outport == @{group['name']} && ip"
    assert found["egress.0.0"]["match"] == f"inport == @{group['name']} && ip"
    stage.remove("networkpolicy", "ns/p")
    await stage.settle()
    assert not list(stage.rows("ACL"))


@pytest.mark.parametrize(
    ("spec", "directions"),
    [
        ({}, {"ingress"}),
        ({"ingress": []}, {"ingress"}),
        ({"egress": [{}]}, {"ingress", "egress"}),
        ({"egress": []}, {"ingress"}),
        ({"policyTypes": ["Egress"]}, {"egress"}),
        ({"policyTypes": ["Egress"], "ingress": [{}]}, {"egress"}),
        ({"policyTypes": ["Ingress", "Egress"]}, {"ingress", "egress"}),
        ({"policyTypes": []}, {"ingress"}),
        ({"policyTypes": [], "egress": [{}]}, {"ingress", "egress"}),
    ],
)
async def test_directions_in_which_a_policy_isolates(stage: Stage, spec: Json, directions: set[str]) -> None:
    stage.put("networkpolicy", policy("p", **spec))
    await stage.settle()
    assert {part.partition(".")[0] for part in acls(stage, "p")} == directions


A = {"matchLabels": {"app": "a"}}
OTHER = {"matchLabels": {"name": "other"}}


@pytest.mark.parametrize(
    ("peer", "chosen"),
    [
        ({"podSelector": {}}, {"ns/a", "ns/b"}),
        ({"podSelector": A}, {"ns/a"}),
        ({"namespaceSelector": {}}, {"ns/a", "ns/b", "other/c"}),
        ({"namespaceSelector": {}, "podSelector": {}}, {"ns/a", "ns/b", "other/c"}),
        ({"namespaceSelector": {}, "podSelector": A}, {"ns/a", "other/c"}),
        ({"namespaceSelector": OTHER}, {"other/c"}),
        ({"namespaceSelector": OTHER, "podSelector": {}}, {"other/c"}),
        ({"namespaceSelector": OTHER, "podSelector": A}, {"other/c"}),
        ({"namespaceSelector": {"matchLabels": {"name": "later"}}}, set()),
    ],
)
async def test_peers_become_sets_of_addresses(stage: Stage, peer: Json, chosen: set[str]) -> None:
    stage.put("networkpolicy", policy("p", ingress=[{"from": [peer]}]))
    await stage.settle()
    owners = {stage.annotations[key]["default"]["ips"][0].partition("/")[0]: key for key in stage.annotations}
    (used,) = (
        row for row in stage.rows("Address_Set") if f"${row['name']} " in acls(stage, "p")["ingress.0.0"]["match"]
    )
    assert {owners[each] for each in used["addresses"]} == chosen


def peers_sets(stage: Stage) -> set[str]:
    return {row["name"] for row in stage.rows("Address_Set") if row["name"].startswith("as_")}


async def test_selectors_that_mean_the_same_share_their_rows(stage: Stage) -> None:
    either = {"matchExpressions": [{"key": "app", "operator": "In", "values": ["b", "a"]}]}
    rehitie = {"matchExpressions": [{"key": "app", "operator": "In", "values": ["a", "b"]}]}
    stage.put("networkpolicy", policy("p", ingress=[{"from": [{"namespaceSelector": {}}]}]))
    await stage.settle()
    before = peers_sets(stage)
    stage.put(
        "networkpolicy",
        policy("same", ingress=[{"from": [{"namespaceSelector": {}, "podSelector": {}}]}]),
        policy("thrice", egress=[{"to": [{"namespaceSelector": {}}]}, {"to": [{"namespaceSelector": {}}]}]),
    )
    await stage.settle()
    assert peers_sets(stage) == before
    stage.put("networkpolicy", policy("one", ingress=[{"from": [{"podSelector": either}]}]))
    await stage.settle()
    more = peers_sets(stage)
    assert len(more) == len(before) + 2  # one a family
    stage.put("networkpolicy", policy("two", ingress=[{"from": [{"podSelector": rehitie}]}]))
    await stage.settle()
    assert peers_sets(stage) == more
    stage.remove("networkpolicy", "ns/p", "ns/same", "ns/one")
    await stage.settle()
    assert peers_sets(stage) == more, "others use them still"
    stage.remove("networkpolicy", "ns/thrice", "ns/two")
    await stage.settle()
    assert peers_sets(stage) == set()


async def test_blocks_of_one_rule_share_one_acl(stage: Stage) -> None:
    blocks = [
        {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "10.2.0.0/16"]}},
        {"ipBlock": {"cidr": "::/0"}},
    ]
    stage.put("networkpolicy", policy("p", egress=[{"to": blocks, "ports": [{"port": 53, "protocol": "UDP"}]}]))
    await stage.settle()
    found = acls(stage, "p")
    assert set(found) == {"ingress.deny", "egress.deny", "egress.0.0"}
    match = found["egress.0.0"]["match"]
    assert "(ip4.dst == 10.0.0.0/8 && ip4.dst != {10.1.0.0/16, 10.2.0.0/16})" in match
    assert "ip6.dst == ::/0" in match
    assert match.endswith("udp.dst == 53")


@pytest.mark.parametrize(
    ("text", "deny", "allow"),
    [
        (None, None, None),
        ('{"deny": "alert"}', "alert", None),
        ('{"allow": "info"}', None, "info"),
        ('{"deny": "warning", "allow": "debug"}', "warning", "debug"),
        ("{}", None, None),
        ('{"deny": ""}', None, None),
        ('{"deny": "shout"}', None, None),
        ("nonsense", None, None),
    ],
)
async def test_logging_follows_the_namespace(
    stage: Stage, text: str | None, deny: str | None, allow: str | None
) -> None:
    stage.put("networkpolicy", policy("p", ingress=[{}]))
    await stage.settle()
    before = {part: row.uuid for part, row in acls(stage, "p").items()}
    annotations = {ACL_LOGGING: text} if text is not None else {}
    stage.put("namespace", {"metadata": {"name": "ns", "labels": {"name": "ns"}, "annotations": annotations}})
    await stage.settle()
    found = acls(stage, "p")
    for part, severity in (("ingress.deny", deny), ("ingress.0.0", allow)):
        row = found[part]
        assert (row["severity"], row["log"], bool(row["meter"])) == (
            severity,
            severity is not None,
            severity is not None,
        )
        assert row["name"] == f"ns/p ingress {'deny' if part.endswith('deny') else '0'}"
    assert {part: row.uuid for part, row in found.items()} == before, "connections keep their ACL"


async def test_logging_of_policies_for_other_networks_follows_too(stage: Stage) -> None:
    config = '{"type": "dpu-offload", "topology": "layer2"}'
    stage.put("network", {"metadata": {"name": "blue", "namespace": "ns"}, "spec": {"config": config}})
    metadata = {"name": "m", "namespace": "ns", "annotations": {POLICY_FOR: "blue"}}
    stage.put("multinetworkpolicy", {"metadata": metadata, "spec": {"podSelector": {}, "ingress": []}})
    await stage.settle()
    for text, severity in (('{"deny": "alert"}', "alert"), ("{}", None)):
        namespace = {"name": "ns", "labels": {"name": "ns"}, "annotations": {ACL_LOGGING: text}}
        stage.put("namespace", {"metadata": namespace})
        await stage.settle()
        assert [row["severity"] for row in stage.rows("ACL")] == [severity]


@pytest.mark.parametrize("change", ["number", "namespace"])
async def test_what_is_passed_on_by_a_ports_name_follows_the_name(stage: Stage, change: str) -> None:
    """It is taken out of all admin rules behind, also of other policies: a set that is gone would void their rules."""
    stage.put("namespace", {"metadata": {"name": "ns", "labels": {"in": "yes"}}})
    passing = {"action": "Pass", "from": [{"namespaces": {}}], "ports": [{"namedPort": "web"}]}
    subject = {"namespaces": {"matchLabels": {"in": "yes"}}}
    for name, rule in (("first", passing), ("second", {"action": "Deny", "from": [{"namespaces": {}}]})):
        spec = {"priority": 5, "subject": subject, "ingress": [rule]}
        stage.put("adminnetworkpolicy", {"metadata": {"name": name}, "spec": spec})
    stage.put("pod", pod("a", uid="a", ports={"web": ("TCP", 80)}))
    await stage.settle()

    def match() -> str:
        (row,) = (each for each in stage.rows("ACL") if str(each["name"]).startswith("second"))
        return str(row["match"])

    assert "tcp.dst != 80" in match()
    if change == "number":
        stage.put("pod", pod("a", uid="a", ports={"web": ("TCP", 81)}))
    else:
        stage.put("namespace", {"metadata": {"name": "ns"}})
    await stage.settle()
    assert "tcp.dst != 80" not in match()
    assert ("tcp.dst != 81" in match()) == (change == "number")
    sets = {each["name"] for each in stage.rows("Address_Set")}
    assert set(re.findall(r"\$([\w.]+)", match())) <= sets


async def test_a_namespace_and_its_pods_that_come_later_count(stage: Stage) -> None:
    peer = {"namespaceSelector": {"matchLabels": {"name": "later"}}}
    stage.put("networkpolicy", policy("p", ingress=[{"from": [peer]}]))
    stage.put("pod", pod("d", namespace="later"))
    await stage.settle()
    stage.put("namespace", {"metadata": {"name": "later", "labels": {"name": "later"}}})
    await stage.settle()
    (used,) = (row for row in stage.rows("Address_Set") if row["name"].endswith(".v4") and row["addresses"])
    assert used["addresses"] == {stage.annotations["later/d"]["default"]["ips"][0].partition("/")[0]}
    stage.remove("namespace", "later")
    await stage.settle()
    assert not any(row["addresses"] for row in stage.rows("Address_Set"))


async def test_long_names_are_cut(stage: Stage) -> None:
    name = "p" * 200
    stage.put("namespace", {"metadata": {"name": "ns", "annotations": {ACL_LOGGING: json.dumps({"deny": "info"})}}})
    stage.put("networkpolicy", policy(name))
    await stage.settle()
    (row,) = acls(stage, name).values()
    assert len(row["name"]) == 63
