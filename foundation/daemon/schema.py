"""What a settings struct says about its keys: types, defaults, documentation, secrets."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import msgspec

from foundation.daemon import logs

Secret = Annotated[str, msgspec.Meta(extra={"secret": True})]
"""The type of a setting that holds a secret: never shown, never logged."""


def _bare(kind: Any) -> Any:
    """Without `Annotated`, and `X` for `X | None`."""
    while typing.get_origin(kind) is Annotated:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) in (Union, types.UnionType):
        rest = [arg for arg in typing.get_args(kind) if arg is not type(None)]
        if len(rest) == 1:
            return _bare(rest[0])
    return kind


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


@functools.cache
def _struct_types(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.encode_name: hints[field.name] for field in msgspec.structs.fields(kind)}


def fields(kind: Any) -> dict[str, Any] | None:
    """Key -> type of a struct; None where any key may stand."""
    kind = _bare(kind)
    return _struct_types(kind) if _is_struct(kind) else None


def is_mapping(kind: Any) -> bool:
    """Whether values of this type are merged key by key."""
    kind = _bare(kind)
    return _is_struct(kind) or typing.get_origin(kind) in (dict, Mapping, typing.Mapping) or kind is dict


def inner(kind: Any, key: str) -> Any:
    """The type under `key` of a struct or mapping; Any where it is not known."""
    kind = _bare(kind)
    if _is_struct(kind):
        return _struct_types(kind).get(key, Any)
    args = typing.get_args(kind)
    return args[1] if is_mapping(kind) and len(args) == 2 else Any


def item(kind: Any) -> Any:
    """The type of a list's or tuple's items; Any where it is not known."""
    args = typing.get_args(_bare(kind))
    return args[0] if args else Any


def at(kind: Any, key: tuple[str, ...]) -> Any:
    """The type at a key path, or None where the path leaves the struct."""
    for part in key:
        known = fields(kind)
        if known is not None and part not in known:
            return None
        kind = inner(kind, part)
    return kind


def is_scalar(kind: Any) -> bool:
    """Whether text for this type is taken as it stands (else it is YAML)."""
    kind = _bare(kind)
    if kind in (str, int, float, bool) or typing.get_origin(kind) is Literal:
        return True
    if typing.get_origin(kind) in (Union, types.UnionType):
        return all(is_scalar(arg) for arg in typing.get_args(kind))
    return isinstance(kind, type) and not _is_struct(kind) and kind not in (dict, list, tuple, set, frozenset)


def scalar(kind: Any, text: str) -> Any:
    """Text as a value of a scalar type; the text itself where it does not fit, for the later check to name.

    Limits of the type (`Meta(gt=0)`) are left to that check, which then names them and not the text.
    """
    for candidate in (kind, _bare(kind)):
        try:
            return msgspec.convert(text, candidate, strict=False, dec_hook=decode_path)
        except msgspec.ValidationError:
            continue
    return text


def decode_path(kind: type, value: Any) -> Any:
    """msgspec's hook for what it does not know: a `Path` is text."""
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    expected = "a path" if kind is Path else kind.__name__
    # msgspec adds the key path to a ValueError.
    raise ValueError(f"expected {expected}, got {type(value).__name__}")


def encode_path(value: Any) -> Any:
    """The way back."""
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"a setting of type {type(value).__name__} cannot be shown")


_AT = re.compile(r"^(?P<message>.*) - at `(?P<path>[^`]*)`$", re.DOTALL)
_NAMES = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "null": "nothing",
    "object": "a mapping",
    "array": "a list",
}


def located(text: str, kind: Any) -> tuple[str, tuple[str, ...]]:
    """msgspec's message in plain words, and the key path it is about."""
    match = _AT.match(text)
    message, path = (match["message"], match["path"]) if match else (text, "$")
    missing = re.fullmatch(r"Object missing required field `(.*)`", message)
    # Items of mappings are "[...]" in msgspec's paths; the path then ends at the mapping.
    key = tuple(part for part in re.split(r"[.\[\]]+", path.removeprefix("$")) if part)
    if missing:
        return "is required and has no default", (*key, missing[1])
    if choice := re.fullmatch(r"Invalid enum value (.*)", message):
        return f"is {choice[1]}, expected one of {_choices(at(kind, key)) or 'its known values'}", key
    unquoted = re.fullmatch(r"Expected `str`, got `(?:int|float|bool)`", message)
    message = re.sub(r"`([^`]*)`", _plainly, message)
    if unquoted:
        message += "; put it in quotes"
    return message[:1].lower() + message[1:], key


def _plainly(types: re.Match[str]) -> str:
    return " or ".join(_NAMES.get(name, name) for name in types[1].split(" | "))


def _choices(kind: Any) -> str:
    bare = _bare(kind)
    if is_mapping(bare):
        bare = _bare(inner(bare, "*"))
    elif typing.get_origin(bare) in (list, tuple):
        bare = _bare(item(bare))
    return ", ".join(str(arg) for arg in typing.get_args(bare)) if typing.get_origin(bare) is Literal else ""


