"""A selector in use into its port groups and address sets, filled by the pods it has chosen."""

from __future__ import annotations

from collections.abc import Iterable

from cni.controller.model.pod import Pod
from cni.controller.rows import Member, Row, RowId, State
from cni.controller.selection import ADDRESSES, PORTS, Role, Selection

FAMILIES = (4, 6)


def _part(role: Role, number: int) -> str:
    return f"{role.port_name}.{role.protocol}.{number}" if role.port_name else "all"


def port_group(selector_id: str, role: Role = PORTS, number: int = 0) -> RowId:
    """The port group of the pods chosen, or of those where a port name stands for `number`."""
    return RowId("Port_Group", "selector", selector_id, _part(role, number))


def address_set(selector_id: str, family: int, role: Role = ADDRESSES, number: int = 0) -> RowId:
    """The address set of the pods chosen, or of those where a port name stands for `number`."""
    return RowId("Address_Set", "selector", selector_id, f"{_part(role, number)}.v{family}")


def name(row: RowId) -> str:
    """The name to use in a match: `@name` for a port group, `$name` for an address set. Letters, digits, `_`, `.`."""
    kind = "pg" if row.table == "Port_Group" else "as"
    return f"{kind}_{row.key}_{row.part}".replace("-", "_")


def _groups(selection: Selection, role: Role) -> Iterable[RowId]:
    identity = selection.selector.id
    numbers = selection.numbers_of(role.port_name, role.protocol) if role.port_name else [0]
    for number in numbers:
        if role.kind == "ports":
            yield port_group(identity, role, number)
        else:
            for family in FAMILIES:
                yield address_set(identity, family, role, number)


def translate(selection: Selection) -> State:
    """The rows, empty: each pod puts itself in (`memberships`)."""
    return State(
        tuple(
            Row(group, {"name": name(group)})
            for role in sorted(selection.roles())
            for group in _groups(selection, role)
        )
    )


def memberships(selections: Iterable[Selection], pod: Pod, port: RowId, ips: Iterable[str]) -> list[Member]:
    """What a pod puts into the groups of the selections that have chosen it: its port, its addresses."""
    members: list[Member] = []
    ips = tuple(ips)
    for selection in selections:
        identity = selection.selector.id
        for role in sorted(selection.roles()):
            numbers = (
                [each.port for each in pod.ports if (each.name, each.protocol) == (role.port_name, role.protocol)]
                if role.port_name
                else [0]
            )
            for number in numbers:
                if role.kind == "ports":
                    members.append(Member(port_group(identity, role, number), "ports", port))
                else:
                    members += [
                        Member(address_set(identity, 6 if ":" in ip else 4, role, number), "addresses", ip)
                        for ip in ips
                    ]
    return members
