"""Watches the cluster while somebody looks at the page, and hands each viewer what has changed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any, Final

import msgspec

from cni.status_page.picture import NodeView, draw
from foundation.kube.client import KubeClient
from foundation.kube.reflector import Reflector
from foundation.kube.resources import NODES, PERSISTENT_VOLUMES, PODS, VOLUME_ATTACHMENTS, Resource

_PAUSE_SECONDS: Final = 0.5
_LINGER_SECONDS: Final = 30.0
_KINDS: Final[tuple[Resource[Any], ...]] = (NODES, PODS, PERSISTENT_VOLUMES, VOLUME_ATTACHMENTS)


class Update(msgspec.Struct, frozen=True):
    """What differs from what a viewer has: views that came or changed, names that went."""

    nodes: tuple[NodeView, ...]
    gone: tuple[str, ...] = ()


class Following:
    """Costs nothing while nobody looks: the watches begin with the first viewer and end a while after the last."""

    def __init__(
        self, client: KubeClient, *, pause_seconds: float = _PAUSE_SECONDS, linger_seconds: float = _LINGER_SECONDS
    ) -> None:
        self._client = client
        self._pause = pause_seconds
        self._linger = linger_seconds
        self._viewers = 0
        self._task: asyncio.Task[None] | None = None
        self._leaving: asyncio.TimerHandle | None = None
        self._picture: dict[str, NodeView] | None = None
        self._drawn = asyncio.Event()

    @property
    def watching(self) -> bool:
        """Whether the cluster is being watched."""
        return self._task is not None

    async def updates(self) -> AsyncGenerator[Update, None]:
        """Everything first, as soon as it is known; then each change."""
        self._arrive()
        try:
            shown: dict[str, NodeView] | None = None
            while True:
                drawn = self._drawn
                if self._picture is not None:
                    update = _difference(shown or {}, self._picture)
                    if shown is None or update.nodes or update.gone:
                        yield update
                    shown = self._picture
                await drawn.wait()
        finally:
            self._depart()

    async def stop(self) -> None:
        """Ends the watches."""
        if self._leaving is not None:
            self._leaving.cancel()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def _arrive(self) -> None:
        self._viewers += 1
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None
        if self._task is None:
            self._task = asyncio.create_task(self._follow(), name="status page")

    def _depart(self) -> None:
        self._viewers -= 1
        if not self._viewers:
            self._leaving = asyncio.get_running_loop().call_later(self._linger, self._rest)

    def _rest(self) -> None:
        self._leaving = None
        task, self._task, self._picture = self._task, None, None
        if task is not None:
            task.cancel()

    async def _follow(self) -> None:
        reflectors = {kind.plural: Reflector(self._client, kind) for kind in _KINDS}
        changed = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for reflector in reflectors.values():
                group.create_task(reflector.run())
            for reflector in reflectors.values():
                await reflector.synced()
                reflector.subscribe(lambda _: changed.set())
            while True:
                changed.clear()
                self._picture = draw(
                    nodes=reflectors["nodes"].store.values(),
                    pods=reflectors["pods"].store.values(),
                    volumes=reflectors["persistentvolumes"].store.values(),
                    attachments=reflectors["volumeattachments"].store.values(),
                )
                drawn, self._drawn = self._drawn, asyncio.Event()
                drawn.set()
                await asyncio.sleep(self._pause)
                await changed.wait()


def _difference(shown: dict[str, NodeView], now: dict[str, NodeView]) -> Update:
    return Update(
        nodes=tuple(view for name, view in now.items() if shown.get(name) != view),
        gone=tuple(name for name in shown if name not in now),
    )
