"""The one writer of the northbound database: many owners' changes in one transaction, one transaction at a time."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cni.controller.rows import Owner, RowId
from cni.controller.writer import plan
from cni.controller.writer.actual import Actual
from cni.controller.writer.desired import Desired, Pending
from foundation.ovsdb import Change, LockLost, OvsdbError, OvsdbSession, TransactionFailed

_log = logging.getLogger(__name__)

BATCH = 400
"""Owners in one transaction: enough to share the server's and northd's work, few enough to stay under 50 ms."""
RETRY_SECONDS = 1.0


@dataclass
class Statistics:
    """What the committer has done; `rows` by owner kind."""

    transactions: int = 0
    operations: int = 0
    owners: int = 0
    refused: int = 0
    rows: dict[str, int] = field(default_factory=dict)


class Committer:
    """Takes states through `desired`, told of by `wake`; looks at the database only through the session's replica.

    A transaction whose fate is unknown (connection lost) needs no special care: its owners stay pending, and what
    it did is in the replica when the session is back. `on_committed(owners)` and `on_refused(owner, error)` tell the
    outcome, the latter once until the owner's rows are committed.
    """

    def __init__(
        self,
        session: OvsdbSession,
        *,
        on_committed: Callable[[list[Owner]], None] = lambda owners: None,
        on_refused: Callable[[Owner, TransactionFailed], None] = lambda owner, error: None,
    ) -> None:
        self.desired = Desired()
        self.actual = Actual(session)
        self.statistics = Statistics()
        self._session = session
        self.on_committed = on_committed
        self._on_refused = on_refused
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._blocked: dict[RowId, set[Owner]] = {}
        self._parked: dict[Owner, Pending] = {}
        self._told: set[Owner] = set()
        self.actual.subscribe(self._drifted)

    def wake(self) -> None:
        """Something was put into `desired`."""
        self._idle.clear()
        self._wake.set()

    async def idle(self) -> None:
        """Returns when everything wanted is committed, or refused and waiting for its next try."""
        await self._idle.wait()

    def compare_all(self) -> None:
        """Compares everything wanted with everything there; what differs is written next."""
        started = time.perf_counter()
        plan.differences(self.desired, self.actual)
        _log.debug("compared %d rows in %.3f s", len(self.desired.rows()), time.perf_counter() - started)
        self.wake()

    def _drifted(self, row_id: RowId, change: Change) -> None:
        before = len(self.desired.pending)
        plan.drifted(self.desired, self.actual, row_id, change)
        if change.kind == "insert":
            self._unblock(row_id)
        if len(self.desired.pending) > before:
            self.wake()

    def _unblock(self, row_id: RowId) -> None:
        for owner in self._blocked.pop(row_id, ()):
            parked = self._parked.pop(owner, None)
            if parked is not None:
                self.desired.pending_of(owner).merge(parked)
                self.wake()

    async def run(self) -> None:
        """Commits for ever; ends by cancellation. Raises LockLost when another replica writes by now."""
        while True:
            if not self.desired.pending:
                self._idle.set()
                await self._wake.wait()
            self._wake.clear()
            pending = self.desired.pending
            if len(pending) <= BATCH:
                work, self.desired.pending = pending, {}
            else:
                work = {owner: pending.pop(owner) for owner in list(pending)[:BATCH]}
            if work:
                await self._commit(work)

    async def _commit(self, work: dict[Owner, Pending]) -> None:
        # A plan holds for the replica it was made from, so never for another connection.
        await self._session.connected.wait()
        epoch = self._session.epoch
        made = plan.make(self.desired, self.actual, work)
        if made.operations:
            try:
                await self._session.transact(*made.operations, deadline=30.0, epoch=epoch)
            except LockLost:
                self._keep(work)
                raise
            except TransactionFailed as error:
                await self._refused(work, error)
                return
            except OvsdbError as error:
                _log.warning("northbound write of %d owners is tried again: %s", len(work), error)
                self._keep(work)
                if self._session.connected.is_set():
                    await asyncio.sleep(RETRY_SECONDS * random.uniform(0.05, 0.2))
                return
            except BaseException:
                self._keep(work)
                raise
            self.statistics.transactions += 1
            self.statistics.operations += len(made.operations)
            self.statistics.owners += len(work)
            for kind, count in made.rows_written.items():
                self.statistics.rows[kind] = self.statistics.rows.get(kind, 0) + count
        self._told.difference_update(work)
        waiting: set[Owner] = set()
        for row_id, owners in made.blocked.items():
            self._blocked.setdefault(row_id, set()).update(owners)
            waiting |= owners
        for owner in waiting:
            self._park(owner, work[owner])
        self.on_committed([owner for owner in work if owner not in waiting])

    def _park(self, owner: Owner, pending: Pending) -> None:
        parked = self._parked.get(owner)
        if parked is None:
            self._parked[owner] = pending
        else:
            parked.merge(pending)

    def _keep(self, work: dict[Owner, Pending]) -> None:
        for owner, pending in work.items():
            pending.merge(self.desired.pending_of(owner))
            self.desired.pending[owner] = pending
        self.wake()

    async def _refused(self, work: dict[Owner, Pending], error: TransactionFailed) -> None:
        """One owner's fault must not stop the others: halve until it stands alone."""
        if len(work) == 1:
            ((owner, pending),) = work.items()
            self.statistics.refused += 1
            if owner not in self._told:  # it is tried again every second
                self._told.add(owner)
                _log.error("the northbound database refuses %s %s: %s", owner.kind, owner.key, error)
                self._on_refused(owner, error)
            asyncio.get_running_loop().call_later(
                RETRY_SECONDS * random.uniform(0.5, 1.0), self._keep, {owner: pending}
            )
            return
        owners = list(work)
        middle = len(owners) // 2
        for half in (owners[:middle], owners[middle:]):
            await self._commit({owner: work[owner] for owner in half})
