"""Bytes of the API to typed objects (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import msgspec

from foundation.kube.errors import Malformed
from foundation.kube.models.meta import KubernetesObject, ListMeta, ObjectMeta, Status
from foundation.kube.resources import Resource

T = TypeVar("T", bound=KubernetesObject)


class ObjectList(msgspec.Struct, Generic[T], frozen=True):
    """One page of a list; an empty one may arrive as null."""

    metadata: ListMeta
    items: tuple[T, ...] | None = None


class _Event(msgspec.Struct, Generic[T], frozen=True):
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


Kind = Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]

_KINDS: Mapping[str, Kind] = {"ADDED": "ADDED", "MODIFIED": "MODIFIED", "DELETED": "DELETED"}
"""The event types that carry an object of the resource."""


@dataclass(frozen=True, slots=True)
class Event(Generic[T]):
    """One line of a watch. Exactly one of the fields is present, none for a bookmark.

    `resource_version` is where a watch may go on after this event ("" for an error).
    """

    kind: Kind
    resource_version: str = ""
    object: T | None = None
    unreadable: Unreadable | None = None
    status: Status | None = None


class ObjectDecoder(Generic[T]):
    """Decoders for one resource. An object that does not fit its model is reported alone, not with its neighbours."""

    def __init__(self, resource: Resource[T]) -> None:
        model = resource.model
        self._one = msgspec.json.Decoder(model)
        # the model is a run-time value, which the type checker has no words for
        self._page: msgspec.json.Decoder[ObjectList[T]] = msgspec.json.Decoder(ObjectList[model])  # type: ignore[valid-type]
        self._event: msgspec.json.Decoder[_Event[T]] = msgspec.json.Decoder(_Event[model])  # type: ignore[valid-type]
        self._raw_page = msgspec.json.Decoder(_RawList)
        self._raw_event = msgspec.json.Decoder(_RawEvent)
        self._meta = msgspec.json.Decoder(_OnlyMeta)
        self._status = msgspec.json.Decoder(Status)

    def one(self, body: bytes, *, request: str) -> T:
        """The object in `body`; raises Malformed, naming the request."""
        try:
            return self._one.decode(body)
        except msgspec.DecodeError as error:
            raise Malformed(f"{request}: the answer does not fit the model: {error}") from error

    def page(self, body: bytes, *, request: str) -> Page[T]:
        """The page in `body`; raises Malformed if it is no list at all."""
        try:
            found = self._page.decode(body)
            return Page(found.metadata, found.items or ())
        except msgspec.ValidationError:
            pass  # one bad object: find it
        except msgspec.DecodeError as error:
            raise Malformed(f"{request}: broken JSON: {error}") from error
        try:
            raw = self._raw_page.decode(body)
        except msgspec.DecodeError as error:
            raise Malformed(f"{request}: the answer is not a list: {error}") from error
        items: list[T] = []
        unreadable: list[Unreadable] = []
        for each in raw.items or ():
            try:
                items.append(self._one.decode(each))
            except msgspec.ValidationError as error:
                unreadable.append(self._unreadable(each, error))
        return Page(raw.metadata, tuple(items), tuple(unreadable))

    def event(self, line: bytes) -> Event[T]:
        """The event in one line of a watch; raises Malformed for a line that is no event."""
        try:
            found = self._event.decode(line)
        except msgspec.ValidationError as error:
            return self._odd_event(line, error)
        except msgspec.DecodeError as error:
            raise Malformed(f"a watch sent a line that is not JSON: {error}: {line[:80]!r}") from error
        kind = _KINDS.get(found.type)
        if kind is not None:
            return Event(kind, found.object.metadata.resource_version, found.object)
        return self._odd_event(line, None)

    def _odd_event(self, line: bytes, why: msgspec.ValidationError | None) -> Event[T]:
        """Bookmarks and errors, whose objects need not fit the model, and objects that should but don't."""
        try:
            raw = self._raw_event.decode(line)
            if raw.type == "ERROR":
                return Event("ERROR", status=self._status.decode(raw.object))
            if raw.type == "BOOKMARK":
                return Event("BOOKMARK", self._meta.decode(raw.object).metadata.resource_version)
        except msgspec.DecodeError as error:
            raise Malformed(f"a watch sent a line that is not an event: {error}: {line[:80]!r}") from error
        kind = _KINDS.get(raw.type)
        if kind is not None and why is not None:
            unreadable = self._unreadable(raw.object, why)
            if unreadable.key:
                return Event(kind, unreadable.resource_version, unreadable=unreadable)
        raise Malformed(f"a watch sent an event of unknown type {raw.type!r}: {line[:80]!r}")

    def _unreadable(self, raw: msgspec.Raw, why: Exception) -> Unreadable:
        try:
            metadata = self._meta.decode(raw).metadata
        except msgspec.ValidationError:
            metadata = ObjectMeta()
        return Unreadable(metadata.key, metadata.resource_version, str(why))


class _RawList(msgspec.Struct, frozen=True):
    metadata: ListMeta = ListMeta()
    items: tuple[msgspec.Raw, ...] | None = None
