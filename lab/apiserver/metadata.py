"""What every object's metadata must look like (pure)."""

from __future__ import annotations

import re

from lab.apiserver.status import Json, invalid_value, required

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z")
_RFC1035 = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?\Z")
_QUALIFIED = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?\Z")
_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?\Z")

SUBDOMAIN_RULE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    "end with an alphanumeric character"
)
_LABEL_RULE = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.'"
_NAME_RULE = "name part must consist of alphanumeric characters, '-', '_' or '.'"

_AS_LABEL = {"namespaces"}
_AS_SERVICE = {"services"}
_AS_PATH = {"roles", "rolebindings", "clusterroles", "clusterrolebindings"}
ANNOTATION_BYTES = 256 * 1024


def name_problem(plural: str, name: str) -> str:
    """Why `name` can't name one of `plural`; "" if it can."""
    if plural in _AS_PATH:
        return "may not be '.', '..' or contain '/' or '%'" if name in (".", "..") or "/" in name or "%" in name else ""
    pattern, longest = SUBDOMAIN, 253
    if plural in _AS_LABEL:
        pattern, longest = LABEL, 63
    elif plural in _AS_SERVICE:
        pattern, longest = _RFC1035, 63
    if len(name) > longest:
        return f"must be no more than {longest} characters"
    return "" if pattern.match(name) else SUBDOMAIN_RULE


def problems(metadata: Json, plural: str) -> list[Json]:
    """What is wrong with an object's metadata, as causes of a 422."""
    found: list[Json] = []
    name = metadata.get("name") or ""
    if not name:
        found.append(required("metadata.name", "name or generateName is required"))
    elif why := name_problem(plural, name):
        found.append(invalid_value("metadata.name", name, why))
    for key, value in (metadata.get("labels") or {}).items():
        if not qualified(key):
            found.append(invalid_value("metadata.labels", key, _NAME_RULE))
        if not isinstance(value, str) or not _VALUE.match(value):
            found.append(invalid_value("metadata.labels", value, _LABEL_RULE))
    annotations = metadata.get("annotations") or {}
    found += [
        invalid_value("metadata.annotations", key, _NAME_RULE) for key in annotations if not qualified(key.lower())
    ]
    if sum(len(key) + len(value) for key, value in annotations.items()) > ANNOTATION_BYTES:
        found.append(
            {
                "reason": "FieldValueTooLong",
                "message": f"Too long: may not be more than {ANNOTATION_BYTES} bytes",
                "field": "metadata.annotations",
            }
        )
    found += [
        invalid_value(
            "metadata.finalizers", each, "name is neither a standard finalizer name nor is it fully qualified"
        )
        for each in metadata.get("finalizers") or []
        if "/" not in each and each not in ("orphan", "foregroundDeletion", "kubernetes")
    ]
    for index, owner in enumerate(metadata.get("ownerReferences") or []):
        found += [
            required(f"metadata.ownerReferences[{index}].{field}")
            for field in ("apiVersion", "kind", "name", "uid")
            if not owner.get(field)
        ]
    return found


def qualified(key: str) -> bool:
    """Whether `key` may name a label: a name of at most 63 characters behind an optional prefix."""
    prefix, slash, name = key.rpartition("/")
    if slash and not (prefix and len(prefix) <= 253 and SUBDOMAIN.match(prefix)):
        return False
    return bool(_QUALIFIED.match(name))
