"""Checks JSON-RPC requests against SPDK 26.05's own schema, of which spdk_schema.json holds what the suite uses."""

import json
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SCHEMA = json.loads((Path(__file__).parent / "spdk_schema.json").read_text())
_UNSIGNED = {"uint8": 8, "uint16": 16, "uint32": 32, "uint64": 64}


def problems(method: str, params: Mapping[str, Any] | None) -> list[str]:
    """What SPDK would not decode; empty for a valid request."""
    known = _SCHEMA["methods"].get(method)
    if known is None:
        return [f"{method} is not in the schema"]
    if params is not None and not params:
        return [f"{method}: empty params are refused by methods without parameters, so none may be sent"]
    return [f"{method}: {problem}" for problem in _object(known, params or {})]


def _object(fields: Mapping[str, str], value: Any) -> list[str]:
    if not isinstance(value, Mapping):
        return [f"{value!r} is no object"]
    found = [f"unknown parameter {name}" for name in value if name not in fields]
    for name, kind in fields.items():
        if name in value:
            found += [f"{name}: {problem}" for problem in _value(kind.rstrip("!"), value[name])]
        elif kind.endswith("!"):
            found.append(f"{name} is required")
    return found


def _value(kind: str, value: Any) -> list[str]:
    base, _, name = kind.partition(":")
    if base in _UNSIGNED:
        good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2 ** _UNSIGNED[base]
    elif base == "int32":
        good = isinstance(value, int) and not isinstance(value, bool) and -(2**31) <= value < 2**31
    elif base == "boolean":
        good = isinstance(value, bool)
    elif base == "string":
        good = isinstance(value, str)
    elif base == "uuid":
        good = isinstance(value, str) and str(uuid.UUID(value)) == value.lower()
    elif base == "enum":
        good = isinstance(value, str) and value.lower() in {one.lower() for one in _SCHEMA["enums"][name]}
    elif base == "object":
        return _object(_SCHEMA["objects"][name], value) if name in _SCHEMA["objects"] else []
    elif base == "array":
        item = _SCHEMA["arrays"][name]
        return [problem for one in value for problem in _value(item, one)]
    else:
        raise AssertionError(f"the schema has a type of its own: {kind}")
    return [] if good else [f"{value!r} is no {re.sub('!', '', kind)}"]
