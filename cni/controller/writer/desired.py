"""What shall be in the northbound database, with what has to be looked at since the last commit. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from cni.controller.rows import EMPTY, Member, Owner, Row, RowId, State

Value = str | RowId


class Desired:
    """States by owner. `pending` names each owner's rows and members whose place in the database is to be checked."""

    def __init__(self) -> None:
        self._states: dict[Owner, State] = {}
        self._rows: dict[RowId, Row] = {}
        # How many owners want each member: two may want the same one.
        self._members: dict[RowId, dict[str, dict[Value, int]]] = {}
        # Members that are rows of somebody else than him who wants them there.
        self._lent: dict[RowId, dict[Member, None]] = {}
        self.pending: dict[Owner, Pending] = {}

    def put(self, owner: Owner, state: State) -> bool:
        """Replaces all that `owner` wants; an EMPTY state removes it. Returns whether anything changed.

        Raises ValueError when a row belongs to somebody else or comes twice: a translator's mistake.
        """
        old = self._states.get(owner, EMPTY)
        if old == state:
            return False
        new_rows = {row.id: row for row in state.rows}
        if len(new_rows) != len(state.rows):
            raise ValueError(f"{owner.kind} {owner.key} names a row twice")
        for row_id in new_rows:
            if row_id.kind != owner.kind or row_id.key != owner.key:
                raise ValueError(f"{owner.kind} {owner.key} wants row {row_id} of another owner")
        pending = self.pending_of(owner)
        for row in old.rows:
            if row.id not in new_rows:
                del self._rows[row.id]
                pending.rows[row.id] = None
        for row in state.rows:
            if self._rows.get(row.id) != row:
                self._rows[row.id] = row
                pending.rows[row.id] = None
        old_members, new_members = set(old.members), set(state.members)
        for member in old.members:
            if member not in new_members:
                self._count(member, -1)
                pending.members[member] = None
                self._lend(owner, member)
        for member in state.members:
            if member not in old_members:
                self._count(member, 1)
                pending.members[member] = None
                self._lend(owner, member)
                old_members.add(member)  # a member named twice counts once
        if state == EMPTY:
            self._states.pop(owner, None)
        else:
            self._states[owner] = state
        return True

    def _count(self, member: Member, step: int) -> None:
        values = self._members.setdefault(member.target, {}).setdefault(member.column, {})
        count = values.get(member.value, 0) + step
        if count > 0:
            values[member.value] = count
            return
        values.pop(member.value, None)
        if not values:
            columns = self._members[member.target]
            del columns[member.column]
            if not columns:
                del self._members[member.target]

    def _lend(self, owner: Owner, member: Member) -> None:
        value = member.value
        if type(value) is not RowId or (value.kind == owner.kind and value.key == owner.key):
            return
        if self.wants(member):
            self._lent.setdefault(value, {})[member] = None
            return
        lent = self._lent.get(value, {})
        lent.pop(member, None)
        if not lent:
            self._lent.pop(value, None)

    def row(self, row_id: RowId) -> Row | None:
        """A row as wanted."""
        return self._rows.get(row_id)

    def rows(self) -> Mapping[RowId, Row]:
        """All rows wanted."""
        return self._rows

    def state(self, owner: Owner) -> State:
        """What an owner wants; EMPTY for one unknown."""
        return self._states.get(owner, EMPTY)

    def owners(self) -> Iterator[Owner]:
        """Everybody who wants anything."""
        return iter(self._states)

    def wants(self, member: Member) -> bool:
        """Whether anybody wants this member."""
        return member.value in self._members.get(member.target, {}).get(member.column, ())

    def members(self, target: RowId, column: str) -> Iterable[Value]:
        """All that is wanted in one set column."""
        return self._members.get(target, {}).get(column, {}).keys()

    def recheck(self, row_id: RowId) -> None:
        """Has a row looked at again: whether it is there, the members it takes, and where it is a member itself."""
        pending = self.pending_of(row_id.owner)
        pending.rows[row_id] = None
        for column, values in self._members.get(row_id, {}).items():
            for value in values:
                pending.members[Member(row_id, column, value)] = None
        for member in self.state(row_id.owner).members:
            if member.value == row_id:
                pending.members[member] = None
        pending.members.update(self._lent.get(row_id, {}))

    def recheck_all(self) -> None:
        """Has everything wanted looked at again."""
        for owner, state in self._states.items():
            pending = self.pending_of(owner)
            pending.rows.update((row.id, None) for row in state.rows)
            pending.members.update((member, None) for member in state.members)

    def pending_of(self, owner: Owner) -> Pending:
        """What is to be checked of an owner, to add to."""
        found = self.pending.get(owner)
        if found is None:
            found = self.pending[owner] = Pending()
        return found


class Pending:
    """Rows and members to check, in the order they came."""

    __slots__ = ("members", "rows")

    def __init__(self) -> None:
        self.rows: dict[RowId, None] = {}
        self.members: dict[Member, None] = {}

    def merge(self, other: Pending) -> None:
        """Adds what `other` holds."""
        self.rows |= other.rows
        self.members |= other.members
