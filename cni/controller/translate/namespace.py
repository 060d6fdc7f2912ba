"""A namespace that asks for isolation into the ACLs that keep other namespaces out."""

from __future__ import annotations

from cni.controller.model.namespace import Namespace
from cni.controller.model.policy import EVERYTHING
from cni.controller.model.selector import PodSelector, pod_selector
from cni.controller.rows import EMPTY, Member, RowId, State
from cni.controller.selection import ADDRESSES, PORTS, Role
from cni.controller.translate import match
from cni.controller.translate import selector as groups
from cni.controller.translate.acl import acl

DENY_PRIORITY = 900
ALLOW_PRIORITY = 901


def everybody(namespace: str) -> PodSelector:
    """All pods of a namespace."""
    return pod_selector(namespace=namespace, pods=EVERYTHING)


def uses(namespace: Namespace) -> dict[PodSelector, frozenset[Role]]:
    """The selectors that its rows need."""
    return {everybody(namespace.name): frozenset((PORTS, ADDRESSES))} if namespace.isolated else {}


def translate(namespace: Namespace) -> State:
    """Only pods of the same namespace come in, below what policies say: a policy that selects a pod decides alone."""
    if not namespace.isolated:
        return EMPTY
    pods = everybody(namespace.name)
    group = groups.port_group(pods.id)
    ours = match.subject("ingress", groups.name(group))
    rows = (
        acl(
            RowId("ACL", "namespace", namespace.name, "isolation.deny"),
            "ingress",
            priority=DENY_PRIORITY,
            match=f"{ours} && ip",
            action="drop",
            severity=namespace.logging.deny,
            name=f"{namespace.name} isolation",
        ),
        acl(
            RowId("ACL", "namespace", namespace.name, "isolation.allow"),
            "ingress",
            priority=ALLOW_PRIORITY,
            match=f"{ours} && {match.peers('ingress', [pods]).text}",
            action="allow-related",
            severity=namespace.logging.allow,
            name=f"{namespace.name} isolation",
        ),
    )
    return State(rows, tuple(Member(group, "acls", row.id) for row in rows))
