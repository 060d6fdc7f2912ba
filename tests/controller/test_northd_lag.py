"""How far northd is behind, asked of a real one that is stopped for a while."""

from __future__ import annotations

import asyncio
import os
import signal

from cni.controller.watch.northd import LAG, NorthdLag
from foundation.ovsdb import OvsdbSession
from tests.controller.tracer import Tracer


def lag() -> float:
    (family,) = LAG.collect()
    return float(family.samples[0].value)


async def test_a_northd_that_hangs_shows() -> None:
    async with Tracer() as tracer:
        session = OvsdbSession(tracer.central.nb, "OVN_Northbound")
        northd = NorthdLag(session)
        await session.start()
        LAG.set(-1)

        (row,) = session.rows("NB_Global").values()
        number = row["nb_cfg"]

        async def answered(wanted: int) -> None:
            await session.until("NB_Global", lambda row: bool(row["sb_cfg"] >= wanted), deadline=40)

        await northd.ask()
        await answered(number + 1)
        assert lag() >= 0
        pid = tracer.northd
        os.kill(pid, signal.SIGSTOP)
        try:
            await northd.ask()
            await session.until("NB_Global", lambda row: bool(row["nb_cfg"] == number + 2), deadline=40)
            await asyncio.sleep(0.3)
            northd.refresh()
            waiting = lag()
            assert waiting >= 0.2
        finally:
            os.kill(pid, signal.SIGCONT)
        await answered(number + 2)
        assert lag() >= waiting
        await session.stop()
