"""Kubernetes Events about objects, for those who run `kubectl describe`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import msgspec

from foundation.kube.client import KubeClient
from foundation.kube.errors import KubeError, NotFound
from foundation.kube.models.core import Event, EventSource
from foundation.kube.models.meta import KubernetesObject, ObjectMeta, ObjectReference
from foundation.kube.resources import EVENTS, resource_of

logger = logging.getLogger(__name__)

QUEUE = 1000
"""Events that wait to be sent; more are counted and dropped."""
REMEMBERED = 4096
"""Distinct events whose repetitions are recognised."""
SIMILAR = 10
"""Messages of one reason about one object within `WINDOW` seconds that are sent as they are."""
WINDOW = 600.0
COMBINED = "(combined from similar events): "
LONGEST_MESSAGE = 1024
LONGEST_NAME = 230
"""Characters of an object's name in its events' names, which may have 253 in all."""


@dataclass(slots=True)
class _Known:
    name: str
    count: int
    first: str
    seen_at: float
    created: bool = False
    queued: bool = False


@dataclass(slots=True)
class _Group:
    messages: set[str]
    started: float


class EventRecorder:
    """Turns calls into Event objects in the background.

    The same event (object, type, reason, message) again raises the count of the first one instead of making another;
    repetitions that arrive before the last write was sent cost no request at all. More than `SIMILAR` different
    messages of one reason about one object are combined into one. `event()` never waits and never raises because of
    the server.
    """

    def __init__(
        self,
        client: KubeClient,
        component: str,
        *,
        instance: str = "",
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`component` is this daemon's name, `instance` its node or pod."""
        self._client = client
        self._component = component
        self._instance = instance
        self._clock = clock
        self._wall = wall
        self._known: OrderedDict[tuple[str, ...], _Known] = OrderedDict()
        self._groups: OrderedDict[tuple[str, ...], _Group] = OrderedDict()
        self._queue: asyncio.Queue[tuple[_Known, Event]] = asyncio.Queue(QUEUE)
        self._sender: asyncio.Task[None] | None = None
        self.dropped = 0

    def event(self, obj: KubernetesObject, type: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """Record that `reason` happened to `obj`. `message` says what, why and what to do; it is cut at 1024 bytes."""
        resource = resource_of(obj)
        reference = ObjectReference(
            api_version=resource.api_version,
            kind=resource.kind,
            namespace=obj.metadata.namespace,
            name=obj.metadata.name,
            uid=obj.metadata.uid,
            resource_version=obj.metadata.resource_version,
        )
        self.about(reference, type, reason, message)

    def about(self, reference: ObjectReference, type: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """The same for an object of which only a reference is at hand."""
        message = _cut(message)
        now, stamp = self._clock(), _timestamp(self._wall())
        about = (reference.kind, reference.namespace, reference.name, reference.uid, type, reason)
        combined = self._combined(about, message, now)
        key = (*about, COMBINED if combined else message)
        known = self._known.get(key)
        if known is None or now - known.seen_at > WINDOW:
            suffix = f"{time.time_ns():x}{len(self._known) & 0xFFF:03x}"
            known = self._known[key] = _Known(f"{reference.name[:LONGEST_NAME]}.{suffix}", 0, stamp, now)
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        known.count += 1
        known.seen_at = now
        if known.queued:
            return  # its next write has not been sent yet and will carry this count
        event = Event(
            metadata=ObjectMeta(name=known.name, namespace=reference.namespace or "default"),
            involved_object=reference,
            type=type,
            reason=reason,
            message=_cut(COMBINED + message) if combined else message,
            source=EventSource(component=self._component, host=self._instance),
            reporting_component=self._component,
            reporting_instance=self._instance,
            first_timestamp=known.first,
        )
        try:
            self._queue.put_nowait((known, event))
        except asyncio.QueueFull:
            self.dropped += 1
            return
        known.queued = True
        if self._sender is None or self._sender.done():
            self._sender = asyncio.get_running_loop().create_task(self._send_all(), name="events")

    async def close(self, *, deadline: float = 2.0) -> None:
        """Send what waits, for at most `deadline` seconds, then stop."""
        if self._sender is None:
            return
        try:
            async with asyncio.timeout(deadline):
                await self._queue.join()
        except TimeoutError:
            logger.warning("%d events were not sent", self._queue.qsize())
        self._sender.cancel()
        await asyncio.wait({self._sender})
        self._sender = None

    def _combined(self, about: tuple[str, ...], message: str, now: float) -> bool:
        group = self._groups.get(about)
        if group is None or now - group.started > WINDOW:
            group = self._groups[about] = _Group(set(), now)
            while len(self._groups) > REMEMBERED:
                self._groups.popitem(last=False)
        if message in group.messages:
            return False
        if len(group.messages) >= SIMILAR:
            return True
        group.messages.add(message)
        return False

    async def _send_all(self) -> None:
        while True:
            known, event = await self._queue.get()
            known.queued = False
            try:
                await self._send(known, event)
            except KubeError as error:
                self.dropped += 1
                logger.warning(
                    "event %s about %s was not recorded: %s", event.reason, event.involved_object.name, error
                )
            finally:
                self._queue.task_done()

    async def _send(self, known: _Known, event: Event) -> None:
        count, stamp = known.count, _timestamp(self._wall())
        if known.created:
            body = {"count": count, "lastTimestamp": stamp, "message": event.message}
            try:
                await self._client.merge_patch(EVENTS, known.name, event.metadata.namespace, body)
                return
            except NotFound:
                known.created = False  # the server forgets events after an hour
        await self._client.create(EVENTS, msgspec.structs.replace(event, count=count, last_timestamp=stamp))
        known.created = True


def _cut(message: str) -> str:
    raw = message.encode()
    return message if len(raw) <= LONGEST_MESSAGE else raw[: LONGEST_MESSAGE - 3].decode("utf-8", "ignore") + "..."


def _timestamp(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
