"""One watch: from its first version to its end."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import msgspec

from lab.apiserver.faults import Faults
from lab.apiserver.kinds import Kind
from lab.apiserver.selectors import Predicate
from lab.apiserver.status import bad_request, invalid, invalid_value, too_old_version
from lab.apiserver.storage import Entry, Json, Store, Stored, event_line

INITIAL_EVENTS_END = "k8s.io/initial-events-end"


class WatchCut(Exception):
    """The connection must be broken now."""


@dataclass(frozen=True, slots=True)
class WatchQuery:
    """What a watch asks for."""

    version: str
    bookmarks: bool
    initial_events: bool
    seconds: float

    @classmethod
    def of(cls, query: Mapping[str, str]) -> WatchQuery:
        """The query of a request. Raises StatusError."""
        initial = query.get("sendInitialEvents") in ("true", "1")
        match = query.get("resourceVersionMatch", "")
        if initial and match != "NotOlderThan":
            cause = invalid_value("resourceVersionMatch", match, "sendInitialEvents requires NotOlderThan")
            raise invalid("ListOptions", "meta.k8s.io", "", [cause])
        if match and not initial:
            cause = invalid_value("resourceVersionMatch", match, "resourceVersionMatch is forbidden for watch")
            raise invalid("ListOptions", "meta.k8s.io", "", [cause])
        try:
            seconds = float(query.get("timeoutSeconds") or 0) or random.uniform(1800, 3600)
        except ValueError as error:
            raise bad_request(f"timeoutSeconds: {error}") from error
        bookmarks = query.get("allowWatchBookmarks") in ("true", "1")
        return cls(query.get("resourceVersion", ""), bookmarks, initial, seconds)


class Watch:
    """Sends changes of one kind, in order, each once; ends with its time or by a fault."""

    def __init__(
        self,
        store: Store,
        kind: Kind,
        namespace: str,
        predicate: Predicate | None,
        query: WatchQuery,
        faults: Faults,
        *,
        bookmark_seconds: float,
        convert: Callable[[Stored], bytes] | None,
    ) -> None:
        self._store = store
        self._kind = kind
        self._namespace = namespace
        self._predicate = predicate
        self._query = query
        self._faults = faults
        self._bookmark_seconds = bookmark_seconds
        self._convert = convert
        self._waiting: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self._end = ""
        self._start = 0

    async def serve(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Run until the end. Raises WatchCut for a broken connection."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._query.seconds
        if not self._begin():
            await send(b"".join(self._waiting))
            return
        stop = self._store.listen(self._kind.table, self._take)
        self._faults.joined(self._fault)
        try:
            next_bookmark = loop.time() + self._bookmark_seconds
            while True:
                now = loop.time()
                if self._waiting and not self._faults.stalled.is_set():
                    chunk = b"".join(self._waiting)
                    self._waiting.clear()
                    await send(chunk)
                if self._end == "cut":
                    raise WatchCut
                if self._end or now >= end:
                    break
                if now >= next_bookmark:
                    next_bookmark = now + self._bookmark_seconds
                    await self._send_bookmark(send)
                self._wake.clear()
                if self._waiting and not self._faults.stalled.is_set():
                    continue
                try:
                    async with asyncio.timeout_at(min(end, next_bookmark)):
                        await self._wake.wait()
                except TimeoutError:
                    continue
            if not self._end:
                await self._send_bookmark(send)
        finally:
            stop()
            self._faults.left(self._fault)

    async def _send_bookmark(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Say how far this kind has come, if that is further than where the watch began."""
        version = self._store.latest(self._kind.table)
        if self._query.bookmarks and version > self._start and not self._faults.stalled.is_set():
            await send(self._bookmark(version))

    def _begin(self) -> bool:
        """Put what comes first into the queue; False if that is all there will be."""
        version = self._query.version
        number = int(version) if version.isdigit() else 0
        self._start = number or self._store.version
        if version and not version.isdigit():
            raise bad_request(f'Invalid value: "{version}": strconv.ParseUint: parsing "{version}": invalid syntax')
        if self._query.initial_events or number == 0:
            for key, stored in self._store.sorted(self._kind.table):
                if (not self._namespace or key[0] == self._namespace) and self._matches(stored):
                    self._waiting.append(event_line("ADDED", self._encoded(stored)))
            if self._query.initial_events and self._query.bookmarks:
                self._waiting.append(self._bookmark(self._store.version, {INITIAL_EVENTS_END: "true"}))
            return True
        oldest = self._store.oldest(self._kind.table)
        if number < oldest:
            error = too_old_version(number, oldest)
            self._waiting.append(event_line("ERROR", msgspec.json.encode(error.body())))
            return False
        for entry in self._store.since(self._kind.table, number):
            self._take(entry)
        return True

    def _matches(self, stored: Stored) -> bool:
        return self._predicate is None or self._predicate(stored.object)

    def _encoded(self, stored: Stored) -> bytes:
        return stored.encoded if self._convert is None else self._convert(stored)

    def _take(self, entry: Entry) -> None:
        if self._namespace and entry.key[0] != self._namespace:
            return
        line = self._line(entry)
        if line:
            self._waiting.append(line)
            self._wake.set()

    def _line(self, entry: Entry) -> bytes:
        """The change as this watch's selectors see it: an object may come into sight, and leave it."""
        if self._predicate is None:
            return entry.line() if self._convert is None else event_line(entry.type, self._convert(entry.new))
        before = entry.old is not None and self._matches(entry.old)
        if entry.type == "DELETED":
            return event_line("DELETED", self._encoded(entry.new)) if before else b""
        after = self._matches(entry.new)
        if after:
            return event_line("MODIFIED" if before else "ADDED", self._encoded(entry.new))
        if not before or entry.old is None:
            return b""
        metadata = {**entry.old.object["metadata"], "resourceVersion": str(entry.version)}
        last = {**entry.old.object, "metadata": metadata}
        return event_line("DELETED", self._encoded(Stored(entry.version, last, msgspec.json.encode(last))))

    def _bookmark(self, version: int, annotations: dict[str, str] | None = None) -> bytes:
        metadata: Json = {"resourceVersion": str(version), "creationTimestamp": None}
        if annotations:
            metadata["annotations"] = annotations
        obj: Json = {"kind": self._kind.kind, "apiVersion": self._kind.api_version, "metadata": metadata}
        if self._kind.table == ("", "pods"):
            obj |= {"spec": {"containers": None}, "status": {}}  # a typed server sends its empty struct
        return event_line("BOOKMARK", msgspec.json.encode(obj))

    def _fault(self, what: str, raw: bytes) -> None:
        if what in ("cut", "end"):
            self._end = what
        elif what == "raw":
            self._waiting.append(raw)
        self._wake.set()
