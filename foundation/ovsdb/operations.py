"""Builds the operations of a transaction (RFC 7047 section 5.2) from Python values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from foundation.ovsdb.values import NamedUuid, Uuid, Value, to_wire

Operation: TypeAlias = dict[str, Any]
Condition: TypeAlias = tuple[str, str, Value]
Mutation: TypeAlias = tuple[str, str, Value]
Where: TypeAlias = Uuid | Sequence[Condition]


def _row(row: Mapping[str, Value]) -> dict[str, Any]:
    return {column: to_wire(value) for column, value in row.items()}


def _where(where: Where) -> list[list[Any]]:
    if isinstance(where, str):
        return [["_uuid", "==", ["uuid", str(where)]]]
    return [[column, function, to_wire(value)] for column, function, value in where]


def insert(table: str, row: Mapping[str, Value], *, uuid_name: NamedUuid | None = None) -> Operation:
    """A new row; other operations of the transaction may refer to it by `uuid_name`."""
    operation: Operation = {"op": "insert", "table": table, "row": _row(row)}
    if uuid_name is not None:
        operation["uuid-name"] = str(uuid_name)
    return operation


def update(table: str, where: Where, row: Mapping[str, Value]) -> Operation:
    """Sets columns of the rows that fit (`where`: a row's uuid, or a list of (column, function, value))."""
    return {"op": "update", "table": table, "where": _where(where), "row": _row(row)}


def mutate(table: str, where: Where, mutations: Iterable[Mutation]) -> Operation:
    """Changes parts of columns: (column, "insert" | "delete" | "+=" …, value)."""
    return {
        "op": "mutate",
        "table": table,
        "where": _where(where),
        "mutations": [[column, mutator, to_wire(value)] for column, mutator, value in mutations],
    }


def delete(table: str, where: Where) -> Operation:
    """Removes the rows that fit."""
    return {"op": "delete", "table": table, "where": _where(where)}


def select(table: str, where: Where = (), columns: Sequence[str] | None = None) -> Operation:
    """Reads rows; the result's "rows" are in wire form."""
    operation: Operation = {"op": "select", "table": table, "where": _where(where)}
    if columns is not None:
        operation["columns"] = list(columns)
    return operation


def wait(
    table: str,
    where: Where,
    rows: Iterable[Mapping[str, Value]],
    *,
    until: Literal["==", "!="] = "==",
    timeout_ms: int = 0,
) -> Operation:
    """Fails the transaction unless the rows that fit are (or are not) exactly `rows`: a guard against stale reads."""
    wanted = [dict(row) for row in rows]
    columns = sorted({column for row in wanted for column in row}) or ["_uuid"]
    return {
        "op": "wait",
        "table": table,
        "where": _where(where),
        "columns": columns,
        "until": until,
        "rows": [_row(row) for row in wanted],
        "timeout": timeout_ms,
    }


def comment(text: str) -> Operation:
    """A line for the server's journal."""
    return {"op": "comment", "comment": text}