def _is_secret(name: str, kind: Any) -> bool:
    metas = typing.get_args(kind)[1:] if typing.get_origin(kind) is Annotated else ()
    marked = any(isinstance(meta, msgspec.Meta) and (meta.extra or {}).get("secret") for meta in metas)
    return marked or logs.names_secret(name)


def secrets(kind: Any, tree: Any) -> Iterator[str]:
    """All texts in a tree of plain values that are secrets by the type or by the name of their key."""
    if isinstance(tree, Mapping):
        for name, content in tree.items():
            its_type = inner(kind, str(name))
            if _is_secret(str(name), its_type):
                yield from _texts(content)
            else:
                yield from secrets(its_type, content)
    elif isinstance(tree, (list, tuple)):
        its_type = item(kind)
        for content in tree:
            if _is_secret("", its_type):
                yield from _texts(content)
            else:
                yield from secrets(its_type, content)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for content in value.values():
            yield from _texts(content)
    elif isinstance(value, (list, tuple)):
        for content in value:
            yield from _texts(content)


def shown(config: msgspec.Struct) -> Any:
    """A struct as plain values with its secrets taken out."""
    tree = msgspec.to_builtins(config, enc_hook=encode_path)
    hidden = frozenset(secrets(type(config), tree))

    def clean(content: Any) -> Any:
        if isinstance(content, dict):
            return {name: clean(inside) for name, inside in content.items()}
        if isinstance(content, (list, tuple)):
            return [clean(inside) for inside in content]
        if isinstance(content, str):
            return logs.REDACTED if content and content in hidden else logs.redact(content)
        return content

    return clean(tree)


def _documentation(kind: Any) -> dict[str, str]:
    """Field -> the string that stands under it in the source, over all bases; empty where there is no source."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not _is_struct(base) or base is msgspec.Struct:
            continue
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        except (OSError, TypeError, SyntaxError):
            continue
        statements = getattr(body, "body", [])
        for field, text in itertools.pairwise(statements):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                value = text.value
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    found[field.target.id] = inspect.cleandoc(value.value)
    return found


def _type_name(kind: Any) -> str:
    if typing.get_origin(kind) is Annotated:
        return _type_name(typing.get_args(kind)[0])
    origin = typing.get_origin(kind)
    if origin is Literal:
        return " | ".join(str(arg) for arg in typing.get_args(kind))
    if origin in (Union, types.UnionType):
        return " | ".join(_type_name(arg) for arg in typing.get_args(kind))
    if origin is not None:
        return (
            f"{origin.__name__}[{', '.join(_type_name(arg) for arg in typing.get_args(kind) if arg is not Ellipsis)}]"
        )
    return "none" if kind is type(None) else str(getattr(kind, "__name__", kind))


def rows(kind: Any, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """(key, type, default, documentation) of every setting; `*.` and `#.` stand for the keys of mappings and lists."""
    documentation = _documentation(kind)
    types_of = _struct_types(kind)
    for field in msgspec.structs.fields(kind):
        its_type = types_of[field.encode_name]
        key = prefix + field.encode_name
        metas = typing.get_args(its_type)[1:] if typing.get_origin(its_type) is Annotated else ()
        text = next((meta.description for meta in metas if isinstance(meta, msgspec.Meta) and meta.description), None)
        text = text or documentation.get(field.name, "")
        if _is_struct(its_type):
            yield from rows(its_type, key + ".")
            continue
        yield key, _type_name(its_type), _default(field, _is_secret(field.encode_name, its_type)), text
        bare = _bare(its_type)
        nested = (
            bare if _is_struct(bare) else item(bare) if typing.get_origin(bare) in (list, tuple) else inner(bare, "*")
        )
        if _is_struct(_bare(nested)):
            mark = "" if _is_struct(bare) else "*." if is_mapping(bare) else "#."
            yield from rows(_bare(nested), f"{key}.{mark}")


def _default(field: msgspec.structs.FieldInfo, is_secret: bool) -> str:
    if field.default is not msgspec.NODEFAULT:
        value = field.default
    elif field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    else:
        return "required"
    if is_secret and value:
        return f"default {logs.REDACTED}"
    return "default " + msgspec.json.encode(value, enc_hook=encode_path).decode()


def help_text(kind: Any, name: str) -> str:
    """What --help prints: usage, the sources, every key."""
    variable = "DPU_OFFLOAD_" + name.upper().replace("-", "_")
    lines = [
        f"usage: {name} [--config PATH] [--set KEY=VALUE]... [--print-config] [--version] [--help]",
        "",
        *textwrap.wrap(inspect.cleandoc(kind.__doc__ or ""), 100),
        "",
        f"Settings come from the YAML file (--config or ${variable}_CONFIG), then the environment",
        f"({variable}__LOG__LEVEL=debug sets log.level), then --set (--set log.level=debug); the later wins.",
        "",
    ]
    for key, type_name, default, text in rows(kind):
        lines.append(f"  {key}  ({type_name}; {default})")
        lines += textwrap.wrap(text, 100, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines) + "\n"
