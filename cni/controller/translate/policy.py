"""A NetworkPolicy into ACLs on its subject's port group.

A pod that any policy selects is isolated in that policy's directions: everything is refused at a low priority, and what
any policy's rule lets pass is allowed above it. So policies add up without knowing of one another. Traffic from inside
is judged after load balancing, so that a rule sees the pod behind a service.
"""

from __future__ import annotations

from cni.controller.model.namespace import Logging
from cni.controller.model.policy import Policy
from cni.controller.rows import Member, Row, RowId, State
from cni.controller.translate import match
from cni.controller.translate import selector as groups
from cni.controller.translate.acl import acl
from cni.controller.translate.match import Numbers

DENY_PRIORITY = 1000
ALLOW_PRIORITY = 1001


def translate(policy: Policy, *, numbers: Numbers, logging: Logging) -> State:
    """The ACLs of a policy, each a member of the subject's port group; for one network of a MultiNetworkPolicy too."""
    key = f"{policy.namespace}/{policy.name}"
    network = policy.subject.network
    group = groups.port_group(policy.subject.id)
    ours = groups.name(group)
    rows: list[Row] = []
    holders: list[RowId] = []
    for direction, rules in policy.rules():
        holders.append(group)
        rows.append(
            acl(
                _row(key, network, f"{direction}.deny"),
                direction,
                priority=DENY_PRIORITY,
                match=f"{match.subject(direction, ours)} && ip",
                action="drop",
                severity=logging.deny,
                name=f"{policy.namespace}/{policy.name} {direction} deny",
            )
        )
        for index, rule in enumerate(rules):
            found = match.alternatives(direction, policy.subject, rule, numbers)
            for number, (text, holder) in enumerate(found):
                holders.append(holder)
                rows.append(
                    acl(
                        _row(key, network, f"{direction}.{index}.{number}"),
                        direction,
                        priority=ALLOW_PRIORITY,
                        match=text,
                        action="allow-related",
                        severity=logging.allow,
                        name=f"{policy.namespace}/{policy.name} {direction} {index}",
                    )
                )
    return State(tuple(rows), tuple(Member(holder, "acls", row.id) for holder, row in zip(holders, rows, strict=True)))


def _row(key: str, network: str, part: str) -> RowId:
    if network:
        return RowId("ACL", "multinetworkpolicy", key, f"{network} {part}")
    return RowId("ACL", "networkpolicy", key, part)
