"""How far ovn-northd is behind: asked now and then by a sequence number (NB_Global nb_cfg, sb_cfg)."""

from __future__ import annotations

import asyncio
import logging
import time

from foundation.daemon import metrics
from foundation.ovsdb import Change, LockLost, OvsdbError, OvsdbSession, Row
from foundation.ovsdb import operations as op

_log = logging.getLogger(__name__)

ASK_SECONDS = 30.0
"""Each question costs a write in the southbound database, and one of each chassis."""
LAG = metrics.gauge(
    "controller_northd_lag_seconds", "How long northd took for the last sequence number, or has been taking for it"
)


class NorthdLag:
    """Registers its columns, so make it before the session starts. Others may ask as well: any answer counts."""

    def __init__(self, session: OvsdbSession) -> None:
        self._session = session
        self._open: tuple[int, float] | None = None
        session.monitor({"NB_Global": ["nb_cfg", "sb_cfg"]})
        session.subscribe("NB_Global", self._changed)

    def _changed(self, change: Change) -> None:
        row: Row | None = change.new
        if row is None:
            return
        if self._open is None and row["sb_cfg"] < row["nb_cfg"]:
            self._open = (row["nb_cfg"], time.monotonic())
        if self._open is not None and row["sb_cfg"] >= self._open[0]:
            LAG.set(time.monotonic() - self._open[1])
            self._open = None

    def refresh(self) -> None:
        """Tells how long a question has been open."""
        if self._open is not None:
            LAG.set(time.monotonic() - self._open[1])

    async def ask(self) -> None:
        """Asks one question; its answer comes by itself."""
        await self._session.transact(op.mutate("NB_Global", (), [("nb_cfg", "+=", 1)]))

    async def run(self) -> None:
        """Asks for ever. Raises LockLost when another replica writes by now."""
        while True:
            await asyncio.sleep(ASK_SECONDS)
            if self._open is not None:
                continue
            try:
                await self.ask()
            except LockLost:
                raise
            except OvsdbError as error:
                _log.debug("northd is not asked this time: %s", error)
