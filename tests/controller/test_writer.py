"""The writer against a real northbound database: groups, ids, drift, other people's rows, faults."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cni.controller.rows import EMPTY, Member, Owner, Row, RowId, State
from cni.controller.writer.committer import Committer
from foundation.ovsdb import OvsdbSession, TransactionFailed, fresh_name
from foundation.ovsdb import operations as op
from tests.controller.stage import Northbound


@pytest.fixture
def northbound() -> Iterator[Northbound]:
    server = Northbound()
    yield server
    server.remove()


@asynccontextmanager
async def committing(remote: str, **options: Any) -> AsyncIterator[tuple[Committer, OvsdbSession]]:
    session = OvsdbSession(remote, "OVN_Northbound")
    committer = Committer(session, **options)
    await session.start()
    task = asyncio.create_task(committer.run())
    yield committer, session
    task.cancel()
    await asyncio.wait({task})
    await session.stop()


SWITCH = RowId("Logical_Switch", "node", "n", "switch")
NODE = Owner("node", "n")


def switch() -> State:
    return State((Row(SWITCH, {"name": "n", "other_config": {"a": "b"}}),))


def pod(name: str, address: str = "02:00:00:00:00:01 10.0.0.1") -> tuple[Owner, State]:
    port = RowId("Logical_Switch_Port", "pod", name, "default")
    row = Row(port, {"name": name, "addresses": address, "external_ids": {"pod": name}})
    return Owner("pod", name), State((row,), (Member(SWITCH, "ports", port),))


async def put(committer: Committer, *states: tuple[Owner, State]) -> None:
    for owner, state in states:
        committer.desired.put(owner, state)
    committer.wake()
    await asyncio.wait_for(committer.idle(), 40)


def ports(session: OvsdbSession) -> dict[str, Any]:
    return {row["name"]: row for row in session.rows("Logical_Switch_Port").values()}


async def test_many_owners_share_a_transaction_and_an_equal_state_writes_nothing(northbound: Northbound) -> None:
    async with committing(northbound.remote) as (committer, session):
        await put(committer, *(pod(f"p{i}") for i in range(50)), (NODE, switch()))
        assert committer.statistics.transactions == 1
        (row,) = session.rows("Logical_Switch").values()
        assert len(row["ports"]) == 50
        assert ports(session)["p7"]["external_ids"]["dpu-offload.io/key"] == "p7"
        await put(committer, pod("p7"))
        assert committer.statistics.transactions == 1
        await put(committer, pod("p7", "02:00:00:00:00:02 10.0.0.2"))
        assert ports(session)["p7"]["addresses"] == {"02:00:00:00:00:02 10.0.0.2"}
        assert committer.statistics.rows == {"pod": 51, "node": 1}
        await put(committer, (Owner("pod", "p7"), EMPTY))
        assert len(ports(session)) == 49


async def test_a_port_waits_for_its_switch(northbound: Northbound) -> None:
    async with committing(northbound.remote) as (committer, session):
        await put(committer, pod("p"))
        assert not ports(session)
        await put(committer, (NODE, switch()))
        await session.until("Logical_Switch_Port", lambda row: row["name"] == "p", deadline=30)
        await put(committer, (NODE, EMPTY))
        assert not ports(session)
        await put(committer, (NODE, switch()))
        await session.until("Logical_Switch_Port", lambda row: row["name"] == "p", deadline=30)


async def test_start_removes_stale_rows_and_leaves_other_peoples(northbound: Northbound) -> None:
    async with committing(northbound.remote) as (committer, session):
        await put(committer, (NODE, switch()), pod("stale"), pod("kept"))
    async with OvsdbSession(northbound.remote, "OVN_Northbound") as stranger:
        await stranger.transact(
            op.insert("Logical_Switch_Port", {"name": "foreign"}, uuid_name=(name := fresh_name())),
            op.mutate("Logical_Switch", [("name", "==", "n")], [("ports", "insert", name)]),
            op.insert("Logical_Switch", {"name": "theirs"}),
            op.update("Logical_Switch_Port", [("name", "==", "kept")], {"addresses": "unknown"}),
        )
    async with committing(northbound.remote) as (committer, session):
        for owner, state in ((NODE, switch()), pod("kept"), pod("new")):
            committer.desired.put(owner, state)
        committer.compare_all()
        await asyncio.wait_for(committer.idle(), 40)
        assert set(ports(session)) == {"kept", "new", "foreign"}
        assert ports(session)["kept"]["addresses"] == {"02:00:00:00:00:01 10.0.0.1"}
        assert {row["name"] for row in session.rows("Logical_Switch").values()} == {"n", "theirs"}
        before = committer.statistics.transactions
        committer.compare_all()
        await asyncio.wait_for(committer.idle(), 40)
        assert committer.statistics.transactions == before


async def test_drift_is_undone(northbound: Northbound) -> None:
    group = RowId("Address_Set", "ns", "x", "pods")
    sets = (Owner("ns", "x"), State((Row(group, {"name": "x"}),), (Member(group, "addresses", "10.0.0.1"),)))
    async with committing(northbound.remote) as (committer, session):
        await put(committer, (NODE, switch()), pod("p"), sets)
        async with OvsdbSession(northbound.remote, "OVN_Northbound") as stranger:
            await stranger.transact(
                op.update("Logical_Switch", [("name", "==", "n")], {"ports": [], "other_config": {"x": "y"}}),
                op.update("Address_Set", [("name", "==", "x")], {"addresses": ["10.9.9.9"]}),
            )
            await session.until("Address_Set", lambda row: row["addresses"] == {"10.0.0.1"}, deadline=30)
            await session.until("Logical_Switch_Port", lambda row: row["name"] == "p", deadline=30)
            await session.until("Logical_Switch", lambda row: row["other_config"] == {"a": "b"}, deadline=30)
            await stranger.transact(op.delete("Address_Set", [("name", "==", "x")]))
            await session.until("Address_Set", lambda row: row["addresses"] == {"10.0.0.1"}, deadline=30)


async def test_a_member_stays_while_anybody_wants_it(northbound: Northbound) -> None:
    group = RowId("Address_Set", "ns", "x", "pods")
    base = (Owner("ns", "x"), State((Row(group, {"name": "x"}),)))
    member = State((), (Member(group, "addresses", "10.0.0.1"),))
    async with committing(northbound.remote) as (committer, session):
        await put(committer, base, (Owner("pod", "a"), member), (Owner("pod", "b"), member))
        await put(committer, (Owner("pod", "a"), EMPTY))
        (row,) = session.rows("Address_Set").values()
        assert row["addresses"] == {"10.0.0.1"}
        await put(committer, (Owner("pod", "b"), EMPTY))
        (row,) = session.rows("Address_Set").values()
        assert row["addresses"] == set()


async def test_one_refused_owner_does_not_stop_the_others(northbound: Northbound) -> None:
    refused: list[tuple[Owner, TransactionFailed]] = []
    async with OvsdbSession(northbound.remote, "OVN_Northbound") as stranger:
        await stranger.transact(
            op.insert("Logical_Switch_Port", {"name": "p3"}, uuid_name=(name := fresh_name())),
            op.insert("Logical_Switch", {"name": "theirs", "ports": name}),
        )
        async with committing(northbound.remote, on_refused=lambda o, e: refused.append((o, e))) as (
            committer,
            session,
        ):
            await put(committer, (NODE, switch()), *(pod(f"p{i}") for i in range(8)))
            async with asyncio.timeout(30):
                while committer.statistics.refused < 2:
                    await asyncio.sleep(0.02)
            assert [owner.key for owner, _ in refused] == ["p3"], "told once, tried again and again"
            assert len(ports(session)) == 8
            # When the name is free again, the pod gets its port within the retry's second.
            await stranger.transact(op.delete("Logical_Switch", [("name", "==", "theirs")]))
            await session.until(
                "Logical_Switch_Port",
                lambda row: "dpu-offload.io/key" in row["external_ids"] and row["name"] == "p3",
                deadline=30,
            )


async def test_a_killed_server_loses_no_intent(northbound: Northbound) -> None:
    async with committing(northbound.remote) as (committer, session):
        await put(committer, (NODE, switch()))
        northbound.kill()
        for owner, state in (pod(f"p{i}") for i in range(20)):
            committer.desired.put(owner, state)
        committer.wake()
        northbound.start()
        await asyncio.wait_for(committer.idle(), 40)
        assert len(ports(session)) == 20
