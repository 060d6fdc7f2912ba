"""The ACL row that every kind of policy is made of (ovn-nb(5), table ACL)."""

from __future__ import annotations

from typing import Any, Literal

from cni.controller.rows import Row, RowId

METER = "dpu-offload-acl-log"
LONGEST_NAME = 63


def acl(
    row: RowId,
    direction: Literal["ingress", "egress", "outside"],
    *,
    priority: int,
    match: str,
    action: str,
    severity: str = "",
    name: str = "",
) -> Row:
    """An access rule for what comes to a pod's port ("ingress"), from it ("egress"), or from outside ("outside").

    What pods send is judged after load balancing, what comes from outside before it. `severity`: log with it.
    """
    columns: dict[str, Any] = {
        "priority": priority,
        "direction": "to-lport" if direction == "ingress" else "from-lport",
        "match": match,
        "action": action,
        "log": bool(severity),
        "severity": severity or None,
        "meter": METER if severity else None,
        "name": name[:LONGEST_NAME] or None,
        "options": {"apply-after-lb": "true"} if direction == "egress" else {},
    }
    return Row(row, columns)
