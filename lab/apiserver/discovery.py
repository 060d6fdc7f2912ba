"""What a client asks first: version, groups and resources."""

from __future__ import annotations

from lab.apiserver.kinds import Kind, Kinds
from lab.apiserver.status import Json

VERSION: Json = {
    "major": "1",
    "minor": "36",
    "emulationMajor": "1",
    "emulationMinor": "36",
    "minCompatibilityMajor": "1",
    "minCompatibilityMinor": "35",
    "gitVersion": "v1.36.0-dpu-lab",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "2026-11-21T00:00:00Z",
    "goVersion": "",
    "compiler": "",
    "platform": "linux/amd64",
}

_VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]


def answer(path: str, kinds: Kinds) -> Json | None:
    """The answer to a discovery path; None if it is not one."""
    parts = path.strip("/").split("/")
    match parts:
        case ["openapi", "v3"]:
            return {"paths": {each: {"serverRelativeURL": f"/openapi/v3/{each}"} for each in _roots(kinds)}}
        case ["openapi", "v3", *rest] if "/".join(rest) in _roots(kinds):
            return _openapi("/".join(rest), kinds)
        case ["version"]:
            return VERSION
        case ["api"]:
            return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
        case ["apis"]:
            return {
                "kind": "APIGroupList",
                "apiVersion": "v1",
                "groups": [_group(name, kinds) for name in kinds.groups()],
            }
        case ["apis", group] if kinds.versions(group):
            return {"kind": "APIGroup", "apiVersion": "v1", **_group(group, kinds)}
        case ["api", "v1"]:
            return _resources("", "v1", kinds)
        case ["apis", group, version] if version in kinds.versions(group):
            return _resources(group, version, kinds)
    return None


def _roots(kinds: Kinds) -> list[str]:
    groups = [f"apis/{group}/{version}" for group in kinds.groups() for version in kinds.versions(group)]
    return ["api/v1", *groups]


def _openapi(root: str, kinds: Kinds) -> Json:
    """Just what kubectl reads before it leaves validation to the server: that PATCH knows fieldValidation."""
    names = ("dryRun", "fieldManager", "fieldValidation", "force")
    parameters = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in names]
    paths: Json = {}
    for kind in kinds:
        if root == (f"apis/{kind.group}/{kind.version}" if kind.group else "api/v1") and not kind.virtual:
            named = {"group": kind.group, "version": kind.version, "kind": kind.kind}
            where = "/namespaces/{namespace}" if kind.namespaced else ""
            patch = {"parameters": parameters, "responses": {}, "x-kubernetes-group-version-kind": named}
            paths[f"/{root}{where}/{kind.plural}/{{name}}"] = {"patch": patch}
    return {"openapi": "3.0.0", "info": {"title": "lab", "version": "v1"}, "paths": paths}


def _group(name: str, kinds: Kinds) -> Json:
    versions = [{"groupVersion": f"{name}/{version}", "version": version} for version in kinds.versions(name)]
    return {"name": name, "versions": versions, "preferredVersion": versions[0]}


def _resources(group: str, version: str, kinds: Kinds) -> Json:
    resources: list[Json] = []
    for kind in kinds:
        if (kind.group, kind.version) == (group, version):
            resources.append(_resource(kind))
            subresources = [*kind.subresources, *(["status"] if kind.status else [])]
            resources += [
                {
                    "name": f"{kind.plural}/{each}",
                    "singularName": "",
                    "namespaced": kind.namespaced,
                    "kind": {"binding": "Binding", "eviction": "Eviction"}.get(each, kind.kind),
                    "verbs": ["get", "patch", "update"] if each == "status" else ["create"],
                }
                for each in subresources
            ]
    name = f"{group}/{version}" if group else version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": resources}


def _resource(kind: Kind) -> Json:
    return {
        "name": kind.plural,
        "singularName": kind.kind.lower(),
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": ["create"] if kind.virtual else _VERBS,
        **({"shortNames": list(kind.short)} if kind.short else {}),
    }
