"""Custom resource definitions, and what their schemas say of objects."""

from __future__ import annotations

import copy
import re
from typing import Any

from lab.apiserver.status import Json, cause, invalid_value, not_supported, required

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}


def definition_default(crd: Json, now: str) -> None:
    """Names, conversion and conditions that the server adds to a definition, in place."""
    spec = crd["spec"]
    names = spec["names"]
    names.setdefault("singular", names["kind"].lower())
    names.setdefault("listKind", names["kind"] + "List")
    spec.setdefault("conversion", {"strategy": "None"})
    crd["status"] = {
        "acceptedNames": names,
        "storedVersions": [version["name"] for version in spec["versions"] if version.get("storage")],
        "conditions": [
            {
                "type": "NamesAccepted",
                "status": "True",
                "reason": "NoConflicts",
                "message": "no conflicts found",
                "lastTransitionTime": now,
            },
            {
                "type": "Established",
                "status": "True",
                "reason": "InitialNamesAccepted",
                "message": "the initial names have been accepted",
                "lastTransitionTime": now,
            },
        ],
    }


def definition_problems(crd: Json) -> list[Json]:
    """What is wrong with a definition, as causes of a 422."""
    spec = crd.get("spec") or {}
    names = spec.get("names") or {}
    found = [required(f"spec.{field}") for field in ("group", "scope", "versions") if not spec.get(field)]
    found += [required(f"spec.names.{field}") for field in ("plural", "kind") if not names.get(field)]
    if found:
        return found
    wanted = f"{names['plural']}.{spec['group']}"
    if crd["metadata"].get("name") != wanted:
        why = 'must be spec.names.plural+"."+spec.group'
        found.append(invalid_value("metadata.name", crd["metadata"].get("name", ""), why))
    if spec["scope"] not in ("Namespaced", "Cluster"):
        found.append(not_supported("spec.scope", spec["scope"], ["Cluster", "Namespaced"]))
    if sum(bool(version.get("storage")) for version in spec["versions"]) != 1:
        found.append(invalid_value("spec.versions", "", "must have exactly one version marked as storage version"))
    for index, version in enumerate(spec["versions"]):
        if not (version.get("schema") or {}).get("openAPIV3Schema"):
            found.append(required(f"spec.versions[{index}].schema.openAPIV3Schema", "schemas are required"))
    return found


def prune(value: Any, schema: Json, unknown: list[str], path: str = "", *, top: bool = False) -> Any:
    """`value` without the fields that the schema does not know; their paths are added to `unknown`."""
    if isinstance(value, dict):
        properties = schema.get("properties") or {}
        additional = schema.get("additionalProperties")
        keep = schema.get("x-kubernetes-preserve-unknown-fields") or additional is True
        result = {}
        for name, inner in value.items():
            place = f"{path}.{name}" if path else name
            if top and name in ("apiVersion", "kind", "metadata"):
                result[name] = inner
            elif name in properties:
                result[name] = prune(inner, properties[name], unknown, place)
            elif isinstance(additional, dict):
                result[name] = prune(inner, additional, unknown, place)
            elif keep or schema.get("x-kubernetes-embedded-resource"):
                result[name] = inner
            else:
                unknown.append(place)
        return result
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        return [prune(item, schema["items"], unknown, f"{path}[{index}]") for index, item in enumerate(value)]
    return value


def fill(value: Any, schema: Json) -> None:
    """Put in the schema's defaults, in place; nulls where the schema has a default and no null are replaced."""
    if isinstance(value, dict):
        for name, inner in (schema.get("properties") or {}).items():
            if "default" in inner and (name not in value or (value[name] is None and not inner.get("nullable"))):
                value[name] = copy.deepcopy(inner["default"])
            if name in value:
                fill(value[name], inner)
        if isinstance(schema.get("additionalProperties"), dict):
            for inner in value.values():
                fill(inner, schema["additionalProperties"])
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for item in value:
            fill(item, schema["items"])


def problems(value: Any, schema: Json, path: str = "", *, top: bool = False) -> list[Json]:
    """Where `value` breaks the schema, as causes of a 422. Understands the structural subset, no CEL rules."""
    if value is None and schema.get("nullable"):
        return []
    if schema.get("x-kubernetes-int-or-string"):
        return [] if isinstance(value, (int, str)) else [_wrong_type(value, path, "integer,string")]
    wanted = schema.get("type")
    if wanted and not _fits(value, wanted):
        return [_wrong_type(value, path, wanted)]
    found: list[Json] = []
    if "enum" in schema and value not in schema["enum"]:
        found.append(not_supported(path, value, [str(each) for each in schema["enum"]]))
    if isinstance(value, str):
        found += _text(value, schema, path)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        found += _number(value, schema, path)
    elif isinstance(value, list):
        if len(value) > schema.get("maxItems", len(value)):
            found.append(
                cause(
                    path, "FieldValueTooMany", f"Too many: {len(value)}: must have at most {schema['maxItems']} items"
                )
            )
        if len(value) < schema.get("minItems", 0):
            found.append(invalid_value(path, len(value), f"should have at least {schema['minItems']} items"))
        for index, item in enumerate(value):
            found += problems(item, schema.get("items") or {}, f"{path}[{index}]")
    elif isinstance(value, dict):
        properties = schema.get("properties") or {}
        found += [
            required(f"{path}.{name}" if path else name) for name in schema.get("required") or [] if name not in value
        ]
        for name, inner in value.items():
            if top and name in ("apiVersion", "kind", "metadata"):
                continue
            below = properties.get(name) or schema.get("additionalProperties")
            if isinstance(below, dict):
                found += problems(inner, below, f"{path}.{name}" if path else name)
    return found


def _fits(value: Any, wanted: str) -> bool:
    if isinstance(value, bool):
        return wanted == "boolean"
    return isinstance(value, _TYPES.get(wanted, (object,)))


def _wrong_type(value: Any, path: str, wanted: str) -> Json:
    names = {str: "string", bool: "boolean", int: "integer", float: "number", dict: "object", list: "array"}
    found = names.get(type(value), "null")
    return cause(
        path, "FieldValueTypeInvalid", f'Invalid value: "{found}": {path} in body must be of type {wanted}: "{found}"'
    )


def _text(value: str, schema: Json, path: str) -> list[Json]:
    found = []
    if "pattern" in schema and not re.search(schema["pattern"], value):
        found.append(invalid_value(path, value, f"{path} in body should match '{schema['pattern']}'"))
    if len(value) > schema.get("maxLength", len(value)):
        longest = schema["maxLength"]
        found.append(cause(path, "FieldValueTooLong", f"Too long: may not be more than {longest} bytes"))
    if len(value) < schema.get("minLength", 0):
        found.append(invalid_value(path, value, f"{path} in body should be at least {schema['minLength']} chars long"))
    return found


def _number(value: float, schema: Json, path: str) -> list[Json]:
    found = []
    if value < schema.get("minimum", value):
        found.append(
            invalid_value(path, value, f"{path} in body should be greater than or equal to {schema['minimum']}")
        )
    if value > schema.get("maximum", value):
        found.append(invalid_value(path, value, f"{path} in body should be less than or equal to {schema['maximum']}"))
    return found
