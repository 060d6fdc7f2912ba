"""Paths of the API to what they name (pure)."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote

from lab.apiserver.kinds import Kind, Kinds
from lab.apiserver.status import method_not_allowed, no_such_resource


@dataclass(frozen=True, slots=True)
class Target:
    """What a path names: a collection (name is "") or an object, maybe with a subresource."""

    kind: Kind
    namespace: str
    name: str
    subresource: str


def target(path: str, kinds: Kinds) -> Target:
    """Raises StatusError (404) for a path that names nothing served."""
    parts = [unquote(part) for part in path.strip("/").split("/")]
    if parts[0] == "api" and len(parts) >= 3:
        group, version, rest = "", parts[1], parts[2:]
    elif parts[0] == "apis" and len(parts) >= 4:
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        raise no_such_resource()
    namespace = ""
    if rest[0] == "namespaces" and len(rest) >= 3 and rest[2] not in ("status", "finalize"):
        namespace, rest = rest[1], rest[2:]
    kind = kinds.find(group, version, rest[0])
    if kind is None or len(rest) > 3 or (namespace and not kind.namespaced):
        raise no_such_resource()
    name = rest[1] if len(rest) > 1 else ""
    subresource = rest[2] if len(rest) > 2 else ""
    if subresource and subresource != "status" and subresource not in kind.subresources:
        raise no_such_resource()
    if subresource == "status" and not kind.status:
        raise no_such_resource()
    if kind.namespaced and name and not namespace:
        raise no_such_resource()
    return Target(kind, namespace, name, subresource)


def verb(method: str, name: str, *, watch: bool) -> str:
    """The verb that authorization knows. Raises StatusError (405)."""
    match method, bool(name):
        case "GET", True:
            return "get"
        case "GET", False:
            return "watch" if watch else "list"
        case "POST", _:
            return "create"
        case "PUT", True:
            return "update"
        case "PATCH", True:
            return "patch"
        case "DELETE", True:
            return "delete"
        case "DELETE", False:
            return "deletecollection"
    raise method_not_allowed()
