"""A lasting session with an OVSDB database: reconnects, keeps a replica current, runs transactions."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec

from foundation.ovsdb import cluster, schema
from foundation.ovsdb import remotes as remote_names
from foundation.ovsdb.cluster import ServedDatabases
from foundation.ovsdb.connection import Connection, connect
from foundation.ovsdb.errors import (
    ConnectionLost,
    NotLeader,
    OvsdbError,
    RequestTimedOut,
    SchemaMismatch,
    Unavailable,
    WaitTimedOut,
    transaction_error,
)
from foundation.ovsdb.locking import Lock
from foundation.ovsdb.operations import Operation
from foundation.ovsdb.remotes import OvsdbTls, Remote
from foundation.ovsdb.replica import Change, ChangeCallback, Index, Key, Replica, Row
from foundation.ovsdb.values import Uuid

_log = logging.getLogger(__name__)

_NO_TRANSACTION = "00000000-0000-0000-0000-000000000000"
_REPLICA, _SERVER = "replica", "server"


class OperationResult(msgspec.Struct, gc=False):
    """What one operation did: the uuid inserted, the number of rows touched, or the rows selected (wire form)."""

    uuid: Uuid | None = None
    count: int = 0
    rows: list[dict[str, Any]] = []


class _WireResult(msgspec.Struct, gc=False):
    uuid: tuple[str, str] | None = None
    count: int = 0
    rows: list[dict[str, Any]] = []
    error: str | None = None
    details: str = ""


_RESULTS = msgspec.json.Decoder(list[_WireResult | None])
_ANY = msgspec.json.Decoder()


class OvsdbSession:
    """One database on one of several servers.

    Declare tables with `monitor`, then `start`. `transact` pipelines: calls made together share the wire. Subscribers
    and `rows` are current when `transact` returns, because the server sends a change before the answer that made it.

    `remotes`: comma-separated (`foundation.ovsdb.remotes`). `leader_only`: in a cluster stay with the leader.
    `lock`: a lock of the server that must be held to write; it is taken from an earlier holder (`locking.Lock`).
    `probe_interval`: seconds of silence before an echo is sent, and again before the peer counts as dead.
    """

    def __init__(
        self,
        remotes: str,
        database: str,
        *,
        tls: OvsdbTls | None = None,
        leader_only: bool = False,
        lock: str = "",
        probe_interval: float = 5.0,
        connect_deadline: float = 5.0,
        backoff_maximum: float = 1.0,
    ) -> None:
        self._remotes = remote_names.parse(remotes)
        self._database = database
        self._tls = tls
        self._leader_only = leader_only
        self._probe_interval = probe_interval
        self._connect_deadline = connect_deadline
        self._backoff_maximum = backoff_maximum
        self._replica = Replica()
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._last_transaction = _NO_TRANSACTION
        self._held: list[tuple[str, msgspec.Raw]] | None = None
        self._servers = ServedDatabases()
        self._lock = Lock(lock) if lock else None
        self._on_connect: list[Callable[[], None]] = []
        self._fatal: SchemaMismatch | None = None
        self._settled = asyncio.Event()
        self.connected = asyncio.Event()
        self.epoch = 0
        self.last_error = "not started"

    # Reading

    def monitor(self, tables: Mapping[str, Collection[str]]) -> None:
        """Declares tables and columns to hold a copy of; before `start`, as often as one likes."""
        if self._task is not None:
            raise RuntimeError("monitor() must be called before start()")
        self._replica.register(tables)

    def rows(self, table: str) -> Mapping[Uuid, Row]:
        """A live view of a monitored table."""
        return self._replica.rows(table)

    def index(self, table: str, key: Key) -> Index:
        """Rows of a monitored table by a key computed from each."""
        return self._replica.index(table, key)

    def subscribe(self, table: str, callback: ChangeCallback) -> Callable[[], None]:
        """Calls `callback` in the event loop for each change of a row, also for those missed while disconnected.

        Returns a function that ends the subscription.
        """
        return self._replica.subscribe(table, callback)

    def on_connect(self, callback: Callable[[], None]) -> None:
        """Calls back each time a connection is made and the replica is current again."""
        self._on_connect.append(callback)

    async def until(self, table: str, predicate: Callable[[Row], bool], *, deadline: float) -> Row:
        """The first row that fits, now or within `deadline` seconds. Raises WaitTimedOut."""
        for row in self.rows(table).values():
            if predicate(row):
                return row
        found: asyncio.Future[Row] = asyncio.get_running_loop().create_future()

        def look(change: Change) -> None:
            if change.new is not None and not found.done() and predicate(change.new):
                found.set_result(change.new)

        unsubscribe = self.subscribe(table, look)
        try:
            return await asyncio.wait_for(found, deadline)
        except TimeoutError:
            raise WaitTimedOut(f"no row of {self._database}.{table} became as wanted within {deadline} s") from None
        finally:
            unsubscribe()

    async def until_absent(self, table: str, predicate: Callable[[Row], bool], *, deadline: float) -> None:
        """Returns once no row fits. Raises WaitTimedOut."""
        fitting = {uuid for uuid, row in self.rows(table).items() if predicate(row)}
        if not fitting:
            return
        gone = asyncio.Event()

        def look(change: Change) -> None:
            if change.new is not None and predicate(change.new):
                fitting.add(change.uuid)
            else:
                fitting.discard(change.uuid)
            if not fitting:
                gone.set()

        unsubscribe = self.subscribe(table, look)
        try:
            await asyncio.wait_for(gone.wait(), deadline)
        except TimeoutError:
            raise WaitTimedOut(f"a row of {self._database}.{table} was still there after {deadline} s") from None
        finally:
            unsubscribe()

    # Writing

    async def transact(
        self, *operations: Operation, deadline: float = 10.0, epoch: int | None = None
    ) -> list[OperationResult]:
        """Runs the operations as one atomic transaction.

        `epoch`: only on the connection of that epoch (else Unavailable): for operations that were worked out from the
        replica as it was then.

        Raises a TransactionFailed (nothing took effect), Unavailable (not sent), or ConnectionLost / RequestTimedOut
        (sent, outcome unknown: read before repeating, or make the transaction safe to repeat), LockLost.
        """
        sent = False
        try:
            async with asyncio.timeout(deadline):
                connection = await self._current()
                if self._lock is not None:
                    await self._lock.wait()
                    operations = (self._lock.assertion(), *operations)
                if epoch is not None and epoch != self.epoch:
                    raise Unavailable(f"the connection to {self._database} is another one by now")
                sent = True
                raw = await connection.call("transact", [self._database, *operations])
        except TimeoutError:
            if sent:
                raise RequestTimedOut(f"no answer to a transaction on {self._database} within {deadline} s") from None
            raise Unavailable(f"no connection to {self._database} within {deadline} s: {self.last_error}") from None
        results = []
        for index, result in enumerate(_RESULTS.decode(raw)):
            if result is not None and result.error is not None:
                operation = operations[index] if index < len(operations) else None
                shift = 1 if self._lock is not None else 0
                error = transaction_error(result.error, result.details, index=index - shift, operation=operation)
                if isinstance(error, NotLeader) and self._leader_only:
                    connection.close("it is no longer the leader")
                raise error
            if result is not None and not (index == 0 and self._lock is not None):
                uuid = Uuid(result.uuid[1]) if result.uuid else None
                results.append(OperationResult(uuid=uuid, count=result.count, rows=result.rows))
        return results

    async def _current(self) -> Connection:
        while True:
            if self._connection is not None and not self._connection.closed.done():
                return self._connection
            if self._task is None or self._task.done():
                raise Unavailable(f"the session with {self._database} is not running")
            if self._connection is not None:
                await asyncio.sleep(0)  # closed this moment: `_watch` is about to find out
            else:
                await self.connected.wait()

    # Life

    async def start(self, *, deadline: float = 30.0) -> None:
        """Returns when connected and the replica is filled.

        Raises Unavailable with the last reason after `deadline` seconds, or SchemaMismatch at once.
        """
        if self._task is not None:
            raise RuntimeError("the session is already started")
        self._task = asyncio.create_task(self._run(), name=f"ovsdb {self._database}")
        try:
            await asyncio.wait_for(self._settled.wait(), deadline)
        except TimeoutError:
            await self.stop()
            raise Unavailable(f"no connection to {self._database} within {deadline} s: {self.last_error}") from None
        if self._fatal is not None:
            await self.stop()
            raise self._fatal

    async def stop(self) -> None:
        """Ends the session; transactions in flight fail with ConnectionLost."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def __aenter__(self) -> OvsdbSession:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _run(self) -> None:
        failures = 0
        while True:
            # A cluster whose leader is unknown is tried round by round; the pause comes after a whole round.
            for remote in random.sample(self._remotes, len(self._remotes)):
                lasted = await self._attempt(remote)
                if lasted:
                    failures = 0
                    break
            else:
                failures += 1
                if failures % 100 == 6:  # a server that is just starting is no news
                    _log.warning("OVSDB %s: still not connected: %s", self._database, self.last_error)
            pause = min(self._backoff_maximum, 0.02 * 2 ** min(failures, 10))
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))

    async def _attempt(self, remote: Remote) -> bool:
        """One connection from its first byte to its last; whether it ever served."""
        try:
            connection = await connect(remote, self._notified, tls=self._tls, deadline=self._connect_deadline)
        except Unavailable as error:
            self._failed(str(error))
            return False
        served = False
        try:
            async with asyncio.timeout(60.0):
                await self._synchronise(connection, remote)
            served = True
            self._connection = connection
            self.epoch += 1
            self.connected.set()
            self._settled.set()
            for callback in tuple(self._on_connect):
                callback()
            await self._watch(connection)
        except SchemaMismatch as error:
            self._failed(str(error))
            if not self._settled.is_set():
                self._fatal = error
                self._settled.set()
        except TimeoutError:
            self._failed(f"{remote} accepted the connection but did not send the database in time")
        except OvsdbError as error:
            self._failed(f"{remote}: {error}")
        finally:
            self._connection = None
            self.connected.clear()
            self._servers.clear()
            if self._lock is not None:
                self._lock.lost_connection()
            connection.close("the session moves on")
        return served

    def _failed(self, reason: str) -> None:
        if self._connection is not None:
            _log.warning("OVSDB %s: connection lost: %s", self._database, reason)
        self.last_error = reason

    async def _synchronise(self, connection: Connection, remote: Remote) -> None:
        self._held = []
        await connection.call("set_db_change_aware", [True])
        if self._leader_only:
            raw = await connection.call("monitor_cond", ["_Server", _SERVER, cluster.MONITOR])
            self._servers.apply(_ANY.decode(raw))
            if not self._servers.serves(self._database):
                raise Unavailable(f"it does not serve database {self._database} (yet)")
            if not self._servers.leads(self._database):
                raise Unavailable(f"it does not lead {self._database}")
        document = _ANY.decode(await connection.call("get_schema", [self._database]))
        self._replica.bind(schema.parse(document))
        tables = self._replica.columns()
        if tables:
            request = {name: [{"columns": list(columns)}] for name, columns in tables.items()}
            raw = await connection.call(
                "monitor_cond_since", [self._database, _REPLICA, request, self._last_transaction]
            )
            found, self._last_transaction, updates = _ANY.decode(raw)
            if found:
                self._replica.apply(updates)
            else:
                self._replica.replace(updates)
        if self._lock is not None:
            await self._lock.acquire(connection)
        held, self._held = self._held, None
        for method, params in held:
            self._notified(method, params)
        if connection.closed.done():
            raise ConnectionLost(connection.closed.result())

    def _notified(self, method: str, params: msgspec.Raw) -> None:
        # What follows the monitor's answer on the wire may be read before the answer's awaiter has run.
        if self._held is not None:
            self._held.append((method, params))
            return
        if method in ("locked", "stolen"):
            if self._lock is not None:
                self._lock.notified(method, *_ANY.decode(params))
        elif method == "update3":
            _, self._last_transaction, updates = _ANY.decode(params)
            self._replica.apply(updates)
        elif method == "update2":
            name, updates = _ANY.decode(params)
            if name == _SERVER:
                self._servers.apply(updates)
                if self._connection is not None and not self._servers.leads(self._database):
                    self._connection.close(f"it no longer leads {self._database}")

    async def _watch(self, connection: Connection) -> None:
        """Returns (by an exception) when the peer is gone or silent for too long."""
        loop = asyncio.get_running_loop()
        probed_at = 0.0
        while not connection.closed.done():
            now = loop.time()
            quiet = now - connection.last_heard
            if quiet < self._probe_interval:
                remaining = self._probe_interval - quiet
            elif probed_at > connection.last_heard:
                connection.close(f"silent for {quiet:.1f} s, and no answer to a probe")
                break
            else:
                probed_at = now
                connection.send("echo", [])
                remaining = self._probe_interval
            await asyncio.wait((connection.closed,), timeout=remaining)
        raise ConnectionLost(connection.closed.result())
