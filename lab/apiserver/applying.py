"""Server-side apply, and the book-keeping of field managers for all other writes."""

from __future__ import annotations

import copy
import json
from typing import Any

from lab.apiserver import managed
from lab.apiserver.kinds import Kind
from lab.apiserver.lists import Node, root
from lab.apiserver.managed import FieldSet, item_name
from lab.apiserver.status import apply_conflict, cause

Json = dict[str, Any]


def apply(
    live: Json, applied: Json, kind: Kind, manager: str, subresource: str, *, force: bool
) -> tuple[Json, FieldSet]:
    """What `live` becomes, and the set which `manager` owns then. Raises StatusError (409) unless `force`.

    Fields that this manager applied before and no longer names are removed, unless somebody else owns them too.
    """
    entries = live["metadata"].get("managedFields") or []
    wanted = managed.fields_of(applied, kind)
    before: FieldSet = {}
    others: FieldSet = {}
    causes = []
    for entry in entries:
        owned = entry.get("fieldsV1") or {}
        if _is(entry, manager, "Apply", subresource):
            before = owned
            continue
        others = managed.union(others, owned)
        common = managed.intersection(wanted, owned)
        differing = _differing(common, live, applied, root(kind))
        causes += [cause(path, "FieldManagerConflict", _conflicting(entry)) for path in managed.paths(differing)]
    if causes and not force:
        raise apply_conflict(causes)
    merged: Json = _merge(copy.deepcopy(live), applied, root(kind))
    stale = managed.difference(managed.difference(before, wanted), others)
    _drop(merged, stale, root(kind))
    return merged, wanted


def record_apply(
    old: Json | None, new: Json, kind: Kind, owned: FieldSet, manager: str, subresource: str, now: str
) -> None:
    """Write managedFields into `new` after an apply."""
    entries = (old or {}).get("metadata", {}).get("managedFields") or []
    changed = managed.changed_fields(old or {"metadata": {}}, new, kind)
    kept = []
    for entry in entries:
        if _is(entry, manager, "Apply", subresource):
            if entry["fieldsV1"] == owned:
                now = entry["time"]
            continue
        # who is overruled (force) loses the field; equal values stay shared
        rest = managed.difference(entry["fieldsV1"], managed.intersection(owned, changed))
        kept.append({**entry, "fieldsV1": rest})
    kept.append(_entry(manager, "Apply", kind, subresource, owned, now))
    _store(new, kept, kind)


def record_update(old: Json | None, new: Json, kind: Kind, manager: str, subresource: str, now: str) -> None:
    """Write managedFields into `new` after any other write: what it changed belongs to `manager`."""
    entries = (old or {}).get("metadata", {}).get("managedFields") or []
    changed = managed.changed_fields(old or {"metadata": {}}, new, kind)
    mine: FieldSet = {}
    kept = []
    for entry in entries:
        if _is(entry, manager, "Update", subresource):
            mine = entry["fieldsV1"]
            if not changed:
                now = entry["time"]
        else:
            kept.append({**entry, "fieldsV1": managed.difference(entry["fieldsV1"], changed)})
    mine = managed.union(mine, changed)
    if mine:
        kept.append(_entry(manager, "Update", kind, subresource, mine, now))
    _store(new, kept, kind)


def _store(new: Json, entries: list[Json], kind: Kind) -> None:
    present = managed.fields_of(new, kind)
    alive = [{**entry, "fieldsV1": managed.existing(entry["fieldsV1"], present)} for entry in entries]
    alive = [entry for entry in alive if entry["fieldsV1"] or entry["operation"] == "Apply"]
    if alive:
        new["metadata"]["managedFields"] = alive
    else:
        new["metadata"].pop("managedFields", None)


def _entry(manager: str, operation: str, kind: Kind, subresource: str, owned: FieldSet, now: str) -> Json:
    entry = {
        "manager": manager,
        "operation": operation,
        "apiVersion": kind.api_version,
        "time": now,
        "fieldsType": "FieldsV1",
        "fieldsV1": owned,
    }
    return entry | ({"subresource": subresource} if subresource else {})


def _is(entry: Json, manager: str, operation: str, subresource: str) -> bool:
    found = (entry.get("manager"), entry.get("operation"), entry.get("subresource", ""))
    return found == (manager, operation, subresource)


def _conflicting(entry: Json) -> str:
    if entry["operation"] == "Apply":
        return f'conflict with "{entry["manager"]}"'
    sub = f' with subresource "{entry["subresource"]}"' if entry.get("subresource") else ""
    return f'conflict with "{entry["manager"]}"{sub} using {entry["apiVersion"]}'


def _differing(fields: FieldSet, live: Any, applied: Any, node: Node) -> FieldSet:
    """The leaves of `fields` whose values differ."""
    result: FieldSet = {}
    for name, inner in fields.items():
        if name == ".":
            continue
        below = _child(node, name)
        one, other = _value(live, name, node), _value(applied, name, node)
        if not inner:
            if one != other and not (isinstance(one, dict) and isinstance(other, dict) and not below.atomic):
                result[name] = {}
        elif found := _differing(inner, one, other, below):
            result[name] = found
    return result


def _child(node: Node, name: str) -> Node:
    return node.child(name[2:]) if name.startswith("f:") else Node(node.fields)


def _value(value: Any, name: str, node: Node) -> Any:
    if name.startswith("f:"):
        return value.get(name[2:]) if isinstance(value, dict) else None
    for item in value if isinstance(value, list) else ():
        if name.startswith("v:") and "v:" + json.dumps(item, separators=(",", ":")) == name:
            return item
        if name.startswith("k:") and isinstance(item, dict) and item_name(item, node) == name:
            return item
    return None


def _merge(live: Any, applied: Any, node: Node) -> Any:
    if isinstance(applied, dict) and isinstance(live, dict) and not node.atomic:
        for name, value in applied.items():
            live[name] = _merge(live[name], value, node.child(name)) if name in live else value
        return live
    if isinstance(applied, list) and isinstance(live, list) and not node.atomic:
        if node.is_set:
            return [*live, *(value for value in applied if value not in live)]
        if node.keys:
            for item in applied:
                key = node.key_of(item)
                place = next((at for at, each in enumerate(live) if node.key_of(each) == key), None)
                if place is None:
                    live.append(item)
                else:
                    live[place] = _merge(live[place], item, Node(node.fields))
            return live
    return applied


def _drop(value: Any, fields: FieldSet, node: Node) -> None:
    """Remove the leaves of `fields` from `value`, in place."""
    for name, inner in fields.items():
        if name == ".":
            continue
        if inner and not (name[0] == "k" and "." in inner):
            _drop(_value(value, name, node), inner, _child(node, name))
        elif name.startswith("f:") and isinstance(value, dict):
            value.pop(name[2:], None)
        elif isinstance(value, list):
            gone = _value(value, name, node)
            value[:] = [item for item in value if item is not gone]
    if isinstance(value, dict):
        for name in [name[2:] for name in fields if name.startswith("f:")]:
            if name in value and value[name] in ({}, []):
                del value[name]
