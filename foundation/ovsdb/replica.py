"""A local copy of monitored tables that turns each update of the server into row changes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from foundation.ovsdb.errors import SchemaMismatch
from foundation.ovsdb.schema import ColumnType, Schema
from foundation.ovsdb.values import Uuid, Value, apply_diff, from_wire

_log = logging.getLogger(__name__)


class Row:
    """One row as it was at one moment: `row["name"]`; never changed in place, so it may be kept."""

    __slots__ = ("_values", "uuid")

    def __init__(self, uuid: Uuid, values: dict[str, Value]) -> None:
        self.uuid = uuid
        self._values = values

    def __getitem__(self, column: str) -> Value:
        return self._values[column]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Row) and self.uuid == other.uuid and self._values == other._values

    def __hash__(self) -> int:
        return hash(self.uuid)

    def __repr__(self) -> str:
        return f"Row({self.uuid}, {self._values})"

    @property
    def columns(self) -> Mapping[str, Value]:
        """Monitored columns and their values."""
        return self._values


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one row. `old` is None on insert, `new` on delete."""

    kind: Literal["insert", "modify", "delete"]
    table: str
    uuid: Uuid
    old: Row | None
    new: Row | None


ChangeCallback = Callable[[Change], None]
Key = Callable[[Row], Hashable | None]


class Index:
    """Rows of one table by a key computed from the row; a key of None leaves the row out."""

    def __init__(self, key: Key) -> None:
        self._key = key
        # One row a key is the rule, so only a clash pays for a dictionary.
        self._rows: dict[Hashable, Row | dict[Uuid, Row]] = {}

    def one(self, key: Hashable) -> Row | None:
        """A row with this key; any one of them if there are several."""
        found = self._rows.get(key)
        return next(iter(found.values())) if isinstance(found, dict) else found

    def all(self, key: Hashable) -> Collection[Row]:
        """Every row with this key."""
        found = self._rows.get(key)
        if found is None:
            return ()
        return tuple(found.values()) if isinstance(found, dict) else (found,)

    def __iter__(self) -> Iterator[Hashable]:
        """The keys present."""
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def _add(self, row: Row) -> None:
        key = self._key(row)
        if key is None:
            return
        found = self._rows.get(key)
        if found is None or (isinstance(found, Row) and found.uuid == row.uuid):
            self._rows[key] = row
        elif isinstance(found, dict):
            found[row.uuid] = row
        else:
            self._rows[key] = {found.uuid: found, row.uuid: row}

    def _remove(self, row: Row) -> None:
        key = self._key(row)
        if key is None:
            return
        found = self._rows.get(key)
        if isinstance(found, dict):
            found.pop(row.uuid, None)
            if len(found) == 1:
                self._rows[key] = next(iter(found.values()))
        elif found is not None and found.uuid == row.uuid:
            del self._rows[key]

    def update(self, old: Row | None, new: Row | None) -> None:
        """Follows one change of a row."""
        if old is not None and (new is None or self._key(old) != self._key(new)):
            self._remove(old)
        if new is not None:
            self._add(new)


class _Table:
    def __init__(self, columns: tuple[str, ...]) -> None:
        self.columns = columns
        self.types: Mapping[str, ColumnType] = {}
        self.rows: dict[Uuid, Row] = {}
        self.indexes: list[Index] = []
        self.subscribers: list[ChangeCallback] = []


