"""Turns OVSDB values (RFC 7047 section 5.1) into Python ones by column type, or Python ones into OVSDB's.

In Python a column is an atom, `None` (an optional column that is empty), a `frozenset` (a set), or a `dict` (a map).
Atoms are `str`, `int`, `float`, `bool`; a reference to a row is a `Uuid`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, TypeAlias

from foundation.ovsdb.schema import ColumnType

Value: TypeAlias = Any


class Uuid(str):
    """A row's UUID in its textual form; encodes as ["uuid", …]."""

    __slots__ = ()


class NamedUuid(str):
    """A row inserted earlier or later in the same transaction, by its `uuid_name`; encodes as ["named-uuid", …]."""

    __slots__ = ()


_names = itertools.count()


def fresh_name() -> NamedUuid:
    """A `uuid_name` no other insert of this process uses."""
    return NamedUuid(f"r{next(_names)}")


def to_wire(value: Value) -> Any:
    """The JSON form of a Python value; `None` is the empty set. Raises TypeError for what OVSDB cannot hold."""
    kind = type(value)
    if kind is str or kind is int or kind is bool or kind is float:
        return value
    if kind is Uuid:
        return ["uuid", str(value)]
    if kind is NamedUuid:
        return ["named-uuid", str(value)]
    if value is None:
        return ["set", []]
    if isinstance(value, Mapping):
        return ["map", [[to_wire(key), to_wire(item)] for key, item in value.items()]]
    if isinstance(value, (frozenset, set, tuple, list)):
        return ["set", [to_wire(item) for item in value]]
    if isinstance(value, str):
        return str(value)  # the encoder takes no subclasses
    if isinstance(value, (int, float)):
        return value
    raise TypeError(f"OVSDB has no value for {value!r} of type {kind.__name__}")


def _atom(wire: Any) -> Value:
    if type(wire) is list:
        return Uuid(wire[1])
    return wire


def from_wire(wire: Any, column: ColumnType) -> Value:
    """The Python form of a column's JSON. A set of one element comes as a bare atom: only the type tells."""
    if column.is_map:
        return {_atom(key): _atom(value) for key, value in wire[1]}
    if type(wire) is list and wire[0] == "set":
        if column.is_set:
            return frozenset(map(_atom, wire[1]))
        return _atom(wire[1][0]) if wire[1] else None
    return frozenset((_atom(wire),)) if column.is_set else _atom(wire)


def apply_diff(old: Value, wire: Any, column: ColumnType) -> Value:
    """A column after an `update2` "modify" (ovsdb-server(7), 4.1.15).

    Sets carry the elements that came or went; maps the pairs that came, went (same value) or changed; all other
    columns the new value.
    """
    diff = from_wire(wire, column)
    if column.is_set:
        return old ^ diff
    if column.is_map:
        result = dict(old)
        for key, value in diff.items():
            if key in result and result[key] == value:
                del result[key]
            else:
                result[key] = value
        return result
    return diff
