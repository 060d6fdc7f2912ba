"""The same port rows written through the controller's core and raw, for `benchmarks.controller`."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec

from benchmarks.controller_lab import pod
from cni.controller.config import ClusterConfig
from cni.controller.core import Core
from foundation.kube.models import core as models
from foundation.ovsdb import OvsdbSession, fresh_name
from foundation.ovsdb import operations as op
from foundation.ovsdb.replica import Row

PODS, NODES, BATCH = 5000, 50, 100


async def through_core(remote: str) -> tuple[float, list[Row]]:
    """Pods a second from "taken in" to "in the database", translation and replica included; with the rows made."""
    session = OvsdbSession(remote, "OVN_Northbound")
    core = Core(
        session,
        ClusterConfig(),
        annotate=lambda key, uid, text: None,
        annotate_node=lambda name, texts: None,
        keep=lambda key, ips: None,
        keep_machine=lambda key, text: None,
        on_problem=lambda owner, refused: None,
        on_refused=lambda owner, error: None,
    )
    await session.start()
    for index in range(NODES):
        node = {"metadata": {"name": f"n{index}"}, "spec": {"podCIDRs": [f"10.{index}.0.0/20"]}}
        core.take("node", f"n{index}", msgspec.convert(node, models.Node))
    core.first_pass()
    running = asyncio.create_task(core.run())
    await core.idle()
    objects = []
    for index in range(PODS):
        made = pod(f"p{index}", f"n{index % NODES}")
        made["metadata"]["uid"] = f"uid-{index}"
        objects.append(msgspec.convert(made, models.Pod))
    started = time.perf_counter()
    for each in objects:
        core.take("pod", each.metadata.key, each)
    await core.idle()
    seconds = time.perf_counter() - started
    ports = [row for row in session.rows("Logical_Switch_Port").values() if "pod" in row["external_ids"]]
    assert len(ports) == PODS
    running.cancel()
    await asyncio.wait({running})
    await session.stop()
    return PODS / seconds, ports


async def written_raw(remote: str, ports: list[Row]) -> float:
    """Ports a second of a loop that knows all rows beforehand and looks at nothing."""
    session = OvsdbSession(remote, "OVN_Northbound")
    await session.start()
    names = [f"n{index}" for index in range(NODES)]
    await session.transact(*(op.insert("Logical_Switch", {"name": name}) for name in names))
    columns = ("name", "addresses", "port_security", "options", "external_ids")
    started = time.perf_counter()
    for start in range(0, len(ports), BATCH):
        operations: list[Any] = []
        of_switch: dict[str, list[Any]] = {}
        for index, row in enumerate(ports[start : start + BATCH]):
            name = fresh_name()
            of_switch.setdefault(names[index % NODES], []).append(name)
            operations.append(
                op.insert("Logical_Switch_Port", {column: row[column] for column in columns}, uuid_name=name)
            )
        for switch, members in of_switch.items():
            operations.append(op.mutate("Logical_Switch", [("name", "==", switch)], [("ports", "insert", members)]))
        await session.transact(*operations)
    seconds = time.perf_counter() - started
    await session.stop()
    return len(ports) / seconds
