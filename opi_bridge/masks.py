"""Update masks (AIP-134): which fields of a message an update request means."""

from collections.abc import Sequence
from typing import Any, Final, TypeVar

from google.protobuf.message import Message

from opi_bridge.errors import InvalidArgument

M = TypeVar("M", bound=Message)
_SECRETS: Final = frozenset({"psk", "key"})


def apply(current: M, wanted: M, paths: Sequence[str]) -> M:
    """Return `current` with the fields named by `paths` taken from `wanted`.

    No paths: every populated field of `wanted` (AIP-134's default). "*": all fields, `name` aside. A path of a
    sub-message is written "spec.nqn". Raises InvalidArgument for a path that names no field.
    """
    result = type(current)()
    result.CopyFrom(current)
    if list(paths) == ["*"]:
        name = getattr(current, "name", None)
        result.CopyFrom(wanted)
        if name is not None:
            result.name = name  # type: ignore[attr-defined]  # every OPI resource has one
        return result
    if not paths:
        _merge(result, wanted)
        return result
    for path in paths:
        _check(wanted, path)
    for path in paths:
        _take(result, wanted, path.split("."))
    return result


def _merge(target: Message, source: Message) -> None:
    for field, value in source.ListFields():
        if field.name == "name":
            continue
        if field.message_type is not None and not field.is_repeated:
            _merge(getattr(target, field.name), value)
            getattr(target, field.name).SetInParent()
        elif field.is_repeated:
            target.ClearField(field.name)
            getattr(target, field.name).extend(value)
        else:
            setattr(target, field.name, value)


def _check(message: Message, path: str) -> None:
    descriptor: Any = message.DESCRIPTOR
    for word in path.split("."):
        field = descriptor.fields_by_name.get(word) if descriptor is not None else None
        if field is None:
            raise InvalidArgument(f"update_mask names {path!r}, which is no field of {message.DESCRIPTOR.name}")
        descriptor = field.message_type


def _take(target: Message, source: Message, words: list[str]) -> None:
    word = words[0]
    field = target.DESCRIPTOR.fields_by_name[word]
    if len(words) > 1:
        _take(getattr(target, word), getattr(source, word), words[1:])
        return
    target.ClearField(word)
    if field.message_type is not None:
        if source.HasField(word):
            getattr(target, word).CopyFrom(getattr(source, word))
    else:
        setattr(target, word, getattr(source, word))


def differing(given: Message, actual: Message, prefix: str = "") -> list[str]:
    """Paths of fields populated in `given` whose value in `actual` is another one.

    `name` and `status` are left out, and secrets, which are never read back.
    """
    result = []
    for field, value in given.ListFields():
        if field.name in {"name", "status"} and not prefix:
            continue
        if field.name in _SECRETS:
            continue
        there = getattr(actual, field.name)
        if field.message_type is not None and not field.is_repeated:
            result.extend(differing(value, there, f"{prefix}{field.name}."))
        elif value != there:
            result.append(prefix + field.name)
    return result
