"""One request of the API to its answer, without HTTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import yaml

from lab.apiserver import selectors, status
from lab.apiserver.access import User
from lab.apiserver.kinds import Kind
from lab.apiserver.listing import Lists
from lab.apiserver.registry import Registry, Write, Written
from lab.apiserver.routing import Target
from lab.apiserver.selectors import Predicate
from lab.apiserver.storage import Json, Key, Stored, copy

_PATCHES = {
    "application/merge-patch+json": "merge",
    "application/json-patch+json": "json",
    "application/strategic-merge-patch+json": "strategic",
    "application/apply-patch+yaml": "apply",
    "application/apply-patch+json": "apply",
}


@dataclass(frozen=True, slots=True)
class Call:
    """A request that has been routed."""

    verb: str
    target: Target
    query: Mapping[str, str]
    body: bytes
    content_type: str
    user: User
    agent: str

    @property
    def key(self) -> Key:
        """Where the object is stored."""
        return (self.target.namespace, self.target.name)


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes out: JSON bytes and an HTTP code."""

    body: bytes
    code: int = 200
    warnings: list[str] = field(default_factory=list)


class Operations:
    """All verbs but watch. Raises StatusError."""

    def __init__(self, registry: Registry, lists: Lists) -> None:
        self._registry = registry
        self._lists = lists

    def do(self, call: Call) -> Answer:
        """Carry out a call."""
        if call.content_type == "application/vnd.kubernetes.protobuf":
            raise status.unsupported_media_type(
                "the body of the request was in an unknown format - accepted media types include: "
                "application/json, application/yaml"
            )
        match call.verb:
            case "get":
                return self._get(call)
            case "list":
                return self._list(call)
            case "create":
                return self._create(call)
            case "update":
                return self._update(call)
            case "patch":
                return self._patch(call)
            case "delete":
                return self._delete(call)
            case "deletecollection":
                return self._delete_collection(call)
        raise status.method_not_allowed()

    def predicate(self, call: Call) -> Predicate | None:
        """What the selectors of a list or watch choose."""
        labels = selectors.by_labels(call.query.get("labelSelector", ""))
        fields = selectors.by_fields(call.query.get("fieldSelector", ""), call.target.kind)
        if call.target.name:  # a watch of one object by its path
            name = call.target.name
            fields = selectors.both(fields, lambda obj: obj["metadata"]["name"] == name)
        return selectors.both(labels, fields)

    def converter(self, kind: Kind) -> Callable[[Stored], bytes] | None:
        """How stored objects become this version's; None if there is only one version."""
        if len({each.version for each in self._registry.kinds if each.table == kind.table}) < 2:
            return None
        return lambda stored: _as_version(stored, kind)

    def _encoded(self, kind: Kind, stored: Stored) -> bytes:
        if not stored.encoded or stored.object.get("apiVersion") != kind.api_version:
            return _as_version(stored, kind)
        return stored.encoded

    def _get(self, call: Call) -> Answer:
        version = call.query.get("resourceVersion", "")
        if version.isdigit() and int(version) > self._registry.store.version:
            raise status.too_large_version(int(version), self._registry.store.version)
        return Answer(self._encoded(call.target.kind, self._registry.get(call.target.kind, call.key)))

    def _list(self, call: Call) -> Answer:
        kind = call.target.kind
        body = self._lists.answer(kind, call.target.namespace, self.predicate(call), call.query, self.converter(kind))
        return Answer(body)

    def _create(self, call: Call) -> Answer:
        kind = call.target.kind
        body = _object(call.body)
        if kind.virtual:
            return _review(kind, body, call.user)
        if kind.kind == "CertificateSigningRequest" and isinstance(body.get("spec"), dict):
            extra = {key: list(values) for key, values in call.user.extra.items()}
            body["spec"] |= {"username": call.user.name, "groups": list(call.user.groups), "extra": extra}
        if call.target.subresource == "binding":
            return self._bind(call, body)
        if call.target.subresource == "eviction":
            return self._evict(call, body)
        if call.target.name:
            raise status.method_not_allowed()
        if kind.namespaced and not call.target.namespace:
            raise status.method_not_allowed()
        return self._written(kind, self._registry.create(kind, call.target.namespace, body, _write(call)))

    def _update(self, call: Call) -> Answer:
        written = self._registry.update(call.target.kind, call.key, _object(call.body), _write(call))
        return self._written(call.target.kind, written)

    def _patch(self, call: Call) -> Answer:
        kind = call.target.kind
        type = _PATCHES.get(call.content_type.partition(";")[0].strip())
        if type is None or (type == "strategic" and kind.custom):
            allowed = [name for name in _PATCHES if not (kind.custom and "strategic" in name)]
            raise status.unsupported_media_type(
                f"the body of the request was in an unknown format - accepted media types include: {', '.join(allowed)}"
            )
        if type == "apply":
            if not call.query.get("fieldManager"):
                cause = status.required("fieldManager", "is required for apply patch")
                raise status.invalid("PatchOptions", "meta.k8s.io", "", [cause])
            return self._written(kind, self._registry.apply(kind, call.key, _object(call.body), _write(call)))
        if call.query.get("force"):
            cause = status.field_forbidden("force", "may not be specified for non-apply patch")
            raise status.invalid("PatchOptions", "meta.k8s.io", "", [cause])
        patch = _json(call.body)
        return self._written(kind, self._registry.patch(kind, call.key, patch, type, _write(call)))

    def _delete(self, call: Call) -> Answer:
        kind = call.target.kind
        if call.target.subresource:
            raise status.method_not_allowed()
        options = _delete_options(call)
        stored, gone = self._registry.delete(kind, call.key, options, dry_run=_dry_run(call, options))
        if gone and not self._registry.returns_object(kind):
            details: Json = {"name": call.target.name, "kind": kind.plural, "uid": stored.uid}
            details |= {"group": kind.group} if kind.group else {}
            return Answer(
                msgspec.json.encode(
                    {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
                )
            )
        return Answer(self._encoded(kind, stored))

    def _delete_collection(self, call: Call) -> Answer:
        kind, predicate = call.target.kind, self.predicate(call)
        options = _delete_options(call)
        deleted = []
        for key, stored in self._registry.store.sorted(kind.table, call.target.namespace):
            if predicate is None or predicate(stored.object):
                deleted.append(self._registry.delete(kind, key, options, dry_run=_dry_run(call, options))[0])
        head = {
            "kind": kind.kind + "List",
            "apiVersion": kind.api_version,
            "metadata": {"resourceVersion": str(self._registry.store.version)},
        }
        items = b",".join(self._encoded(kind, stored) for stored in deleted)
        return Answer(msgspec.json.encode(head)[:-1] + b',"items":[' + items + b"]}")

    def _bind(self, call: Call, body: Json) -> Answer:
        node = (body.get("target") or {}).get("name")
        if not node:
            raise status.invalid("Binding", "", call.target.name, [status.required("target.name")])
        stored = self._registry.get(call.target.kind, call.key)
        if stored.object["spec"].get("nodeName"):
            why = f"pod {call.target.name} is already assigned to node {stored.object['spec']['nodeName']!r}"
            raise status.conflict("pods/binding", "", call.target.name, why)

        def assign(pod: Json) -> None:
            pod["spec"]["nodeName"] = node
            condition = {"type": "PodScheduled", "status": "True", "lastTransitionTime": self._registry.now()}
            pod["status"].setdefault("conditions", []).append(condition)

        self._registry.change(call.target.kind, call.key, assign, manager="kube-scheduler")
        return Answer(_success(), 201)

    def _evict(self, call: Call, body: Json) -> Answer:
        options = body.get("deleteOptions") or {}
        self._registry.delete(call.target.kind, call.key, options)
        return Answer(_success(), 201)

    def _written(self, kind: Kind, written: Written) -> Answer:
        return Answer(self._encoded(kind, written.stored), 201 if written.created else 200, written.warnings)


def _success() -> bytes:
    return msgspec.json.encode({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})


def _as_version(stored: Stored, kind: Kind) -> bytes:
    return msgspec.json.encode({**stored.object, "apiVersion": kind.api_version})


def _review(kind: Kind, body: Json, user: User) -> Answer:
    answer: Json = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": {"creationTimestamp": None}}
    if kind.kind == "SelfSubjectReview":
        answer["status"] = {"userInfo": {"username": user.name, "uid": user.uid, "groups": list(user.groups)}}
    else:
        answer |= {"spec": body.get("spec") or {}, "status": {"allowed": True, "reason": "nothing is forbidden here"}}
    return Answer(msgspec.json.encode(answer), 201)


def _write(call: Call) -> Write:
    query = call.query
    validation = query.get("fieldValidation") or "Warn"
    if validation not in ("Ignore", "Warn", "Strict"):
        cause = status.not_supported("fieldValidation", validation, ["Ignore", "Strict", "Warn"])
        raise status.invalid("UpdateOptions", "meta.k8s.io", "", [cause])
    return Write(
        manager=query.get("fieldManager") or call.agent.partition("/")[0] or "unknown",
        subresource=call.target.subresource,
        validation=validation,
        dry_run=_dry_run(call, {}),
        force=query.get("force") in ("true", "1"),
        is_patch=call.verb == "patch",
    )


def _dry_run(call: Call, options: Json) -> bool:
    asked = call.query.get("dryRun") or (options.get("dryRun") or [""])[0]
    if asked not in ("", "All"):
        raise status.invalid("Options", "meta.k8s.io", "", [status.not_supported("dryRun", asked, ["All"])])
    return asked == "All"


def _delete_options(call: Call) -> Json:
    options = _object(call.body) if call.body else {}
    if call.query.get("gracePeriodSeconds"):
        options = {**options, "gracePeriodSeconds": int(call.query["gracePeriodSeconds"])}
    if call.query.get("propagationPolicy"):
        options = {**options, "propagationPolicy": call.query["propagationPolicy"]}
    return options


def _json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise status.bad_request(f"error decoding patch: {error}") from error


def _object(body: bytes) -> Json:
    """A JSON or YAML object."""
    try:
        found = msgspec.json.decode(body)
    except msgspec.DecodeError:
        try:
            found = yaml.safe_load(body)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise status.bad_request(
                f"the object provided is unrecognized (must be of type Object): {error}"
            ) from error
    if not isinstance(found, dict):
        raise status.bad_request("the object provided is unrecognized (must be of type Object)")
    return copy(found)
