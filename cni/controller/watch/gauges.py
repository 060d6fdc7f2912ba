"""What the controller tells Prometheus of itself."""

from __future__ import annotations

import time

from cni.controller.core import Core
from cni.controller.rows import Owner
from foundation.daemon import metrics

QUEUE = metrics.gauge("controller_queue_depth", "Objects that wait to be translated")
PENDING = metrics.gauge("controller_pending_owners", "Objects whose rows wait to be committed")
OBJECTS = metrics.gauge("controller_objects", "Objects known", ("kind",))
PROBLEMS = metrics.gauge("controller_problems", "Objects that cannot be served as they are", ("kind", "reason"))
ROWS = metrics.gauge("controller_rows_written", "Rows written since this replica leads", ("kind",))
TRANSACTIONS = metrics.gauge("controller_transactions", "Northbound transactions since this replica leads")
BATCH = metrics.histogram(
    "controller_batch_owners", "Objects in one northbound transaction", buckets=(1, 2, 5, 10, 20, 50, 100, 200, 400)
)
SEEN_TO_COMMITTED = metrics.histogram(
    "controller_seen_to_committed_seconds", "From an object's change seen to its rows committed", ("kind",)
)


class Gauges:
    """Follows one core. `seen` and `committed` are called as things happen, `refresh` before each scrape or so."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._seen: dict[Owner, float] = {}
        self._problems: set[tuple[str, str]] = set()

    def seen(self, owner: Owner) -> None:
        """A change of an object has arrived."""
        self._seen.setdefault(owner, time.perf_counter())

    def committed(self, owners: list[Owner]) -> None:
        """One transaction's objects are in the database."""
        BATCH.observe(len(owners))
        now = time.perf_counter()
        for owner in owners:
            since = self._seen.pop(owner, None)
            if since is not None:
                SEEN_TO_COMMITTED.labels(owner.kind).observe(now - since)

    def refresh(self) -> None:
        """Sets what is counted rather than timed."""
        core = self._core
        QUEUE.set(len(core.engine))
        PENDING.set(len(core.committer.desired.pending))
        for kind, count in core.world.snapshot().items():
            OBJECTS.labels(kind).set(count)
        for kind, count in core.committer.statistics.rows.items():
            ROWS.labels(kind).set(count)
        TRANSACTIONS.set(core.committer.statistics.transactions)
        found: dict[tuple[str, str], int] = {}
        for owner, problem in core.engine.problems.items():
            key = (owner.kind, problem.reason)
            found[key] = found.get(key, 0) + 1
        for key in self._problems | set(found):
            PROBLEMS.labels(*key).set(found.get(key, 0))
        self._problems |= set(found)
        if not core.engine.problems and not len(core.engine) and not core.committer.desired.pending:
            self._seen.clear()  # changes that changed no row
