"""A local copy of one Kubernetes resource that follows the server."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic, Literal, TypeVar

import msgspec

from foundation.daemon.backoff import Backoff, Pauses
from foundation.kube.client import PAGE, KubeClient
from foundation.kube.decoding import Event, Failure, ObjectEvent, Page, Unreadable
from foundation.kube.errors import Gone, KubeError, Unavailable, VersionTooLarge, from_status
from foundation.kube.models.meta import KubernetesObject
from foundation.kube.resources import Resource
from foundation.kube.sharing import Sharing
from foundation.kube.watching import Pace, lines

T = TypeVar("T", bound=KubernetesObject)

logger = logging.getLogger(__name__)

WATCH_SECONDS = 300.0
IDLE_SECONDS = 90.0
"""The server sends a bookmark about every minute, but none for a kind of which nothing has changed since the watch
began: a stream silent for longer may be dead or only quiet, and is replaced at once."""
SHORT_WATCH_SECONDS = 1.0
"""A watch that ends sooner and brought nothing is a failure: the next one waits."""
TOO_LARGE_TRIES = 5
RETRY = Backoff(0.1, 5.0, jitter=0.5)
"""The spread keeps a thousand nodes from coming back to a restarted API server in step."""


class Change(msgspec.Struct, Generic[T], frozen=True, gc=False):
    """What happened to one object. `old` is None for "added", `new` is None for "deleted"."""

    kind: Literal["added", "updated", "deleted"]
    key: str
    old: T | None
    new: T | None


@dataclass(slots=True)
class ReflectorStatistics:
    """What a reflector has been through."""

    lists: int = 0
    watches: int = 0
    events: int = 0
    bookmarks: int = 0
    failures: int = 0


class Reflector(Generic[T]):
    """Keeps `store` equal to the server's objects and tells subscribers of each change, in the server's order.

    It lists in pages and watches from the list's version; a cut watch goes on from the last version seen (bookmarks
    move it along while nothing happens); when the server no longer knows that version it lists again and reports the
    difference. Every failure is followed by a growing pause with jitter, and by the server's own Retry-After.
    """

    def __init__(
        self,
        client: KubeClient,
        resource: Resource[T],
        *,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        page: int = PAGE,
        watch_seconds: float = WATCH_SECONDS,
        idle_seconds: float = IDLE_SECONDS,
        backoff: Backoff = RETRY,
        on_unreadable: Callable[[Unreadable], None] | None = None,
    ) -> None:
        """`on_unreadable` is told of objects which do not fit the model; they are left out of the store."""
        self.resource = resource
        self.statistics = ReflectorStatistics()
        self.last_error = ""
        self._client = client
        self._decoder = client.decoder(resource)
        self._where = {"namespace": namespace, "label_selector": label_selector, "field_selector": field_selector}
        self._page = page
        self._watch_seconds = watch_seconds
        self._idle_seconds = idle_seconds
        self._pauses = Pauses(backoff)
        self._on_unreadable = on_unreadable
        self._sharing = Sharing()
        self._store: dict[str, T] = {}
        self._view = MappingProxyType(self._store)
        self._version = ""
        self._too_large = 0
        self._doubtful = self._restored = False
        self._synced = asyncio.Event()
        self._subscribers: tuple[Callable[[Change[T]], None], ...] = ()

    @property
    def store(self) -> Mapping[str, T]:
        """The objects by `namespace/name`, or by `name`: a live view."""
        return self._view

    @property
    def resource_version(self) -> str:
        """The version up to which `store` is known to be right ("" before the first list)."""
        return self._version

    def subscribe(self, callback: Callable[[Change[T]], None]) -> Callable[[], None]:
        """Call `callback` for each change from now on, and at once with "added" for what is here already.

        It runs in the event loop, so it must be short (put a key into a queue). What it raises is logged and goes no
        further. Returns a function that ends the subscription.
        """
        self._subscribers = (*self._subscribers, callback)
        for key, obj in list(self._store.items()):
            self._tell(callback, Change("added", key, None, obj))

        def unsubscribe() -> None:
            self._subscribers = tuple(each for each in self._subscribers if each is not callback)

        return unsubscribe

    async def synced(self) -> None:
        """Wait until the first list has been read in full."""
        await self._synced.wait()

    @property
    def has_synced(self) -> bool:
        """True once the first list has been read in full."""
        return self._synced.is_set()

    async def run(self) -> None:
        """Follow the server for ever. Ends only by cancellation."""
        while True:
            pause = 0.0
            try:
                if not self._version:
                    await self._list()
                if await self._watch():
                    self._pauses.reset()
                else:
                    pause = self._pauses.next()
            except Gone as error:
                self._version = ""
                pause = self._failed(error)
            except VersionTooLarge as error:
                # another server of the cluster gave us the version; this one is behind and should catch up soon
                self._too_large += 1
                if self._too_large >= TOO_LARGE_TRIES:
                    self._version, self._too_large = "", 0
                pause = self._failed(error)
            except (KubeError, TimeoutError) as error:
                pause = self._failed(error)
            if pause:
                await asyncio.sleep(pause)

    def _failed(self, error: Exception) -> float:
        self.statistics.failures += 1
        self._doubtful = True
        self.last_error = str(error) if isinstance(error, KubeError) else f"nothing heard for {self._idle_seconds:g} s"
        pause = self._pauses.next(at_least=error.retry_after if isinstance(error, Unavailable) else 0.0)
        logger.warning("%s: %s; next try in %.2f s", self.resource.plural, self.last_error, pause)
        return pause

    async def _went_back(self) -> bool:
        """Whether the server knows less than we do: its storage was restored from a backup.

        It accepts a watch from our version all the same, and is silent until its own has passed that (seen on
        Kubernetes 1.36). Versions of one storage compare as numbers, as far as they are numbers at all.
        """
        page = await self._client.page(self.resource, limit=1, **self._where)
        self._doubtful = False
        version = page.metadata.resource_version
        if not (version.isdigit() and self._version.isdigit() and int(version) < int(self._version)):
            return False
        logger.warning(
            "%s: the server is at version %s, we saw %s: its storage is an older one; all is listed again",
            self.resource.plural,
            version,
            self._version,
        )
        return True

    async def _list(self) -> None:
        self.statistics.lists += 1
        version = token = ""
        seen: set[str] = set()
        while True:
            try:
                page = await self._client.page(self.resource, limit=self._page, token=token, **self._where)
            except Gone:
                if not token:
                    raise
                # the token outlived the server's memory: start over, but keep what is known to be newer
                self.statistics.failures += 1
                await self._pauses.wait()
                version = token = ""
                seen.clear()
                continue
            version = version or page.metadata.resource_version
            self._take(page, seen)
            token = page.metadata.continue_
            if not token:
                break
        for key in [key for key in self._store if key not in seen]:
            self._put(key, None)
        self._version, self._restored = version, False
        self._synced.set()

    def _take(self, page: Page[T], seen: set[str]) -> None:
        for bad in page.unreadable:
            self._report(bad)
        for obj in page.items:
            key = obj.metadata.key
            seen.add(key)
            self._put(key, obj)

    async def _watch(self) -> bool:
        """One watch until it ends; True if it was worth something. Raises what ends it otherwise."""
        self.statistics.watches += 1
        loop = asyncio.get_running_loop()
        start = loop.time()
        useful = accepted = False
        seconds = self._watch_seconds * random.uniform(1.0, 1.2)
        try:
            async with self._client.watch(
                self.resource,
                resource_version=self._version,
                timeout_seconds=seconds,
                idle=min(self._idle_seconds, seconds + 10.0),
                **self._where,
            ) as content:
                accepted = True
                if self._doubtful and await self._went_back():
                    self._version, self._restored = "", True
                    return True
                async for batch in lines(content, Pace()):
                    for line in batch:
                        self._apply(self._decoder.event(line))
                    if not useful:
                        useful = True
                        self.last_error = ""
                        self._too_large = 0
                        self._pauses.reset()
        except TimeoutError:
            if not accepted or loop.time() - start < SHORT_WATCH_SECONDS:
                raise
            logger.debug("%s: nothing heard for %g s; watched anew", self.resource.plural, self._idle_seconds)
        return useful or loop.time() - start >= SHORT_WATCH_SECONDS

    def _apply(self, event: Event[T]) -> None:
        if isinstance(event, ObjectEvent):
            self.statistics.events += 1
            obj = event.object
            metadata = obj.metadata
            self._put(metadata.key, None if event.type == "DELETED" else obj)
            self._version = metadata.resource_version or self._version
        elif isinstance(event, Failure):
            raise from_status(event.status, request=f"watch of {self.resource.plural}")
        elif isinstance(event, Unreadable):
            self.statistics.events += 1
            self._report(event)
            self._put(event.key, None)
            self._version = event.resource_version or self._version
        else:
            self.statistics.bookmarks += 1
            self._version = event.resource_version or self._version

    def _put(self, key: str, new: T | None) -> None:
        old = self._store.get(key)
        if new is None:
            if old is not None:
                del self._store[key]
                self._report_change(Change("deleted", key, old, None))
            return
        if old is not None:
            if old.metadata.uid != new.metadata.uid:
                # deleted and made again while nobody watched: two objects that share a name
                self._put(key, None)
                old = None
            elif old.metadata.resource_version == new.metadata.resource_version and not self._restored:
                return  # a relist shows most objects as they are here already (restored storage gives versions twice)
        self._sharing.share(new, old)
        self._store[key] = new
        self._report_change(Change("added" if old is None else "updated", key, old, new))

    def _report_change(self, change: Change[T]) -> None:
        for callback in self._subscribers:
            self._tell(callback, change)

    def _tell(self, callback: Callable[[Change[T]], None], change: Change[T]) -> None:
        try:
            callback(change)
        except Exception:
            # one subscriber's bug must not stop the others from hearing of this object, nor of the next ones
            logger.exception("%s %s: a subscriber failed on %s", self.resource.plural, change.key, change.kind)

    def _report(self, bad: Unreadable) -> None:
        logger.error("%s %s is ignored: %s", self.resource.plural, bad.key or "(no name)", bad.why)
        if self._on_unreadable is not None:
            self._on_unreadable(bad)
