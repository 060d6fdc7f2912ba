"""Compares what is wanted with what is there, and makes the operations that lead from one to the other. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from cni.controller.rows import Member, Owner, Row, RowId
from cni.controller.rows.tables import TABLES, identity
from cni.controller.writer.actual import Actual
from cni.controller.writer.desired import Desired, Pending
from foundation.ovsdb import Change, NamedUuid, Uuid, fresh_name
from foundation.ovsdb import Row as ActualRow
from foundation.ovsdb import operations as op

# The table a member column points to; other member columns hold strings.
REFERS = {
    ("Logical_Switch", "ports"): "Logical_Switch_Port",
    ("Logical_Switch", "acls"): "ACL",
    ("Logical_Switch", "qos_rules"): "QoS",
    ("Logical_Switch", "load_balancer"): "Load_Balancer",
    ("Logical_Switch", "load_balancer_group"): "Load_Balancer_Group",
    ("Logical_Router", "ports"): "Logical_Router_Port",
    ("Logical_Router", "static_routes"): "Logical_Router_Static_Route",
    ("Logical_Router", "policies"): "Logical_Router_Policy",
    ("Logical_Router", "nat"): "NAT",
    ("Logical_Router", "load_balancer"): "Load_Balancer",
    ("Logical_Router", "load_balancer_group"): "Load_Balancer_Group",
    ("Logical_Router_Port", "gateway_chassis"): "Gateway_Chassis",
    ("Port_Group", "ports"): "Logical_Switch_Port",
    ("Port_Group", "acls"): "ACL",
    ("Load_Balancer_Group", "load_balancer"): "Load_Balancer",
    ("Meter", "bands"): "Meter_Band",
}


@dataclass
class Plan:
    """Operations of one transaction. `blocked`: owners that must wait until a row exists."""

    operations: list[op.Operation] = field(default_factory=list)
    blocked: dict[RowId, set[Owner]] = field(default_factory=dict)
    inserted: set[RowId] = field(default_factory=set)
    rows_written: dict[str, int] = field(default_factory=dict)

    def note(self, kind: str) -> None:
        """Counts a row written, by its owner's kind."""
        self.rows_written[kind] = self.rows_written.get(kind, 0) + 1


class _Planner:
    def __init__(self, desired: Desired, actual: Actual) -> None:
        self.desired = desired
        self.actual = actual
        self.plan = Plan()
        self.names: dict[RowId, NamedUuid] = {}
        self.inserts: dict[RowId, Row] = {}
        self.mutations: dict[tuple[Uuid, str, str], tuple[dict[Any, None], dict[Any, None]]] = {}
        self.deletes: list[tuple[RowId, ActualRow]] = []

    def resolve(self, row_id: RowId, owner: Owner) -> Uuid | NamedUuid | None:
        """What refers to a row; None (and the owner is blocked) when there is no such row."""
        row = self.actual.row(row_id)
        if row is not None:
            return row.uuid
        name = self.names.get(row_id)
        if name is None:
            self.plan.blocked.setdefault(row_id, set()).add(owner)
        return name

    def columns(self, row: Row, owner: Owner) -> dict[str, Any] | None:
        """A row's columns with references resolved and tags added; None when a reference is not there yet."""
        result: dict[str, Any] = {}
        for column, value in row.columns.items():
            if type(value) is RowId:
                value = self.resolve(value, owner)
                if value is None:
                    return None
            result[column] = value
        if TABLES[row.id.table].tagged:
            result["external_ids"] = {**row.columns.get("external_ids", {}), **row.id.tags()}
        else:
            result |= identity(row.id)
        return result

    def look_at_rows(self, pending: Pending) -> None:
        for row_id in pending.rows:
            want, have = self.desired.row(row_id), self.actual.row(row_id)
            if want is None:
                if have is not None:
                    self.deletes.append((row_id, have))
            elif have is None:
                self.inserts[row_id] = want
                self.names[row_id] = fresh_name()
            self.deletes.extend((row_id, twin) for twin in self.actual.twins(row_id))

    def write_rows(self, owner: Owner, pending: Pending) -> None:
        for row_id in pending.rows:
            want = self.desired.row(row_id)
            if want is None:
                continue
            columns = self.columns(want, owner)
            if columns is None:
                continue
            if row_id in self.inserts:
                for column in TABLES[row_id.table].members:
                    values = self._initial(row_id, column, owner)
                    if values:
                        columns[column] = values
                self.plan.operations.append(op.insert(row_id.table, columns, uuid_name=self.names[row_id]))
                self.plan.inserted.add(row_id)
                self.plan.note(row_id.kind)
                continue
            have = self.actual.row(row_id)
            assert have is not None  # else it were among the inserts
            changed = {column: value for column, value in columns.items() if not _same(have[column], value)}
            if changed:
                self.plan.operations.append(op.update(row_id.table, have.uuid, changed))
                self.plan.note(row_id.kind)

    def _initial(self, row_id: RowId, column: str, owner: Owner) -> list[Any]:
        values: list[Any] = []
        for value in self.desired.members(row_id, column):
            if type(value) is RowId:
                # A row that is not there yet comes with its own owner.
                actual = self.actual.row(value)
                reference = actual.uuid if actual is not None else self.names.get(value)
                if reference is not None:
                    values.append(reference)
            else:
                values.append(value)
        return values

    def look_at_members(self, owner: Owner, pending: Pending) -> None:
        for member in pending.members:
            if member.target in self.inserts:
                if self.desired.wants(member) and type(member.value) is RowId:
                    self.resolve(member.value, owner)
                continue
            target = self.actual.row(member.target)
            wanted = self.desired.wants(member)
            if target is None:
                if wanted:
                    self.plan.blocked.setdefault(member.target, set()).add(owner)
                continue
            value: Any = member.value
            if type(value) is RowId:
                if wanted:
                    value = self.resolve(value, owner)
                else:
                    row = self.actual.row(value)
                    value = row.uuid if row is not None else None
                if value is None:
                    continue
            present = value in target[member.column]
            if present != wanted:
                key = (target.uuid, member.target.table, member.column)
                pair = self.mutations.setdefault(key, ({}, {}))
                pair[0 if wanted else 1][value] = None

    def finish(self) -> Plan:
        operations = self.plan.operations
        for (uuid, table, column), (come, go) in self.mutations.items():
            mutations = []
            if go:
                mutations.append((column, "delete", list(go)))
            if come:
                mutations.append((column, "insert", list(come)))
            operations.append(op.mutate(table, uuid, mutations))
        for row_id, row in self.deletes:
            operations.extend(self._farewell(row_id, row))
            operations.append(op.delete(row_id.table, row.uuid))
            self.plan.note(row_id.kind)
        return self.plan

    def _farewell(self, row_id: RowId, row: ActualRow) -> Iterable[op.Operation]:
        """A twin is still referred to from its parent, which would keep the server from deleting it."""
        keep = self.actual.row(row_id)
        if keep is None or keep.uuid == row.uuid:
            return
        for (table, column), refers in REFERS.items():
            if refers == row_id.table:
                yield op.mutate(table, [(column, "includes", [row.uuid])], [(column, "delete", [row.uuid])])


