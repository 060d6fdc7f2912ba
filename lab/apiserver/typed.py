"""The fields of built-in kinds, taken from the official package's models: what a typed server drops or refuses."""

from __future__ import annotations

import functools
import importlib
import types
import typing
from dataclasses import dataclass, field
from typing import Any

from lab.apiserver.status import bad_request

Json = dict[str, Any]

_SCALARS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "int-or-string": (int, str),
}


@dataclass(slots=True)
class Shape:
    """What may stand at one place. `type` is object, list, map, any, or one of the scalars."""

    type: str
    fields: dict[str, Shape] = field(default_factory=dict)
    item: Shape | None = None


ANY = Shape("any")


@functools.cache
def shape_of(model: str) -> Shape:
    """The shape of a built-in kind, by the name of its model in the `kubernetes` package (`V1Pod`)."""
    found = getattr(importlib.import_module("kubernetes.client.models"), model)
    return _shape(found)


_known: dict[type, Shape] = {}


def _shape(annotation: Any) -> Shape:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _shape(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        options = [each for each in typing.get_args(annotation) if each is not type(None)]
        shapes = [_shape(each) for each in options]
        if len(shapes) == 1:
            return shapes[0]
        kinds = {shape.type for shape in shapes}
        return Shape("int-or-string") if kinds == {"integer", "string"} else _widest(kinds)
    if origin in (list, typing.List):  # noqa: UP006  # the package's models spell it so
        return Shape("list", item=_shape(typing.get_args(annotation)[0]))
    if origin in (dict, typing.Dict):  # noqa: UP006  # the package's models spell it so
        return Shape("map", item=_shape(typing.get_args(annotation)[1]))
    return _plain(annotation)


def _widest(kinds: set[str]) -> Shape:
    return Shape("number") if kinds <= {"integer", "number"} else ANY


def _plain(annotation: Any) -> Shape:
    simple = {str: "string", int: "integer", float: "number", bool: "boolean"}.get(annotation)
    if simple:
        return Shape(simple)
    if isinstance(annotation, type) and annotation.__name__ in ("datetime", "date", "bytes"):
        return Shape("string")
    model_fields = getattr(annotation, "model_fields", None)
    if model_fields is None:
        return ANY
    if annotation in _known:
        return _known[annotation]
    shape = _known[annotation] = Shape("object")  # known before it is filled: schemas are recursive
    for name, info in model_fields.items():
        alias = info.serialization_alias or info.alias or name
        if isinstance(alias, str) and name not in ("local_vars_configuration",):
            shape.fields[alias] = _shape(info.annotation)
    if set(shape.fields) <= {"actual_instance", "additional_properties"}:
        shape.type, shape.fields = "any", {}
    return shape


def fit(shape: Shape, obj: Json, kind: str, version: str, unknown: list[str]) -> Json:
    """`obj` as a typed server would store it: unknown fields and nulls dropped (and named in `unknown`).

    Raises StatusError (400) for a value of the wrong type.
    """
    try:
        fitted = _fit(shape, obj, "", unknown)
    except _WrongType as error:
        raise bad_request(f'{kind} in version "{version}" cannot be handled as a {kind}: json: {error}') from error
    return typing.cast(Json, fitted)


class _WrongType(Exception):
    pass


def _fit(shape: Shape, value: Any, path: str, unknown: list[str]) -> Any:
    kind = shape.type
    if kind == "any":
        return value
    if kind == "object":
        if not isinstance(value, dict):
            raise _wrong(value, path, "object")
        fields = shape.fields
        fitted = {}
        for name, inner in value.items():
            known = fields.get(name)
            if known is None:
                unknown.append(f"{path}.{name}" if path else name)
            elif inner is not None:
                fitted[name] = _fit(known, inner, f"{path}.{name}" if path else name, unknown)
        return fitted
    if kind == "list":
        if not isinstance(value, list):
            raise _wrong(value, path, "list")
        item = shape.item or ANY
        return [_fit(item, inner, f"{path}[{index}]", unknown) for index, inner in enumerate(value)]
    if kind == "map":
        if not isinstance(value, dict):
            raise _wrong(value, path, "map")
        item = shape.item or ANY
        return {name: _fit(item, "" if inner is None else inner, path, unknown) for name, inner in value.items()}
    allowed = _SCALARS[kind]
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind != "boolean"):
        raise _wrong(value, path, kind)
    return value


def _wrong(value: Any, path: str, wanted: str) -> _WrongType:
    names = {str: "string", int: "number", float: "number", bool: "bool", dict: "object", list: "array"}
    return _WrongType(f"cannot unmarshal {names.get(type(value), 'null')} into Go struct field {path} of type {wanted}")
