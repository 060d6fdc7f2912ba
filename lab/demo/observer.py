"""What the demo sees of the cluster: objects by watch, with waits that end by event or by deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from foundation.kube import resources
from foundation.kube.client import KubeClient
from foundation.kube.models.meta import KubernetesObject
from foundation.kube.reflector import Reflector
from foundation.kube.resources import Resource

T = TypeVar("T", bound=KubernetesObject)


class NotSeen(RuntimeError):
    """Something that should have come did not, in time."""


class Observer:
    """Reflectors of the kinds the demo looks at, over one connection."""

    _WATCHED: tuple[Resource[Any], ...] = (
        resources.PODS,
        resources.NODES,
        resources.PERSISTENT_VOLUME_CLAIMS,
        resources.PERSISTENT_VOLUMES,
        resources.VOLUME_ATTACHMENTS,
        resources.CSI_NODES,
    )

    def __init__(self, client: KubeClient) -> None:
        self.client = client
        self._reflectors: dict[str, Reflector[Any]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Condition()

    async def start(self) -> None:
        for resource in self._WATCHED:
            reflector: Reflector[Any] = Reflector(self.client, resource)
            reflector.subscribe(lambda _change: self._wake())
            self._reflectors[resource.plural] = reflector
            self._tasks.append(asyncio.create_task(reflector.run()))
        for reflector in self._reflectors.values():
            await reflector.synced()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def store(self, resource: Resource[T]) -> dict[str, T]:
        return dict(self._reflectors[resource.plural].store)

    async def until(
        self, resource: Resource[T], key: str, holds: Callable[[T | None], bool], *, seconds: float, what: str
    ) -> T | None:
        """Wait until ``holds`` is true of the object (None: not there). Raises NotSeen after ``seconds``."""
        store = self._reflectors[resource.plural].store
        try:
            await self._wait(lambda: holds(store.get(key)), seconds)
        except TimeoutError:
            raise NotSeen(f"{what}: not within {seconds:g} s; last seen: {_brief(store.get(key))}") from None
        return store.get(key)

    async def until_true(self, holds: Callable[[], bool], *, seconds: float, what: str) -> None:
        """Wait until ``holds`` is true of the stores. Raises NotSeen after ``seconds``."""
        try:
            await self._wait(holds, seconds)
        except TimeoutError:
            raise NotSeen(f"{what}: not within {seconds:g} s") from None

    async def _wait(self, holds: Callable[[], bool], seconds: float) -> None:
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(holds)

    def _wake(self) -> None:
        self._tasks.append(asyncio.create_task(self._notify()))
        self._tasks = [task for task in self._tasks if not task.done()]

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def _brief(found: object) -> str:
    if found is None:
        return "no such object"
    status = getattr(found, "status", None)
    message = getattr(status, "message", "")
    phase = getattr(status, "phase", "")
    return " ".join(part for part in (phase, message) if part) or "an object without a status"