def _same(have: Any, want: Any) -> bool:
    if isinstance(have, frozenset):
        if isinstance(want, (str, bytes)):
            return have == {want}
        return have == frozenset(want or ())
    return bool(have == want)


def make(desired: Desired, actual: Actual, work: dict[Owner, Pending]) -> Plan:
    """The transaction that brings the pending rows and members of `work`'s owners to what is wanted."""
    planner = _Planner(desired, actual)
    for pending in work.values():
        planner.look_at_rows(pending)
    for owner, pending in work.items():
        planner.write_rows(owner, pending)
    for owner, pending in work.items():
        planner.look_at_members(owner, pending)
    return planner.finish()


def differences(desired: Desired, actual: Actual) -> None:
    """Marks everything wanted, and everything of ours that nobody wants, as pending: the compare at the start.

    Of our set columns, members that nobody wants go too, except rows that other people have put there.
    """
    desired.recheck_all()
    for row_id in actual.ids():
        if desired.row(row_id) is None:
            desired.pending_of(row_id.owner).rows[row_id] = None
            continue
        have = actual.row(row_id)
        if have is None:
            continue  # somebody has just given this id to another row of ours
        for column in TABLES[row_id.table].members:
            _surplus(desired, actual, row_id, column, have[column])


def _surplus(desired: Desired, actual: Actual, row_id: RowId, column: str, values: Iterable[Any]) -> None:
    refers = REFERS.get((row_id.table, column))
    for value in values:
        known = actual.owned(refers, value) if refers else value
        if known is not None and not desired.wants(member := Member(row_id, column, known)):
            desired.pending_of(row_id.owner).members[member] = None


def drifted(desired: Desired, actual: Actual, row_id: RowId, change: Change) -> None:
    """Marks what a change of one of our rows left other than wanted; our own changes leave nothing."""
    want = desired.row(row_id)
    if want is None or change.new is None or change.old is None:
        if (want is None) != (change.new is None) or actual.twins(row_id):
            desired.recheck(row_id)
        return
    for column, new in change.new.columns.items():
        old = change.old[column]
        if old is new or old == new:
            continue
        if column in TABLES[row_id.table].members:
            refers = REFERS.get((row_id.table, column))
            for value in old ^ new:
                known = actual.owned(refers, value) if refers else value
                if known is None:  # a row that is gone, or not ours
                    continue
                member = Member(row_id, column, known)
                if desired.wants(member) != (value in new):
                    desired.pending_of(row_id.owner).members[member] = None
        elif column == "external_ids" or not _as_wanted(actual, want, column, new):
            desired.pending_of(row_id.owner).rows[row_id] = None


def _as_wanted(actual: Actual, want: Row, column: str, value: Any) -> bool:
    if column not in want.columns:
        return True
    wanted = want.columns[column]
    if type(wanted) is RowId:
        row = actual.row(wanted)
        if row is None:
            return False  # it went, and this reference with it: both come back
        wanted = row.uuid
    return _same(value, wanted)
