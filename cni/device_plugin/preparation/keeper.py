"""Keeping all declared physical functions in their state: on start, then on a slow beat."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from cni.device_plugin.config import PhysicalFunction
from cni.device_plugin.errors import PreparationError
from cni.device_plugin.preparation.preparer import Preparer
from foundation.daemon.backoff import Backoff, Pauses
from foundation.pci.errors import BadAddress, NoSuchDevice

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
        self._pauses = Pauses(Backoff(min(1.0, beat_seconds), beat_seconds))
        self._complaints: dict[str, str] = {}

    async def once(self) -> bool:
        """Prepare each in turn: cards of one machine share driver locks, so that nothing is won side by side.

        Whether all are as declared.
        """
        for wanted in self._wanted:
            try:
                self._refuse_if_declared_twice(wanted)
                steps = await self._preparer.prepare(wanted)
            except PreparationError as error:
                if self._complaints.get(wanted.pf) != str(error):
                    log.warning("%s", error, extra={"pf": wanted.pf})
                self._complaints[wanted.pf] = str(error)
                self._set_health(f"pf:{wanted.pf}", False, str(error))
                continue
            self._complaints.pop(wanted.pf, None)
            if steps:
                log.info("prepared", extra={"pf": wanted.pf, "steps": steps})
            self._set_health(f"pf:{wanted.pf}", True, "")
        return not self._complaints

    async def run(self) -> None:
        """Until cancelled: what is busy for a moment is tried again soon, what has users when they have gone."""
        while True:
            await asyncio.sleep(self._pauses.next() if self._complaints else self._beat_seconds)
            if await self.once():
                self._pauses.reset()

    def _refuse_if_declared_twice(self, wanted: PhysicalFunction) -> None:
        """Two declarations of one function would undo each other's at every beat, VFs included."""
        for other in self._wanted:
            if other is not wanted and self._same(other.pf, wanted.pf):
                raise PreparationError(
                    f"physical function {wanted.pf} is declared more than once, also as {other.pf}; it stays as it is"
                )

    def _same(self, one: str, other: str) -> bool:
        try:
            return self._preparer.address(one) == self._preparer.address(other)
        except (BadAddress, NoSuchDevice):
            return one == other
