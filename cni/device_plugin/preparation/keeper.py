"""Keeping all declared physical functions in their state: on start, then on a slow beat."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from cni.device_plugin.config import PhysicalFunction
from cni.device_plugin.errors import PreparationError
from cni.device_plugin.preparation.preparer import Preparer

log = logging.getLogger(__name__)


class Keeper:
    """One health check a physical function. One that cannot be prepared keeps nobody else from it."""

    def __init__(
        self,
        preparer: Preparer,
        wanted: Sequence[PhysicalFunction],
        *,
        set_health: Callable[[str, bool, str], None],
        beat_seconds: float,
    ) -> None:
        self._preparer = preparer
        self._wanted = wanted
        self._set_health = set_health
        self._beat_seconds = beat_seconds

    async def once(self) -> None:
        """Prepare each in turn: cards of one machine share driver locks, so that nothing is won side by side."""
        for wanted in self._wanted:
            try:
                steps = await self._preparer.prepare(wanted)
            except PreparationError as error:
                log.warning("%s", error, extra={"pf": wanted.pf})
                self._set_health(f"pf:{wanted.pf}", False, str(error))
                continue
            if steps:
                log.info("prepared", extra={"pf": wanted.pf, "steps": steps})
            self._set_health(f"pf:{wanted.pf}", True, "")

    async def run(self) -> None:
        """Until cancelled: what was refused because of its users is done when they have gone."""
        while True:
            await asyncio.sleep(self._beat_seconds)
            await self.once()
