"""The session against real ovsdb-servers: transactions, monitors, loss and return."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foundation.ovsdb import (
    Change,
    ConnectionLost,
    ConstraintViolation,
    LockLost,
    OvsdbSession,
    RequestTimedOut,
    SchemaMismatch,
    Unavailable,
    WaitFailed,
    WaitTimedOut,
    fresh_name,
)
from foundation.ovsdb import operations as op
from foundation.ovsdb.errors import ReferenceViolation

if TYPE_CHECKING:
    from tests.ovsdb.conftest import Server


async def add_switch(session: OvsdbSession, name: str, ports: int = 0) -> None:
    names = [fresh_name() for _ in range(ports)]
    await session.transact(
        *[
            op.insert("Logical_Switch_Port", {"name": f"{name}-{i}", "options": {"k": "v"}}, uuid_name=port)
            for i, port in enumerate(names)
        ],
        op.insert("Logical_Switch", {"name": name, "ports": names}),
    )


async def test_a_transaction_is_in_the_replica_when_it_returns(session: OvsdbSession) -> None:
    await add_switch(session, "s", 2)
    (switch,) = session.rows("Logical_Switch").values()
    assert switch["ports"] == frozenset(session.rows("Logical_Switch_Port"))
    port = next(iter(session.rows("Logical_Switch_Port").values()))
    assert (port["options"], port["tag"], port["up"], port["addresses"]) == ({"k": "v"}, None, None, frozenset())
    results = await session.transact(
        op.mutate("Logical_Switch", switch.uuid, [("ports", "delete", {port.uuid})]),
        op.update("Logical_Switch", switch.uuid, {"other_config": {"a": "b"}}),
        op.insert("Logical_Switch", {"name": "t"}),
    )
    assert [result.count for result in results] == [1, 1, 0]
    assert results[2].uuid in session.rows("Logical_Switch")
    assert port.uuid not in session.rows("Logical_Switch_Port")
    assert session.rows("Logical_Switch")[switch.uuid]["other_config"] == {"a": "b"}


async def test_pipelined_transactions_all_arrive(session: OvsdbSession) -> None:
    await asyncio.gather(*(add_switch(session, f"s{i}", 3) for i in range(100)))
    assert len(session.rows("Logical_Switch")) == 100
    assert len(session.rows("Logical_Switch_Port")) == 300


async def test_refusals_are_typed_and_change_nothing(session: OvsdbSession) -> None:
    await add_switch(session, "s", 1)
    (switch,) = session.rows("Logical_Switch").values()
    name = fresh_name()
    with pytest.raises(ConstraintViolation, match="s-0"):
        await session.transact(
            op.insert("Logical_Switch_Port", {"name": "s-0"}, uuid_name=name),
            op.mutate("Logical_Switch", switch.uuid, [("ports", "insert", {name})]),
        )
    with pytest.raises(WaitFailed):
        await session.transact(op.wait("Logical_Switch", [("name", "==", "s")], [], until="=="))
    missing = "99999999-9999-4999-8999-999999999999"
    with pytest.raises(ReferenceViolation):
        await session.transact(
            op.mutate("Logical_Switch", switch.uuid, [("ports", "insert", {type(switch.uuid)(missing)})])
        )
    assert len(session.rows("Logical_Switch_Port")) == 1


async def test_until_and_until_absent(session: OvsdbSession) -> None:
    waiting = asyncio.create_task(session.until("Logical_Switch", lambda row: row["name"] == "s", deadline=30))
    await add_switch(session, "s")
    row = await waiting
    assert (await session.until("Logical_Switch", lambda row: row["name"] == "s", deadline=30)) == row
    with pytest.raises(WaitTimedOut):
        await session.until("Logical_Switch", lambda row: row["name"] == "t", deadline=0.01)
    with pytest.raises(WaitTimedOut):
        await session.until_absent("Logical_Switch", lambda row: row["name"] == "s", deadline=0.01)
    leaving = asyncio.create_task(session.until_absent("Logical_Switch", lambda row: row["name"] == "s", deadline=30))
    await session.transact(op.delete("Logical_Switch", row.uuid))
    await leaving


async def test_server_restart_keeps_the_session_and_tells_only_what_changed(
    server: Server, session: OvsdbSession
) -> None:
    await add_switch(session, "kept", 1)
    await add_switch(session, "gone")
    changes: list[Change] = []
    session.subscribe("Logical_Switch", changes.append)
    server.stop()
    # While our session is away, somebody else changes the file.
    other = server.beside()
    other.start()
    async with OvsdbSession(f"unix:{other.socket}", "OVN_Northbound") as stranger:
        await stranger.transact(
            op.delete("Logical_Switch", [("name", "==", "gone")]), op.insert("Logical_Switch", {"name": "new"})
        )
    other.stop()
    server.start()
    await asyncio.wait_for(session.connected.wait(), 30)
    rows = [(change.kind, change.new or change.old) for change in changes]
    assert {(kind, row["name"]) for kind, row in rows if row} == {("delete", "gone"), ("insert", "new")}
    await add_switch(session, "after")
    assert {row["name"] for row in session.rows("Logical_Switch").values()} == {"kept", "new", "after"}


async def test_a_transaction_waits_for_a_connection_but_not_for_ever(server: Server, session: OvsdbSession) -> None:
    server.stop()
    with pytest.raises((ConnectionLost, Unavailable)):
        await session.transact(op.comment("x"), deadline=0.1)
    with pytest.raises(Unavailable):
        await session.transact(op.comment("x"), deadline=0.1)
    waiting = asyncio.create_task(add_switch(session, "s"))
    await asyncio.sleep(0)
    server.start()
    await waiting
    assert len(session.rows("Logical_Switch")) == 1


async def test_a_missing_table_is_told_at_start(server: Server) -> None:
    session = OvsdbSession(server.remote, "OVN_Northbound")
    session.monitor({"No_Such_Table": ["name"]})
    with pytest.raises(SchemaMismatch, match="No_Such_Table"):
        await session.start()


async def test_no_server_is_told_at_start(directory: Path) -> None:
    session = OvsdbSession(f"unix:{directory}/none", "OVN_Northbound")
    with pytest.raises(Unavailable, match="cannot connect"):
        await session.start(deadline=1)


async def test_leader_only_accepts_a_standalone_server(server: Server) -> None:
    async with OvsdbSession(server.remote, "OVN_Northbound", leader_only=True) as session:
        await add_switch(session, "s")


class Mute:
    """A peer that takes bytes and answers as told; for what a healthy server never does."""

    def __init__(self, path: Path, answer: bytes | None) -> None:
        self.path = path
        self.answer = answer
        self.connections = 0

    async def __aenter__(self) -> Mute:
        self.server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        await self.server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while await reader.read(65536):
            if self.answer is not None:
                writer.write(self.answer)
        writer.close()


async def test_a_peer_that_speaks_something_else_is_left(directory: Path) -> None:
    async with Mute(directory / "m.sock", b"HTTP/1.1 400 Bad Request\r\n\r\n") as peer:
        with pytest.raises(Unavailable, match="does not speak OVSDB"):
            await OvsdbSession(f"unix:{peer.path}", "OVN_Northbound").start(deadline=2)


async def test_a_silent_server_is_left_and_its_transactions_fail_as_unknown(server: Server, directory: Path) -> None:
    """The server is stopped (SIGSTOP) so that it keeps its socket and answers nothing."""
    session = OvsdbSession(server.remote, "OVN_Northbound", probe_interval=0.2)
    await session.start()
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(RequestTimedOut):
            await session.transact(op.comment("x"), deadline=0.05)
        # On a machine that stalls, the silence may be noticed before the next transaction is sent.
        with pytest.raises((ConnectionLost, Unavailable)):
            await session.transact(op.comment("x"), deadline=30)
    finally:
        server.process.send_signal(signal.SIGCONT)
    await asyncio.wait_for(session.connected.wait(), 30)
    await add_switch(session, "s")
    await session.stop()


async def test_the_later_holder_of_a_lock_writes_and_the_earlier_one_cannot(server: Server) -> None:
    async with OvsdbSession(server.remote, "OVN_Northbound", lock="l") as earlier:
        earlier_results = await earlier.transact(op.insert("Logical_Switch", {"name": "one"}))
        assert earlier_results[0].uuid is not None
        with pytest.raises(ConstraintViolation) as caught:
            await earlier.transact(op.insert("ACL", {"priority": 99999}))
        assert caught.value.index == 0
        async with OvsdbSession(server.remote, "OVN_Northbound", lock="l") as later:
            await later.transact(op.insert("Logical_Switch", {"name": "two"}))
            with pytest.raises(LockLost):
                await earlier.transact(op.insert("Logical_Switch", {"name": "three"}))
            server.stop()
            with contextlib.suppress(ConnectionLost, Unavailable):
                await later.transact(op.comment("x"), deadline=0.2)
            server.start()
            await later.transact(op.insert("Logical_Switch", {"name": "four"}))
        # Even when the lock is free again, and over a new connection: it has been overtaken.
        with pytest.raises(LockLost):
            await earlier.transact(op.insert("Logical_Switch", {"name": "five"}))


async def test_a_quiet_session_is_probed_and_stays(server: Server) -> None:
    async with OvsdbSession(server.remote, "OVN_Northbound", probe_interval=0.05) as session:
        await asyncio.sleep(0.4)  # eight intervals in which only probes pass
        assert session.epoch == 1
        await add_switch(session, "s")
