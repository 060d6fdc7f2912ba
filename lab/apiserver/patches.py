"""Merge patches, JSON patches and strategic merge patches (pure)."""

from __future__ import annotations

import copy
from typing import Any

from lab.apiserver.lists import PLAIN, Node
from lab.apiserver.status import StatusError, bad_request

Json = dict[str, Any]


def merge(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merge(result.get(name), value)
    return result


def json_patch(target: Json, operations: Any) -> Json:
    """RFC 6902. Raises StatusError: 400 for what is no patch, 422 for one that can't be applied to this object."""
    if not isinstance(operations, list):
        raise bad_request("error decoding patch: json: cannot unmarshal object into Go value of type jsonpatch.Patch")
    document: Any = copy.deepcopy(target)
    for operation in operations:
        if not isinstance(operation, dict) or "op" not in operation or "path" not in operation:
            raise bad_request("a JSON patch operation needs op and path")
        try:
            document = _operate(document, operation)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            message = f"the server rejected our request due to an error in our request: {error}"
            raise StatusError(422, "Invalid", message, {}) from error
    if not isinstance(document, dict):
        raise bad_request("a JSON patch must leave an object")
    return document


def _operate(document: Any, operation: Json) -> Any:
    path = _pointer(operation["path"])
    match operation["op"]:
        case "add":
            return _add(document, path, copy.deepcopy(operation["value"]))
        case "remove":
            return _remove(document, path)
        case "replace":
            # the real server's library takes a missing key of an object as well
            return _set(document, path, copy.deepcopy(operation["value"]))
        case "move":
            source = _pointer(operation["from"])
            value = _lookup(document, source)
            return _add(_remove(document, source), path, value)
        case "copy":
            return _add(document, path, copy.deepcopy(_lookup(document, _pointer(operation["from"]))))
        case "test":
            try:
                found = _lookup(document, path)
            except (KeyError, IndexError):
                found = None
            if found != operation.get("value") or isinstance(found, bool) != isinstance(operation.get("value"), bool):
                raise ValueError(f"testing value {operation['path']} failed: test failed")
            return document
        case other:
            raise bad_request(f"Unexpected kind: {other}")


def _pointer(text: str) -> list[str]:
    if text == "":
        return []
    if not text.startswith("/"):
        raise ValueError(f"{text!r} is no JSON pointer")
    return [part.replace("~1", "/").replace("~0", "~") for part in text[1:].split("/")]


def _lookup(document: Any, path: list[str]) -> Any:
    for part in path:
        document = document[_index(part, len(document))] if isinstance(document, list) else document[part]
    return document


def _index(part: str, length: int) -> int:
    if not part.isdigit() or (len(part) > 1 and part[0] == "0") or int(part) >= length:
        raise IndexError(f"index {part} is out of range")
    return int(part)


def _add(document: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    parent, last = _lookup(document, path[:-1]), path[-1]
    if isinstance(parent, list):
        parent.insert(len(parent) if last == "-" else _index(last, len(parent) + 1), value)
    elif isinstance(parent, dict):
        parent[last] = value
    else:
        raise KeyError(last)
    return document


def _set(document: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    parent, last = _lookup(document, path[:-1]), path[-1]
    parent[_index(last, len(parent)) if isinstance(parent, list) else last] = value
    return document


def _remove(document: Any, path: list[str]) -> Any:
    parent, last = _lookup(document, path[:-1]), path[-1]
    del parent[_index(last, len(parent)) if isinstance(parent, list) else last]
    return document


def strategic(target: Any, patch: Any, node: Node = PLAIN) -> Any:
    """A merge patch in which known lists are merged by key (`node`), with `$patch` directives."""
    if not isinstance(patch, dict):
        return patch
    directive = patch.get("$patch")
    if directive == "replace":
        return {name: value for name, value in patch.items() if name != "$patch"}
    if directive == "delete":
        return {}
    result = dict(target) if isinstance(target, dict) else {}
    kept = patch.get("$retainKeys")
    if isinstance(kept, list):
        result = {name: value for name, value in result.items() if name in kept}
    for name, value in patch.items():
        if name.startswith("$deleteFromPrimitiveList/"):
            field = name.partition("/")[2]
            result[field] = [each for each in result.get(field) or [] if each not in value]
        elif name.startswith("$"):
            continue
        elif value is None:
            result.pop(name, None)
        elif isinstance(value, list):
            result[name] = _strategic_list(result.get(name) or [], value, node.child(name))
        else:
            result[name] = strategic(result.get(name), value, node.child(name))
    return result


def _strategic_list(target: list[Any], patch: list[Any], node: Node) -> list[Any]:
    if node.is_set:
        return [*target, *(value for value in patch if value not in target)]
    key = node.merge_key
    if not key:
        return patch
    replaced = any(isinstance(item, dict) and item.get("$patch") == "replace" for item in patch)
    result = [] if replaced else list(target)
    for item in patch:
        if not isinstance(item, dict):
            raise bad_request("a list of objects can't be merged with a scalar")
        if item.get("$patch") == "replace":
            continue
        if key not in item:
            raise bad_request(f"map: {item} does not contain declared merge key: {key}")
        place = next((at for at, each in enumerate(result) if each.get(key) == item[key]), None)
        if item.get("$patch") == "delete":
            result = [each for each in result if each.get(key) != item[key]]
        elif place is None:
            result.append(strategic({}, item, node))
        else:
            result[place] = strategic(result[place], item, node)
    return result
