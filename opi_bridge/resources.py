"""The verbs of every OPI resource, once: create, delete, update, list, get, stats.

A `Kind` says how a resource is called in the API, a `Store` how it lives on the card. `handlers` makes gRPC services of
a table of kinds.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import grpc
from google.protobuf import any_pb2, empty_pb2
from google.protobuf.message import DecodeError, Message

from opi_bridge import masks, names, pages
from opi_bridge.errors import AlreadyExists, Different, FailedPrecondition, InvalidArgument, NotFound
from opi_bridge.names import Name

PACKAGE: Final = "opi_api.storage.v1"
VERBS: Final = ("create", "delete", "update", "list", "get", "stats")


class Store(Protocol):
    """Where the resources of one kind live. Messages carry their full `name` when they come out."""

    def check(self, message: Any) -> None:
        """Raise InvalidArgument for a message that can never be right; no I/O."""

    def normalise(self, message: Any) -> Any:
        """The message in the form in which it will be read back (letter case, references)."""

    async def listing(self, parent: Name) -> Sequence[Any]:
        """All under `parent`, whose ids may be wildcards. Raises NotFound for a missing parent."""

    async def get(self, name: Name) -> Any | None: ...

    async def create(self, name: Name, message: Any) -> Any:
        """Make it; raise AlreadyExists if anything is in its place."""

    async def update(self, name: Name, current: Any, wanted: Any) -> Any: ...

    async def delete(self, name: Name) -> bool:
        """Remove it; False if it was not there. Raises FailedPrecondition when it has children or users."""

    async def stats(self, name: Name) -> Any | None:
        """A VolumeStats; None if there is no such resource."""


@dataclass(frozen=True)
class Kind:
    """How a resource is called: `singular` and `plural` as in the RPC names, `pattern` as in its resource name."""

    singular: str
    plural: str
    pattern: tuple[str, ...]
    service: str
    module: Any
    store: Store
    verbs: Sequence[str] = VERBS
    extra: Mapping[str, Callable[[Name], Awaitable[None]]] = field(default_factory=dict)

    @property
    def field(self) -> str:
        return _snake(self.singular)

    @property
    def plural_field(self) -> str:
        return _snake(self.plural)

    def message(self, name: str) -> type[Message]:
        result: type[Message] = getattr(self.module, name)
        return result


def _snake(camel: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", camel).lower()


class Locks:
    """One lock a key, kept only while somebody holds or wants it."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    @contextlib.asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[None]:
        lock, users = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(key)
            if users > 1:
                self._locks[key] = (lock, users - 1)


class Verbs:
    """The verbs of one kind; calls that touch one family of names come one after another."""

    def __init__(self, kind: Kind, locks: Locks) -> None:
        self._kind = kind
        self._locks = locks

    def _given(self, request: Any) -> Any:
        if not request.HasField(self._kind.field):
            raise InvalidArgument(f"{self._kind.field} is required")
        return getattr(request, self._kind.field)

    def _name(self, text: str, label: str = "name") -> Name:
        return names.parse(text, self._kind.pattern, label)

    def _parent(self, text: str, *, wildcard: bool = False) -> Name:
        pattern = self._kind.pattern[:-1]
        # Some lists take a parent that their resource names do not have; it says nothing.
        return names.parse(text, pattern, "parent", wildcard=wildcard) if pattern else names.ROOT

    async def create(self, request: Any) -> Message:
        kind = self._kind
        given = self._given(request)
        parent = self._parent(getattr(request, "parent", ""))
        label = f"{kind.field}_id"
        identifier = getattr(request, label)
        identifier = names.check_id(identifier, label) if identifier else names.new_id()
        kind.store.check(given)
        given = kind.store.normalise(given)
        name = parent.child(kind.pattern[-1], identifier)
        async with self._locks.hold(name.root):
            try:
                created: Message = await kind.store.create(name, given)
            except Different:
                raise
            except AlreadyExists:
                there: Message | None = await kind.store.get(name)
                if there is None:
                    raise
                wrong = masks.differing(given, there)
                if wrong:
                    raise Different(f"{name} exists with another {', '.join(wrong)}") from None
                return there
        return created

    async def delete(self, request: Any) -> Message:
        name = self._name(request.name)
        async with self._locks.hold(name.root):
            found = await self._kind.store.delete(name)
        if not found and not request.allow_missing:
            raise NotFound(f"there is no {name}")
        return empty_pb2.Empty()

    async def update(self, request: Any) -> Message:
        given = self._given(request)
        name = self._name(given.name, f"{self._kind.field}.name")
        async with self._locks.hold(name.root):
            current = await self._kind.store.get(name)
            if current is None and not request.allow_missing:
                raise NotFound(f"there is no {name}")
            blank = type(given)()
            wanted = masks.apply(current if current is not None else blank, given, list(request.update_mask.paths))
            wanted.name = str(name)
            self._kind.store.check(wanted)
            wanted = self._kind.store.normalise(wanted)
            if current is None:
                created: Message = await self._kind.store.create(name, wanted)
                return created
            if wanted == current:
                return current  # type: ignore[no-any-return]  # a message of the generated module
            updated: Message = await self._kind.store.update(name, current, wanted)
            return updated

    async def list(self, request: Any) -> Message:
        kind = self._kind
        parent = self._parent(getattr(request, "parent", ""), wildcard=True)
        found = await kind.store.listing(parent)
        scope = f"{parent}/{kind.pattern[-1]}"
        page, token = pages.cut(
            found, key=lambda item: str(item.name), scope=scope, size=request.page_size, token=request.page_token
        )
        return kind.message(f"List{kind.plural}Response")(**{kind.plural_field: page, "next_page_token": token})

    async def get(self, request: Any) -> Message:
        name = self._name(request.name)
        found: Message | None = await self._kind.store.get(name)
        if found is None:
            raise NotFound(f"there is no {name}")
        return found

    async def stats(self, request: Any) -> Message:
        name = self._name(request.name)
        stats = await self._kind.store.stats(name)
        if stats is None:
            raise NotFound(f"there is no {name}")
        return self._kind.message(f"Stats{self._kind.singular}Response")(stats=stats)

    def extra(self, verb: str) -> Callable[[Any], Awaitable[Message]]:
        act = self._kind.extra[verb]

        async def call(request: Any) -> Message:
            name = self._name(request.name)
            async with self._locks.hold(name.root):
                if await self._kind.store.get(name) is None:
                    raise NotFound(f"there is no {name}")
                await act(name)
            return empty_pb2.Empty()

        return call


