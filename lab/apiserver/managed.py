"""Who owns which field: sets of fields, as managedFields carries them (pure).

A set is a nested dict in the FieldsV1 notation: `f:name` a field, `k:{...}` an item of a keyed list, `v:...` an item of
a set; an empty dict is a leaf, `.` marks an item that is owned as such.
"""

from __future__ import annotations

import json
from typing import Any

from lab.apiserver.kinds import Kind
from lab.apiserver.lists import Node, root

Json = dict[str, Any]
FieldSet = dict[str, Any]

_UNOWNED_METADATA = frozenset(
    {
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "generation",
        "managedFields",
        "selfLink",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    }
)


def fields_of(obj: Json, kind: Kind) -> FieldSet:
    """All fields of an object that somebody can own."""
    return _fields(_owned(obj), root(kind))


def changed_fields(old: Json, new: Json, kind: Kind) -> FieldSet:
    """The fields that `new` has with another value than `old`, or that `old` lacks."""
    return _changed(_owned(old), _owned(new), root(kind))


def _owned(obj: Json) -> Json:
    rest = {name: value for name, value in obj.items() if name not in ("apiVersion", "kind", "metadata")}
    metadata = {name: value for name, value in obj.get("metadata", {}).items() if name not in _UNOWNED_METADATA}
    return {"metadata": metadata, **rest} if metadata else rest


def _items(values: list[Any], node: Node) -> dict[str, Any] | None:
    """The items of a list by their name in a set; None for a list that is one value."""
    if node.atomic:
        return None
    if node.is_set:
        return {"v:" + json.dumps(value, separators=(",", ":")): None for value in values}
    if node.keys and all(isinstance(value, dict) for value in values):
        return {item_name(value, node): value for value in values}
    return None


def item_name(item: Json, node: Node) -> str:
    """The name of an item of a keyed list, `k:{"name":"x"}`."""
    return "k:" + json.dumps(dict(node.key_of(item)), separators=(",", ":"))


def _fields(value: Any, node: Node) -> FieldSet:
    if isinstance(value, dict) and not node.atomic:
        return {"f:" + name: _fields(inner, node.child(name)) for name, inner in value.items()}
    if isinstance(value, list):
        items = _items(value, node)
        if items is not None:
            return {
                name: ({".": {}} | _fields(inner, Node(node.fields))) if inner is not None else {}
                for name, inner in items.items()
            }
    return {}


def _changed(old: Any, new: Any, node: Node) -> FieldSet:
    if isinstance(new, dict) and isinstance(old, dict) and not node.atomic:
        found: FieldSet = {}
        for name, inner in new.items():
            if name not in old:
                found["f:" + name] = _fields(inner, node.child(name))
            elif old[name] != inner:
                found["f:" + name] = _changed(old[name], inner, node.child(name))
        return found
    if isinstance(new, list) and isinstance(old, list):
        before, after = _items(old, node), _items(new, node)
        if before is not None and after is not None:
            found = {}
            for name, inner in after.items():
                if name not in before:
                    found[name] = ({".": {}} | _fields(inner, Node(node.fields))) if inner is not None else {}
                elif before[name] != inner:
                    found[name] = _changed(before[name], inner, Node(node.fields))
            return found
    return {}


def union(one: FieldSet, other: FieldSet) -> FieldSet:
    """Fields in either set."""
    result = dict(one)
    for name, inner in other.items():
        result[name] = union(result[name], inner) if name in result else inner
    return result


def intersection(one: FieldSet, other: FieldSet) -> FieldSet:
    """Leaves in both sets. A leaf on one side meets whatever is below it on the other."""
    result: FieldSet = {}
    for name, inner in one.items():
        if name not in other:
            continue
        if not inner or not other[name]:
            result[name] = {}
        elif common := intersection(inner, other[name]):
            result[name] = common
    return result


def difference(one: FieldSet, other: FieldSet) -> FieldSet:
    """Leaves of `one` that are not in `other`; an empty map does not stand for what once was in it."""
    result: FieldSet = {}
    for name, inner in one.items():
        if name not in other:
            result[name] = inner
        elif inner:
            rest = difference(inner, other[name])
            if rest:
                result[name] = rest
    return result


def existing(fields: FieldSet, obj: FieldSet) -> FieldSet:
    """What of `fields` still exists in an object with the fields `obj`."""
    result: FieldSet = {}
    for name, inner in fields.items():
        if name in obj:
            kept = existing(inner, obj[name]) if inner else {}
            if kept or not inner or not obj[name]:
                result[name] = kept
    return result


def paths(fields: FieldSet, prefix: str = "") -> list[str]:
    """The leaves as dotted paths, as a conflict names them."""
    found: list[str] = []
    for name, inner in fields.items():
        if name == ".":
            continue
        text = "." + name[2:] if name.startswith("f:") else _bracket(name)
        below = paths(inner, prefix + text) if inner else []
        found += below or [prefix + text]
    return found


def _bracket(name: str) -> str:
    if name.startswith("v:"):
        return f"[={name[2:]}]"
    inner = ",".join(f"{key}={json.dumps(value)}" for key, value in json.loads(name[2:]).items())
    return f"[{inner}]"