class Replica:
    """Tables with their rows, indexes and subscribers. Pure: fed with decoded `table-updates2`."""

    def __init__(self) -> None:
        self._tables: dict[str, _Table] = {}

    def register(self, tables: Mapping[str, Collection[str]]) -> None:
        """Adds tables, or columns to tables; only before the first update."""
        for name, columns in tables.items():
            known = self._tables.get(name)
            merged = dict.fromkeys((*(known.columns if known else ()), *columns))
            if known is None:
                self._tables[name] = _Table(tuple(merged))
            else:
                known.columns = tuple(merged)

    def columns(self) -> dict[str, tuple[str, ...]]:
        """The registered columns of each table."""
        return {name: table.columns for name, table in self._tables.items()}

    def bind(self, schema: Schema) -> None:
        """Takes the column types. Raises SchemaMismatch when the server lacks something registered."""
        types = {name: schema.columns(name, table.columns) for name, table in self._tables.items()}
        for name, found in types.items():
            self._tables[name].types = found

    def _table(self, name: str) -> _Table:
        table = self._tables.get(name)
        if table is None:
            raise SchemaMismatch(f"table {name} is not monitored: name it in monitor() first")
        return table

    def rows(self, table: str) -> Mapping[Uuid, Row]:
        """A live view of a table."""
        return self._table(table).rows

    def index(self, table: str, key: Key) -> Index:
        """An index kept up to date from now on, filled with the rows present."""
        target = self._table(table)
        index = Index(key)
        for row in target.rows.values():
            index.update(None, row)
        target.indexes.append(index)
        return index

    def subscribe(self, table: str, callback: ChangeCallback) -> Callable[[], None]:
        """Calls back for each change, after the whole update is applied. Returns how to unsubscribe."""
        subscribers = self._table(table).subscribers
        subscribers.append(callback)

        def unsubscribe() -> None:
            if callback in subscribers:
                subscribers.remove(callback)

        return unsubscribe

    def _set(self, table: _Table, name: str, uuid: Uuid, new: Row | None) -> Change | None:
        old = table.rows.get(uuid)
        if new is None:
            if old is None:
                return None
            del table.rows[uuid]
        else:
            table.rows[uuid] = new
        for index in table.indexes:
            index.update(old, new)
        if not table.subscribers:
            return None
        kind: Literal["insert", "modify", "delete"] = "delete" if new is None else "modify" if old else "insert"
        return Change(kind=kind, table=name, uuid=uuid, old=old, new=new)

    def _whole(self, table: _Table, uuid: Uuid, wire: Mapping[str, Any]) -> Row:
        values = {}
        for column, column_type in table.types.items():
            if column in wire:
                values[column] = from_wire(wire[column], column_type)
            else:  # the server leaves out columns that hold their type's default
                values[column] = column_type.default
        return Row(uuid, values)

    def apply(self, updates: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
        """One `table-updates2`: {table: {uuid: {"initial" | "insert" | "modify" | "delete": row}}}."""
        self._deliver(self._applied(updates))

    def _applied(self, updates: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[Change]:
        changes: list[Change] = []
        for name, rows in updates.items():
            table = self._tables[name]
            for key, update in rows.items():
                uuid = Uuid(key)
                ((kind, wire),) = update.items()
                new: Row | None
                if kind == "delete":
                    new = None
                elif kind == "modify" and (old := table.rows.get(uuid)) is not None:
                    values = dict(old.columns)
                    for column, diff in wire.items():
                        if column in table.types:
                            values[column] = apply_diff(values[column], diff, table.types[column])
                    new = Row(uuid, values)
                else:
                    new = self._whole(table, uuid, wire or {})
                change = self._set(table, name, uuid, new)
                if change is not None:
                    changes.append(change)
        return changes

    def replace(self, updates: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
        """The full contents after a reconnect: subscribers see only what differs from the copy held."""
        changes: list[Change] = []
        for name, table in self._tables.items():
            given = updates.get(name, {})
            for uuid in [uuid for uuid in table.rows if uuid not in given]:
                change = self._set(table, name, uuid, None)
                if change is not None:
                    changes.append(change)
            for key, update in given.items():
                uuid = Uuid(key)
                ((_, wire),) = update.items()
                new = self._whole(table, uuid, wire)
                if table.rows.get(uuid) != new:
                    change = self._set(table, name, uuid, new)
                    if change is not None:
                        changes.append(change)
        self._deliver(changes)

    def _deliver(self, changes: list[Change]) -> None:
        for change in changes:
            for callback in tuple(self._tables[change.table].subscribers):
                try:
                    callback(change)
                except Exception:
                    # One reader's fault must not cost the others their events.
                    _log.exception("a subscriber of table %s failed", change.table)
