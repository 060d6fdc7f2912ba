"""Bodies of patches: RFC 6902 operations and RFC 7386 differences (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def pointer(*parts: str) -> str:
    """A JSON pointer (RFC 6901): `pointer("metadata", "annotations", "a/b")` is `/metadata/annotations/a~1b`."""
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in parts)


def test(path: str, value: Any) -> dict[str, Any]:
    """The patch is refused as a whole (422) unless `path` holds `value`."""
    return {"op": "test", "path": path, "value": value}


def add(path: str, value: Any) -> dict[str, Any]:
    """Set `path`; its parent must be there."""
    return {"op": "add", "path": path, "value": value}


def replace(path: str, value: Any) -> dict[str, Any]:
    """Change `path`, which must be there."""
    return {"op": "replace", "path": path, "value": value}


def remove(path: str) -> dict[str, Any]:
    """Remove `path`, which must be there."""
    return {"op": "remove", "path": path}


def merge_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The merge patch that makes `new` of `old`; empty when they are equal. Lists are replaced as a whole."""
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            inner = merge_difference(before, value)
            if inner:
                patch[key] = inner
        elif key not in old or before != value:
            patch[key] = value
    return patch
