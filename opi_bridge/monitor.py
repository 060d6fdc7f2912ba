"""Noticing what happens in the card's process, so that nobody else has to ask.

SPDK sends nothing by itself. Two small questions on a short beat show paths that were lost or came back and disks that
came, went or grew; on a long beat the emulated side is compared as well.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

from foundation.spdk.errors import SpdkClientError, SpdkError
from opi_bridge.errors import OpiError
from opi_bridge.ledger import PREFIX
from opi_bridge.session import Session

log: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class Situation:
    """What a watcher is told: whether the process answers, which connection that is, and a count of changes seen."""

    connected: bool
    instance: str
    changes: int
    reason: str


class Monitor:
    def __init__(self, session: Session, *, instance: str, short: float = 2.0, long: float = 10.0) -> None:
        self._session = session
        self._instance = instance
        self._short = short
        self._long = long
        self._changes = 0
        self._news = asyncio.Condition()
        self._next_notification: int | None = 0
        self._last: dict[str, bytes] = {}
        self._wake = asyncio.Event()
        session.subscribe(self._turned)

    @property
    def situation(self) -> Situation:
        return Situation(
            connected=self._session.ready,
            instance=f"{self._instance}.{self._session.generation}",
            changes=self._changes,
            reason=self._session.why,
        )

    async def watch(self) -> AsyncIterator[tuple[Situation, bool]]:
        """The situation now, then whenever it differs; the flag says that the state was seen to change."""
        seen = self.situation
        yield seen, False
        while True:
            async with self._news:
                while self.situation == seen:
                    await self._news.wait()
            now = self.situation
            yield now, now.changes != seen.changes
            seen = now

    def _turned(self, _ready: bool) -> None:
        self._last.clear()
        self._next_notification = 0
        self._wake.set()

    async def run(self) -> None:
        """Look on both beats until cancelled."""
        loop = asyncio.get_running_loop()
        long_look = 0.0
        while True:
            self._wake.clear()
            if self._session.ready:
                full = loop.time() >= long_look
                try:
                    if await self._look(full=full):
                        self._changes += 1
                    if full:
                        long_look = loop.time() + self._long
                except (SpdkClientError, OpiError) as error:
                    log.debug("could not look at the card's process: %s", error)
            async with self._news:
                self._news.notify_all()
            try:
                async with asyncio.timeout(self._short if self._session.ready else None):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _look(self, *, full: bool) -> bool:
        changed = await self._notified()
        for method in ("bdev_nvme_get_controllers", "nvmf_get_subsystems")[: 2 if full else 1]:
            answer = await self._session.text(method)
            if self._last.get(method) not in (None, answer):
                changed = True
            self._last[method] = answer
        return changed

    async def _notified(self) -> bool:
        """Whether disks came, went or changed since the last look; the first look after a start only counts."""
        if self._next_notification is None:
            return False
        first = self._next_notification == 0
        try:
            news: list[dict[str, Any]] = await self._session.call(
                "notify_get_notifications", {"id": self._next_notification}
            )
        except SpdkError as error:
            if error.method_not_found:
                self._next_notification = None
                return False
            raise
        if news:
            self._next_notification = int(news[-1]["id"]) + 1
        return not first and any(not str(one.get("ctx", "")).startswith(PREFIX) for one in news)