class Creation:
    """Creates resources of any kind by their create requests alone."""

    def __init__(self, kinds: Iterable[Kind], locks: Locks) -> None:
        self._kinds = {
            f"{PACKAGE}.Create{kind.singular}Request": (
                kind.message(f"Create{kind.singular}Request"),
                Verbs(kind, locks),
            )
            for kind in kinds
            if "create" in kind.verbs
        }

    async def create(self, packed: any_pb2.Any) -> Message:
        """As the resource's own create. Raises InvalidArgument for what is no such request."""
        request, verbs = self._kinds.get(packed.TypeName(), (None, None))
        if request is None or verbs is None:
            raise InvalidArgument(f"{packed.TypeName()[:120]!r} is no request that creates a resource")
        try:
            return await verbs.create(request.FromString(packed.value))
        except DecodeError:
            raise InvalidArgument(f"{packed.TypeName()} cannot be decoded") from None


class Removal:
    """Deletes resources of any kind by their names alone."""

    def __init__(self, kinds: Iterable[Kind], locks: Locks) -> None:
        self._kinds = {kind.pattern: kind for kind in kinds if "delete" in kind.verbs}
        self._locks = locks

    async def delete(self, text: str) -> bool:
        """As the resource's own delete with allow_missing. Raises InvalidArgument for a name of no kind."""
        kind = self._kinds.get(tuple(text.split("/")[::2]))
        if kind is None:
            raise InvalidArgument(f"{text[:120]!r} is no name of a resource that can be deleted")
        name = names.parse(text, kind.pattern)
        async with self._locks.hold(name.root):
            return await kind.store.delete(name)


def handlers(kinds: Iterable[Kind], locks: Locks) -> list[grpc.GenericRpcHandler]:
    """gRPC handlers for a table of kinds, one a service."""
    services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
    for kind in kinds:
        verbs = Verbs(kind, locks)
        methods = services.setdefault(kind.service, {})
        for verb in kind.verbs:
            rpc = f"{verb.capitalize()}{kind.plural if verb == 'list' else kind.singular}"
            methods[rpc] = _handler(kind, rpc, getattr(verbs, verb))
        for verb in kind.extra:
            rpc = f"{verb.capitalize()}{kind.singular}"
            methods[rpc] = _handler(kind, rpc, verbs.extra(verb))
    return [
        grpc.method_handlers_generic_handler(f"{PACKAGE}.{service}", methods) for service, methods in services.items()
    ]


def _handler(kind: Kind, rpc: str, act: Callable[[Any], Awaitable[Message]]) -> grpc.RpcMethodHandler[Any, Any]:
    async def behaviour(request: Message, _context: object) -> Message:
        return await act(request)

    return grpc.unary_unary_rpc_method_handler(
        behaviour,
        request_deserializer=kind.message(f"{rpc}Request").FromString,
        response_serializer=lambda message: message.SerializeToString(),
    )


def immutable(current: Message, wanted: Message, mutable: Iterable[str] = ()) -> None:
    """Raise FailedPrecondition if `wanted` changes a field that only a new resource can have."""
    wrong = [path for path in masks.differing(wanted, current) if path not in set(mutable)]
    if wrong:
        raise FailedPrecondition(f"{', '.join(wrong)} cannot be changed: delete the resource and create it again")
