"""What somebody does by hand to rows of ours is undone, whichever row and whichever column it is.

Subjects: rows deleted with all references to them; columns emptied or changed; external_ids cleared, names changed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import pytest

from cni.controller.model.annotations import EGRESS_IPS, GATEWAY, ISOLATION
from cni.controller.rows import RowId
from cni.controller.rows.tables import TABLES, identity
from cni.controller.writer.plan import REFERS
from cni.selection import NETWORKS
from foundation.ovsdb import Row
from foundation.ovsdb import operations as op
from tests.controller.stage import Northbound, Stage, contents, node, pod

Json = dict[str, Any]
Damage = Iterable[list[op.Operation]]

NEVER_EMPTY = {"networks", "ip", "bands"}


@pytest.fixture
def northbound() -> Iterator[Northbound]:
    server = Northbound()
    yield server
    server.remove()


@pytest.fixture
async def stage(northbound: Northbound) -> AsyncIterator[Stage]:
    """A cluster with rows of every table."""
    async with Stage(northbound.remote, ranges=["10.1.0.0/16"]) as stage:
        for index in (1, 2):
            made = node(f"n{index}", f"10.1.{index}.0/24", ip=f"192.0.2.{index}")
            wire = {"ips": [f"192.0.2.10{index}/24"], "nextHops": ["192.0.2.254"]}
            stage.put("node", {**made, "metadata": {**made["metadata"], "annotations": {GATEWAY: json.dumps(wire)}}})
        annotations = {EGRESS_IPS: '["192.0.2.200"]', ISOLATION: "true"}
        stage.put("namespace", {"metadata": {"name": "ns", "annotations": annotations}})
        stage.put("network", nad("l2", subnets="172.16.0.0/24, fd01::/64", enableIPv6RA=True))
        stage.put("network", nad("l3", topology="layer3", subnets="172.20.0.0/16"))
        asks = {NETWORKS: "l2, l3", "kubernetes.io/ingress-bandwidth": "10M"}
        stage.put("pod", pod("a", uid="a", annotations=asks, ports={"web": ("TCP", 80)}))
        rule = {"from": [{"podSelector": {}}], "ports": [{"port": "web"}]}
        metadata = {"name": "x", "namespace": "ns"}
        stage.put("networkpolicy", {"metadata": metadata, "spec": {"podSelector": {}, "ingress": [rule]}})
        spec = {"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ports": [{"port": 80, "protocol": "TCP"}]}
        stage.put("service", {"metadata": metadata, "spec": spec, "status": {}})
        await stage.settle()
        assert stage.problems == {}
        yield stage


def nad(name: str, **config: Any) -> Json:
    text = json.dumps({"type": "dpu-offload", "topology": "layer2", **config})
    return {"metadata": {"name": name, "namespace": "ns"}, "spec": {"config": text}}


def deleted(row_id: RowId, row: Row, named: set[str]) -> Damage:
    if row_id.table == "Meter_Band":
        return  # its meter cannot be without
    references = (
        op.mutate(table, [(column, "includes", [row.uuid])], [(column, "delete", [row.uuid])])
        for (table, column), refers in REFERS.items()
        if refers == row_id.table
    )
    yield [*references, op.delete(row_id.table, row.uuid)]


def changed(row_id: RowId, row: Row, named: set[str]) -> Damage:
    for column, value in row.columns.items():
        if column not in named or column in NEVER_EMPTY:
            continue
        other: Any = None
        if isinstance(value, int):
            other = not value if isinstance(value, bool) else value + 1
        elif column in ("name", "mac", "match"):
            other = f"{value}1"
        elif value and isinstance(value, (frozenset, dict)):
            other = {} if isinstance(value, dict) else []
        elif column.endswith("_options"):
            other = []
        if other is not None:
            yield [op.update(row_id.table, row.uuid, {column: other})]


def disowned(row_id: RowId, row: Row, named: set[str]) -> Damage:
    if TABLES[row_id.table].tagged:
        yield [op.update(row_id.table, row.uuid, {"external_ids": {}})]
        yield [op.update(row_id.table, row.uuid, {"external_ids": {**row["external_ids"], "dpu-offload.io/part": "x"}})]


@pytest.mark.parametrize("damage", [deleted, changed, disowned])
async def test_every_row_is_repaired(stage: Stage, damage: Any) -> None:
    want = contents(stage)
    actual, desired = stage.core.committer.actual, stage.core.committer.desired
    one_of_each = {(each.table, each.kind, each.part): each for each in actual.ids()}
    done = 0
    for row_id in one_of_each.values():
        wanted = desired.row(row_id)
        assert wanted is not None
        named = {*wanted.columns, *TABLES[row_id.table].members, *identity(row_id)}
        row = actual.row(row_id)
        assert row is not None
        for operations in damage(row_id, row, named):
            written = stage.core.committer.statistics.transactions
            await stage.session.transact(*operations)
            assert await repaired(stage, want), f"{row_id} after {operations}"
            assert stage.core.committer.statistics.transactions > written, f"{row_id} is no worse for {operations}"
            done += 1
            row = actual.row(row_id)
    assert done > 40
    assert stage.refused == []


async def repaired(stage: Stage, want: Json) -> bool:
    for _ in range(200):
        await stage.settle()
        if contents(stage) == want:
            return True
        await asyncio.sleep(0.01)
    return False
