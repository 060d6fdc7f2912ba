"""Checking parameters against SPDK's own schema of the methods that the stand-in knows (facts in schema.json)."""

from __future__ import annotations

import json
import uuid
from importlib import resources
from typing import Any

from lab.spdk.json_text import Number, Pairs

_SCHEMA: dict[str, Any] = json.loads(resources.files(__package__).joinpath("schema.json").read_text())

METHODS: dict[str, dict[str, str]] = _SCHEMA["methods"]
_OBJECTS: dict[str, dict[str, str]] = _SCHEMA["objects"]
_ARRAYS: dict[str, list[Any]] = _SCHEMA["arrays"]
_ENUMS: dict[str, list[str]] = _SCHEMA["enums"]

_INTEGERS = {
    "uint8": (0, 2**8 - 1),
    "uint16": (0, 2**16 - 1),
    "uint32": (0, 2**32 - 1),
    "uint64": (0, 2**64 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
}


class DecodeError(ValueError):
    """A parameter is missing, unknown, twice there, or of another type."""


def decode(method: str, params: Any) -> dict[str, Any]:
    """The parameters as Python objects. Raises DecodeError."""
    return _object(METHODS[method], params)


def _object(members: dict[str, str], value: Any) -> dict[str, Any]:
    if not isinstance(value, Pairs):
        raise DecodeError("not an object")
    result: dict[str, Any] = {}
    for name, member in value:
        if name not in members or name in result:
            raise DecodeError(name)
        result[name] = _value(members[name].rstrip("!"), member)
    for name, kind in members.items():
        if kind.endswith("!") and name not in result:
            raise DecodeError(f"{name} is missing")
    return result


def _value(kind: str, value: Any) -> Any:
    base, _, name = kind.partition(":")
    if base in _INTEGERS:
        return _integer(base, value)
    if base == "boolean" and isinstance(value, bool):
        return value
    if base == "object":
        return _object(_OBJECTS[name], value)
    if base == "array" and isinstance(value, list) and not isinstance(value, Pairs):
        item, limit = _ARRAYS[name]
        if len(value) <= limit:
            return [_value(item, member) for member in value]
    if not isinstance(value, str) or isinstance(value, Number):
        raise DecodeError(f"{value!r} is no {kind}")
    if base == "string":
        return value
    if base == "enum" and value in _ENUMS[name]:
        return value
    if base == "uuid":
        try:
            return str(uuid.UUID(value))
        except ValueError as error:
            raise DecodeError(f"{value!r} is no uuid") from error
    raise DecodeError(f"{value!r} is no {kind}")


def _integer(kind: str, value: Any) -> int:
    low, high = _INTEGERS[kind]
    if isinstance(value, Number):
        try:
            number = int(value)
        except ValueError as error:
            raise DecodeError(f"{value} is no integer") from error
        if low <= number <= high:
            return number
    raise DecodeError(f"{value!r} is no {kind}")
