"""Reading JSON as strictly as SPDK does, from a buffer that may end in the middle of a value."""

from __future__ import annotations

import json
import re
from typing import Any

BLANK = " \t\r\n"
MAX_VALUES = 8192
MAX_DEPTH = 64

_OPEN_END = re.compile(r"-?[0-9]*(?:\.[0-9]*)?(?:[eE][+-]?[0-9]*)?\Z")
_LITERALS = ("true", "false", "null")


class Malformed(ValueError):
    """Never going to be JSON: SPDK closes the connection."""


class Number(str):
    """A number as it was written: ids are echoed verbatim, and 1.0 is no integer."""

    __slots__ = ()


class Pairs(list[tuple[str, Any]]):
    """An object's members in order, duplicates and all: SPDK refuses duplicates where it decodes."""


def _constant(name: str) -> Any:
    raise Malformed(name)


_decoder = json.JSONDecoder(
    object_pairs_hook=Pairs, parse_float=Number, parse_int=Number, parse_constant=_constant, strict=True
)


def read_value(text: str, start: int) -> tuple[Any, int] | None:
    """The value that begins at ``start`` (not blank), with the index behind it; None while it is incomplete."""
    try:
        value, end = _decoder.raw_decode(text, start)
    except json.JSONDecodeError as error:
        if _may_go_on(text, error):
            return None
        raise Malformed(str(error)) from error
    except RecursionError as error:
        raise Malformed("nested too deeply") from error
    if isinstance(value, Number) and end == len(text):
        return None
    _check(value)
    return value, end


def _may_go_on(text: str, error: json.JSONDecodeError) -> bool:
    rest = text[error.pos :]
    if not rest.strip(BLANK):
        return True
    if error.msg.startswith("Unterminated string"):
        return True
    if "\\u" in error.msg or "escape" in error.msg:
        return len(rest) < 6 and "\\" in text[-6:]
    if error.msg.startswith(("Expecting value", "Expecting ',' delimiter")):
        return any(literal.startswith(rest) for literal in _LITERALS) or (
            bool(_OPEN_END.match(rest)) and rest[0] in "-0123456789.eE+"
        )
    return False


def _check(value: Any) -> None:
    """Raises Malformed above SPDK's limits of values and of depth."""
    count, level = 0, [(value, 1)]
    while level:
        node, depth = level.pop()
        if isinstance(node, Pairs):
            count += 2 + len(node)
            level.extend((member, depth + 1) for _, member in node)
        elif isinstance(node, list):
            count += 2
            level.extend((member, depth + 1) for member in node)
        else:
            count += 1
            continue
        if depth > MAX_DEPTH:
            raise Malformed("nested too deeply")
    if count > MAX_VALUES:
        raise Malformed("too many values")
