"""Label and field selectors as they stand in a query."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from lab.apiserver.kinds import Kind
from lab.apiserver.status import bad_request

Json = dict[str, Any]
Predicate = Callable[[Json], bool]

_KEY = r"(?:[A-Za-z0-9.-]+/)?[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?"
_VALUE = r"(?:[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?)?"
_SET = re.compile(rf"\s*({_KEY})\s+(in|notin)\s*\(([^()]*)\)\s*$")
_EQUAL = re.compile(rf"\s*({_KEY})\s*(==|=|!=)\s*({_VALUE})\s*$")
_EXISTS = re.compile(rf"\s*(!?)\s*({_KEY})\s*$")

_COMMON = {"metadata.name": "", "metadata.namespace": ""}
_INVOLVED = ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")
FIELDS: dict[tuple[str, str], dict[str, str]] = {
    ("", "pods"): {
        "spec.nodeName": "",
        "spec.restartPolicy": "",
        "spec.schedulerName": "",
        "spec.serviceAccountName": "",
        "spec.hostNetwork": "false",
        "status.phase": "",
        "status.podIP": "",
        "status.nominatedNodeName": "",
    },
    ("", "nodes"): {"spec.unschedulable": "false"},
    ("", "namespaces"): {"status.phase": ""},
    ("", "secrets"): {"type": ""},
    ("", "services"): {"spec.clusterIP": "", "spec.type": ""},
    ("certificates.k8s.io", "certificatesigningrequests"): {"spec.signerName": ""},
    ("", "events"): {
        **{f"involvedObject.{name}": "" for name in _INVOLVED},
        "reason": "",
        "reportingComponent": "",
        "source": "",
        "type": "",
    },
}
"""Field labels of each kind beyond name and namespace, with the text that an absent field compares as."""


def by_labels(text: str) -> Predicate | None:
    """The predicate of a labelSelector, None for one that takes everything. Raises StatusError (400)."""
    if not text.strip():
        return None
    terms = [_label_term(part) for part in _split(text)]

    def holds(obj: Json) -> bool:
        labels = obj["metadata"].get("labels") or {}
        return all(term(labels) for term in terms)

    return holds


def _split(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for position, letter in enumerate(text):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    return [*parts, text[start:]]


def _label_term(text: str) -> Callable[[Json], bool]:
    if match := _SET.match(text):
        key, operator, inside = match.groups()
        values = {value.strip() for value in inside.split(",")}
        if operator == "in":
            return lambda labels: key in labels and labels[key] in values
        return lambda labels: labels.get(key) not in values or key not in labels
    if match := _EQUAL.match(text):
        key, operator, value = match.groups()
        if operator == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if match := _EXISTS.match(text):
        negated, key = match.groups()
        return lambda labels: (key in labels) != bool(negated)
    raise bad_request(f"unable to parse requirement: {text.strip()!r} is not a label requirement")


def by_fields(text: str, kind: Kind) -> Predicate | None:
    """The predicate of a fieldSelector; only the fields that the kind is indexed by are known. Raises StatusError."""
    if not text.strip():
        return None
    terms: list[tuple[str, bool, str, str]] = []
    known = _COMMON | FIELDS.get(kind.table, {})
    for part in text.split(","):
        match = re.match(r"\s*([^=!\s]+)\s*(==|=|!=)\s*(.*?)\s*$", part)
        if not match:
            raise bad_request(f"invalid selector: '{text}'; can't understand '{part}'")
        path, operator, value = match.groups()
        if path not in known:
            if kind.table in FIELDS:
                raise bad_request(f"field label not supported: {path}")
            raise bad_request(f'"{path}" is not a known field selector: only "metadata.name", "metadata.namespace"')
        terms.append((path, operator != "!=", value, known[path]))

    def holds(obj: Json) -> bool:
        return all((_field(obj, path, default) == value) == equal for path, equal, value, default in terms)

    return holds


def _field(obj: Json, path: str, default: str) -> str:
    if path == "source":
        return str((obj.get("source") or {}).get("component") or obj.get("reportingComponent") or "")
    found: Any = obj
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    if found is None:
        return default
    return str(found).lower() if isinstance(found, bool) else str(found)


def both(labels: Predicate | None, fields: Predicate | None) -> Predicate | None:
    """Both predicates as one."""
    if labels is None or fields is None:
        return labels or fields
    first, second = labels, fields
    return lambda obj: first(obj) and second(obj)
