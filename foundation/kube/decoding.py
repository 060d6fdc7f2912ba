"""Bytes of the API to typed objects (pure)."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import msgspec

from foundation.kube.errors import Malformed
from foundation.kube.models.meta import KubernetesObject, ListMeta, ObjectMeta, Status
from foundation.kube.resources import Resource

T = TypeVar("T", bound=KubernetesObject)
M = TypeVar("M")


class ObjectList(msgspec.Struct, Generic[T], frozen=True):
    """One page of a list; an empty one may arrive as null."""

    metadata: ListMeta
    items: tuple[T, ...] | None = None


class ObjectEvent(msgspec.Struct, Generic[T], frozen=True, gc=False):
    """A line of a watch that tells of an object; `type` is ADDED, MODIFIED or DELETED."""

    type: str
    object: T


class _RawEvent(msgspec.Struct, frozen=True):
    type: str
    object: msgspec.Raw


class _OnlyMeta(msgspec.Struct, frozen=True):
    metadata: ObjectMeta = ObjectMeta()


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An object whose fields have other types than the API promises (possible for custom resources)."""

    key: str
    resource_version: str
    why: str


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A page of a list: what could be decoded, and what could not."""

    metadata: ListMeta
    items: tuple[T, ...]
    unreadable: tuple[Unreadable, ...] = ()


OBJECT_EVENTS = frozenset({"ADDED", "MODIFIED", "DELETED"})


@dataclass(frozen=True, slots=True)
class Bookmark:
    """A line of a watch that tells only how far it has come."""

    resource_version: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A line of a watch that ends it: the server's refusal to go on."""

    status: Status


Event = ObjectEvent[T] | Unreadable | Bookmark | Failure


NESTING: Final = 10_000
"""The API server takes objects of this depth (encoding/json of Go); one that could not be read would stop a watch."""
_SPARE: Final = 1_000


class ObjectDecoder(Generic[T]):
    """Decoders for one resource. An object that does not fit its model is reported alone, not with its neighbours."""

    def __init__(self, resource: Resource[T]) -> None:
        model = resource.model
        self._one = msgspec.json.Decoder(model)
        # the model is a run-time value, which the type checker has no words for
        self._page: msgspec.json.Decoder[ObjectList[T]] = msgspec.json.Decoder(ObjectList[model])  # type: ignore[valid-type]
        self._event: msgspec.json.Decoder[ObjectEvent[T]] = msgspec.json.Decoder(ObjectEvent[model])  # type: ignore[valid-type]
        self._raw_page = msgspec.json.Decoder(_RawList)
        self._raw_event = msgspec.json.Decoder(_RawEvent)
        self._meta = msgspec.json.Decoder(_OnlyMeta)
        self._status = msgspec.json.Decoder(Status)

    def one(self, body: bytes, *, request: str) -> T:
        """The object in `body`; raises Malformed, naming the request."""
        try:
            return _read(self._one, body)
        except msgspec.DecodeError as error:
            raise Malformed(f"{request}: the answer does not fit the model: {error}") from error

    def page(self, body: bytes, *, request: str) -> Page[T]:
        """The page in `body`; raises Malformed if it is no list at all."""
        try:
            found = _read(self._page, body)
            return Page(found.metadata, found.items or ())
        except msgspec.ValidationError:
            pass  # one bad object: find it
        except msgspec.DecodeError as error:
            raise Malformed(f"{request}: broken JSON: {error}") from error
        try:
            raw = _read(self._raw_page, body)
        except msgspec.DecodeError as error:
            raise Malformed(f"{request}: the answer is not a list: {error}") from error
        items: list[T] = []
        unreadable: list[Unreadable] = []
        for each in raw.items or ():
            try:
                items.append(_read(self._one, each))
            except msgspec.ValidationError as error:
                unreadable.append(self._unreadable(each, error))
        return Page(raw.metadata, tuple(items), tuple(unreadable))

    def event(self, line: bytes) -> Event[T]:
        """The event in one line of a watch; raises Malformed for a line that is no event."""
        try:
            found = _read(self._event, line)
        except msgspec.ValidationError as error:
            return self._odd_event(line, error)
        except msgspec.DecodeError as error:
            raise Malformed(f"a watch sent a line that is not JSON: {error}: {line[:80]!r}") from error
        return found if found.type in OBJECT_EVENTS else self._odd_event(line, None)

    def _odd_event(self, line: bytes, why: msgspec.ValidationError | None) -> Event[T]:
        """Bookmarks and errors, whose objects need not fit the model, and objects that should but don't."""
        try:
            raw = _read(self._raw_event, line)
            if raw.type == "ERROR":
                return Failure(_read(self._status, raw.object))
            if raw.type == "BOOKMARK":
                return Bookmark(_read(self._meta, raw.object).metadata.resource_version)
        except msgspec.DecodeError as error:
            raise Malformed(f"a watch sent a line that is not an event: {error}: {line[:80]!r}") from error
        if raw.type in OBJECT_EVENTS and why is not None:
            unreadable = self._unreadable(raw.object, why)
            if unreadable.key:
                return unreadable
        raise Malformed(f"a watch sent an event of unknown type {raw.type!r}: {line[:80]!r}")

    def _unreadable(self, raw: msgspec.Raw, why: Exception) -> Unreadable:
        try:
            metadata = _read(self._meta, raw).metadata
        except msgspec.ValidationError:
            metadata = ObjectMeta()
        return Unreadable(metadata.key, metadata.resource_version, str(why))


def _read(decoder: msgspec.json.Decoder[M], data: bytes | msgspec.Raw) -> M:
    try:
        return decoder.decode(data)
    except RecursionError:
        usual = sys.getrecursionlimit()
        sys.setrecursionlimit(NESTING + _SPARE)
        try:
            return decoder.decode(data)
        finally:
            sys.setrecursionlimit(usual)


class _RawList(msgspec.Struct, frozen=True):
    metadata: ListMeta = ListMeta()
    items: tuple[msgspec.Raw, ...] | None = None
