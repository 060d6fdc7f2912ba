"""The part of a database schema (RFC 7047 section 3.2) that decoding needs: each column's shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from foundation.ovsdb.errors import SchemaMismatch


@dataclass(frozen=True, slots=True)
class ColumnType:
    """`is_map`: key-value pairs; `is_set`: may hold more than one element; neither: one atom, or none at all.

    `default`: what a row holds when nobody gave a value (RFC 7047 section 5.2.1); `None` for an empty optional column.
    """

    is_map: bool
    is_set: bool
    default: Any


@dataclass(frozen=True, slots=True)
class Schema:
    """Tables of a database, each with its columns' types."""

    name: str
    version: str
    tables: Mapping[str, Mapping[str, ColumnType]]

    def columns(self, table: str, names: Iterable[str]) -> dict[str, ColumnType]:
        """The types of `names`; raises SchemaMismatch naming the table or column that is missing."""
        known = self.tables.get(table)
        if known is None:
            raise SchemaMismatch(f"database {self.name} {self.version} has no table {table}")
        result = {}
        for name in names:
            if name not in known:
                raise SchemaMismatch(f"table {table} of database {self.name} {self.version} has no column {name}")
            result[name] = known[name]
        return result


_ATOMS: dict[str, Any] = {
    "string": "",
    "integer": 0,
    "real": 0.0,
    "boolean": False,
    "uuid": "00000000-0000-0000-0000-000000000000",
}


def _column(spec: Any) -> ColumnType:
    kind = spec["type"]
    if isinstance(kind, str):
        return ColumnType(is_map=False, is_set=False, default=_ATOMS[kind])
    if "value" in kind:
        return ColumnType(is_map=True, is_set=False, default={})
    maximum = kind.get("max", 1)
    if maximum == "unlimited" or maximum > 1:
        return ColumnType(is_map=False, is_set=True, default=frozenset())
    base = kind["key"] if isinstance(kind["key"], str) else kind["key"]["type"]
    return ColumnType(is_map=False, is_set=False, default=None if kind.get("min", 1) == 0 else _ATOMS[base])


def parse(document: Mapping[str, Any]) -> Schema:
    """From the answer to `get_schema`."""
    tables = {
        table: {name: _column(spec) for name, spec in body["columns"].items()}
        for table, body in document["tables"].items()
    }
    return Schema(name=document["name"], version=document.get("version", ""), tables=tables)
