"""AdminNetworkPolicies into ACLs above those of network policies, the baseline into ACLs below them.

Each rule has a priority of its own, by the order of all policies. OVN (23.03) knows no "pass": so what a Pass rule fits
is taken out of all admin rules that follow it, and comes to the network policies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cni.controller.model.admin_policy import AdminPolicy, AdminRule
from cni.controller.rows import Member, Row, RowId, State
from cni.controller.translate import match
from cni.controller.translate.acl import acl
from cni.controller.translate.match import Direction, NodeAddresses, Numbers

TOP_PRIORITY = 30000
LOWEST_PRIORITY = 2000
BASELINE_PRIORITY = 800
ACTIONS = {"Allow": "allow-related", "Deny": "drop"}
DIRECTIONS: tuple[Direction, ...] = ("ingress", "egress")

Passed = Mapping[Direction, Sequence[str]]


def rules_of(policy: AdminPolicy, direction: Direction) -> tuple[AdminRule, ...]:
    """The rules of one direction."""
    return policy.ingress if direction == "ingress" else policy.egress


def order(policies: Mapping[str, AdminPolicy]) -> list[AdminPolicy]:
    """From the first to be asked to the last; equal priorities by name, so that it is always the same."""
    return sorted(policies.values(), key=lambda each: (each.priority or 0, each.name))


def before(
    policy: AdminPolicy, ordered: Sequence[AdminPolicy], *, numbers: Numbers, nodes: NodeAddresses
) -> tuple[int, Passed]:
    """The priority of a policy's first rule, with what earlier policies' Pass rules took out."""
    priority = TOP_PRIORITY
    passed: dict[Direction, list[str]] = {direction: [] for direction in DIRECTIONS}
    for each in ordered:
        if each.name == policy.name:
            break
        priority -= each.levels
        for direction in DIRECTIONS:
            for rule in rules_of(each, direction):
                if rule.action == "Pass":
                    passed[direction] += match.complements(direction, each.subject, rule.rule, numbers, nodes=nodes)
    return priority, passed


def translate(policy: AdminPolicy, *, priority: int, passed: Passed, numbers: Numbers, nodes: NodeAddresses) -> State:
    """The ACLs of one policy. `priority`: of its first rule; `passed`: conditions for each rule besides its own."""
    kind = "baselineadminnetworkpolicy" if policy.priority is None else "adminnetworkpolicy"
    rows: list[Row] = []
    holders: list[RowId] = []
    for direction in DIRECTIONS:
        conditions = list(passed.get(direction, ()))
        for index, rule in enumerate(rules_of(policy, direction)):
            if rule.action == "Pass":
                conditions += match.complements(direction, policy.subject, rule.rule, numbers, nodes=nodes)
                continue
            found = match.alternatives(direction, policy.subject, rule.rule, numbers, nodes=nodes)
            for number, (text, holder) in enumerate(found):
                holders.append(holder)
                rows.append(
                    acl(
                        RowId("ACL", kind, policy.name, f"{direction}.{index}.{number}"),
                        direction,
                        priority=priority - index,
                        match=" && ".join((text, *conditions)),
                        action=ACTIONS[rule.action],
                        name=f"{policy.name} {direction} {index}",
                    )
                )
    return State(tuple(rows), tuple(Member(holder, "acls", row.id) for holder, row in zip(holders, rows, strict=True)))
