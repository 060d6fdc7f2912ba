"""The table of migrations, against a real northbound database: one port a machine, where it is bound, what it keeps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from cni.controller.model.annotations import VM_NETWORKS
from foundation.ovsdb import Row
from tests.controller.stage import Northbound, Stage, contents
from tests.kubevirt.conftest import FAMILIES, nodes
from tests.kubevirt.objects import launcher, migration, vm, vmi

Moment = Callable[["Seen"], None]
BOTH = "n1,n2"


class Seen:
    """A stage, with all objects that are on it, for another controller to be started with."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._objects: dict[str, dict[str, dict[str, Any]]] = {}

    def put(self, kind: str, *objects: dict[str, Any]) -> None:
        for each in objects:
            metadata = each["metadata"]
            key = f"{metadata['namespace']}/{metadata['name']}" if "namespace" in metadata else metadata["name"]
            self._objects.setdefault(kind, {})[key] = each
        self._stage.put(kind, *objects)

    def remove(self, kind: str, *keys: str) -> None:
        for key in keys:
            del self._objects[kind][key]
        self._stage.remove(kind, *keys)

    async def by_another(self, northbound: Northbound) -> dict[str, Any]:
        async with Stage(northbound.remote) as another:
            for kind, objects in self._objects.items():
                another.put(kind, *objects.values())
            if self._stage.machines and "ns/m" in self._objects.get("vm", {}):
                another.put("vm", vm("m", **{VM_NETWORKS: json.dumps(self._stage.machines["ns/m"])}))
            await another.settle()
            return contents(another)


def put(kind: str, *objects: dict[str, Any]) -> Moment:
    return lambda stage: stage.put(kind, *objects)


def gone(kind: str, *keys: str) -> Moment:
    return lambda stage: stage.remove(kind, *keys)


def all_of(*moments: Moment) -> Moment:
    def together(stage: Seen) -> None:
        for each in moments:
            each(stage)

    return together


START = all_of(put("vm", vm("m")), put("vmi", vmi("m", on="n1")), put("pod", launcher("m", "a", on="n1", created=1)))
STATE = {"migrationUid": "uid-j1", "sourcePod": "a", "targetPod": "b", "targetNode": "n2"}


def target(on: str = "n2", **more: Any) -> Moment:
    return put("pod", launcher("m", "b", on=on, job="j1", created=2, **more))


def source(on: str = "n1", **more: Any) -> Moment:
    return put("pod", launcher("m", "a", on=on, created=1, **more))


def state(node: str = "n1", **more: Any) -> Moment:
    return put("vmi", vmi("m", on=node, migration={**STATE, **more}))


BEGIN = all_of(put("vmmigration", migration("j1", "m")), target(), state())
PRE_COPY = all_of(
    put("vmmigration", migration("j1", "m", "Succeeded")), target(ready=True), state("n2", completed=True)
)
END = all_of(source(phase="Succeeded"), gone("pod", "ns/a"))

STORIES: dict[str, list[tuple[Moment, str]]] = {
    "where the machine was born": [(START, "n1")],
    "on a host with a DPU": [
        (all_of(put("vmi", vmi("m", on="n3")), put("pod", launcher("m", "a", on="n3", created=1))), "d3")
    ],
    "pre-copy": [(START, "n1"), (BEGIN, BOTH), (PRE_COPY, "n2"), (END, "n2")],
    "pre-copy, the pod's note comes first": [
        (START, "n1"),
        (BEGIN, BOTH),
        (target(ready=True), "n2"),
        (PRE_COPY, "n2"),
        (END, "n2"),
    ],
    "pre-copy between nodes that both do not own the address": [
        (START, "n1"),
        (BEGIN, BOTH),
        (all_of(PRE_COPY, END), "n2"),
        (
            all_of(
                put("vmmigration", migration("j2", "m")),
                put("pod", launcher("m", "c", on="n3", job="j2", created=3)),
            ),
            "n2,d3",
        ),
        (
            all_of(
                put("vmmigration", migration("j2", "m", "Succeeded")),
                put("pod", launcher("m", "b", on="n2", job="j1", ready=True, phase="Succeeded", created=2)),
            ),
            "d3",
        ),
    ],
    "pre-copy back to the node that owns the address": [
        (START, "n1"),
        (all_of(BEGIN, PRE_COPY, END), "n2"),
        (
            all_of(
                put("vmmigration", migration("j2", "m")),
                put("pod", launcher("m", "c", on="n1", job="j2", created=3)),
            ),
            "n2,n1",
        ),
        (put("vmi", vmi("m", on="n1", migration={"migrationUid": "uid-j2", "completed": True})), "n1"),
        (gone("pod", "ns/b"), "n1"),
    ],
    "pre-copy to a host with a DPU and back": [
        (START, "n1"),
        (all_of(put("vmmigration", migration("j1", "m")), target(on="n3")), "n1,d3"),
        (all_of(state("n3", completed=True), END), "d3"),
        (
            all_of(
                put("vmmigration", migration("j2", "m")),
                put("pod", launcher("m", "c", on="n1", job="j2", created=3)),
            ),
            "d3,n1",
        ),
        (
            all_of(
                put("vmmigration", migration("j2", "m", "Succeeded")),
                gone("pod", "ns/b"),
            ),
            "n1",
        ),
    ],
    "post-copy": [
        (START, "n1"),
        (BEGIN, BOTH),
        (state(mode="PostCopy"), BOTH),
        (state(mode="PostCopy", targetNodeDomainReadyTimestamp="2026-11-22T03:00:00Z"), "n2"),
        (all_of(state("n2", mode="PostCopy", completed=True), END), "n2"),
    ],
    "in progress": [(START, "n1"), (BEGIN, BOTH)],
    "it fails": [
        (START, "n1"),
        (BEGIN, BOTH),
        (all_of(put("vmmigration", migration("j1", "m", "Failed")), state(completed=True, failed=True)), "n1"),
        (gone("pod", "ns/b"), "n1"),
    ],
    "it fails, as only the instance says": [
        (START, "n1"),
        (all_of(target(), state()), BOTH),
        (state(completed=True, failed=True), "n1"),
    ],
    "it is cancelled": [
        (START, "n1"),
        (BEGIN, BOTH),
        (state(abortRequested=True, abortStatus="Aborting"), BOTH),
        (state(abortRequested=True, abortStatus="Succeeded", completed=True, failed=True), "n1"),
        (all_of(target(leaving=True), gone("vmmigration", "ns/j1")), "n1"),
        (gone("pod", "ns/b"), "n1"),
    ],
    "the target's pod is lost while it runs": [
        (START, "n1"),
        (BEGIN, BOTH),
        (target(phase="Failed"), "n1"),
        (gone("pod", "ns/b"), "n1"),
    ],
    "the target's pod fails after the guest was there": [
        (START, "n1"),
        (BEGIN, BOTH),
        (target(ready=True), "n2"),
        (target(ready=True, phase="Failed"), "n1"),
    ],
    "the source's pod is lost while it runs": [
        (START, "n1"),
        (BEGIN, BOTH),
        (gone("pod", "ns/a"), "n2"),
        (PRE_COPY, "n2"),
    ],
    "what KubeVirt left of the last migration does not count in the next": [
        (START, "n1"),
        (all_of(BEGIN, state(failed=True), gone("pod", "ns/b"), gone("vmmigration", "ns/j1")), "n1"),
        (
            all_of(
                put("vmmigration", migration("j2", "m")),
                put("pod", launcher("m", "c", on="n2", job="j2", created=3)),
            ),
            BOTH,
        ),
    ],
    "pre-copy, as only pods tell": [
        (START, "n1"),
        (target(), BOTH),
        (target(ready=True), "n2"),
        (source(phase="Succeeded"), "n2"),
        (gone("pod", "ns/a"), "n2"),
    ],
    "the source's pod lingers, completed, while it moves on": [
        (START, "n1"),
        (all_of(BEGIN, PRE_COPY, source(phase="Succeeded")), "n2"),
        (all_of(gone("vmmigration", "ns/j1"), state("n2", completed=True)), "n2"),
        (
            all_of(
                put("vmmigration", migration("j2", "m")),
                put("pod", launcher("m", "c", on="n1", job="j2", created=3)),
            ),
            "n2,n1",
        ),
        (put("pod", launcher("m", "c", on="n1", job="j2", created=3, ready=True)), "n1"),
    ],
    "its migration is deleted while it runs": [
        (START, "n1"),
        (BEGIN, BOTH),
        (gone("vmmigration", "ns/j1"), BOTH),
        (state(abortRequested=True, abortStatus="Succeeded", completed=True, failed=True), "n1"),
        (gone("pod", "ns/b"), "n1"),
    ],
    "its migration is deleted, and the target's pod with it": [
        (START, "n1"),
        (BEGIN, BOTH),
        (all_of(gone("vmmigration", "ns/j1"), gone("pod", "ns/b")), "n1"),
    ],
    "the target's pod waits for its node, and never runs": [
        (START, "n1"),
        (all_of(put("vmmigration", migration("j1", "m")), target(on="", phase="Pending")), "n1"),
        (target(phase="Pending"), BOTH),
        (target(phase="Pending", leaving=True), "n1"),
        (gone("pod", "ns/b"), "n1"),
    ],
    "a target on the source's own node": [
        (START, "n1"),
        (all_of(put("vmmigration", migration("j1", "m")), target(on="n1")), "n1"),
        (all_of(put("vmmigration", migration("j1", "m", "Succeeded")), target(on="n1", ready=True)), "n1"),
        (gone("pod", "ns/a"), "n1"),
    ],
    "post-copy is interrupted, and the machine starts anew": [
        (START, "n1"),
        (BEGIN, BOTH),
        (state(mode="PostCopy", targetNodeDomainReadyTimestamp="2026-11-22T03:00:00Z"), "n2"),
        (all_of(target(phase="Failed"), source(phase="Failed")), ""),
        (all_of(gone("pod", "ns/a", "ns/b"), gone("vmi", "ns/m"), gone("vmmigration", "ns/j1")), ""),
        (
            all_of(
                put("vmi", vmi("m", on="n2")),
                put("pod", launcher("m", "c", on="n2", created=3)),
            ),
            "n2",
        ),
    ],
    "its node is lost: it starts elsewhere while the old pod is still there": [
        (START, "n1"),
        (source(leaving=True), "n1"),
        (all_of(gone("vmi", "ns/m"), put("vmi", vmi("m", on="n2"))), "n1"),
        (put("pod", launcher("m", "c", on="n2", created=3)), "n2"),
        (gone("pod", "ns/a"), "n2"),
    ],
    "its node is lost while it moves away": [
        (START, "n1"),
        (BEGIN, BOTH),
        (source(leaving=True), BOTH),
        (all_of(PRE_COPY, source(leaving=True)), "n2"),
        (gone("pod", "ns/a"), "n2"),
    ],
    "two pods that are no migration's": [
        (START, "n1"),
        (put("pod", launcher("m", "c", on="n2", created=3)), "n2"),
        (gone("pod", "ns/c"), "n1"),
    ],
    "it rests for days, halted": [
        (START, "n1"),
        (all_of(gone("pod", "ns/a"), gone("vmi", "ns/m")), ""),
        (put("vm", {**vm("m"), "spec": {**vm("m")["spec"], "running": None, "runStrategy": "Halted"}}), ""),
        (all_of(put("vmi", vmi("m", on="n2")), put("pod", launcher("m", "c", on="n2", created=3))), "n2"),
    ],
    "the instance ends": [(START, "n1"), (all_of(gone("pod", "ns/a"), gone("vmi", "ns/m")), "")],
}


def ports(stage: Stage) -> Iterable[Row]:
    return [row for row in stage.rows("Logical_Switch_Port") if row["external_ids"].get("vm") == "m"]


def switch_of(stage: Stage, port: Row) -> str:
    return next(str(row["name"]) for row in stage.rows("Logical_Switch") if port.uuid in row["ports"])


def told(stage: Stage, port: Row) -> list[dict[str, str]]:
    """By DHCP, in each family."""
    refers = [port["dhcpv4_options"], port["dhcpv6_options"]]
    return [dict(row["options"]) for each in refers for row in stage.rows("DHCP_Options") if each and row.uuid in each]


@pytest.mark.parametrize("families", FAMILIES)
@pytest.mark.parametrize("name", STORIES)
async def test_a_machine_has_one_port_where_its_guest_is(name: str, families: str, northbound: Northbound) -> None:
    """At each moment, for whoever saw it come and for a controller that is started then."""
    async with Stage(northbound.remote) as stage:
        seen = Seen(stage)
        seen.put("node", *nodes(families))
        had: tuple[object, ...] = ()
        for moment, bound in STORIES[name]:
            moment(seen)
            await stage.settle()
            assert not stage.problems
            found = list(ports(stage))
            if families == "dual":
                assert await seen.by_another(northbound) == contents(stage)
            if not bound:
                assert found == []
                continue
            (port,) = found
            options = {"requested-chassis": bound} | ({"activation-strategy": "rarp"} if "," in bound else {})
            assert port["options"] == options
            assert port["name"] == "ns_vm_m"
            here = switch_of(stage, port), port["addresses"], told(stage, port)
            had = had or here
            assert here == had
            (addresses,) = port["addresses"]
            assert len(addresses.split()) == 1 + len(FAMILIES[families])
            # Every pod is told the same, so that whichever gets the guest has its port.
            given = {str(stage.annotations[each.key]["default"]) for each in living(stage)}
            assert len(given) == 1
            assert stage.annotations[next(iter(living(stage))).key]["default"]["port"] == "ns_vm_m"
        assert stage.refused == []


def living(stage: Stage) -> list[Any]:
    return list(stage.core.world.machines.pods_of("ns/m").values())


async def test_rows_of_machines_that_are_gone_are_removed_at_the_start_and_others_stay(northbound: Northbound) -> None:
    async with Stage(northbound.remote) as stage:
        stage.put("node", *nodes("dual"))
        START(stage)
        stage.put("vmi", vmi("other", on="n2"))
        stage.put("pod", launcher("other", "o", on="n2"))
        await stage.settle()
        assert len(list(stage.rows("DHCP_Options"))) == 4
    async with Stage(northbound.remote) as stage:
        stage.put("node", *nodes("dual"))
        stage.put("vmi", vmi("other", on="n2"))
        stage.put("pod", launcher("other", "o", on="n2"))
        await stage.settle()
        assert {row["external_ids"].get("vm") for row in stage.rows("Logical_Switch_Port")} == {None, "other"}
        assert len(list(stage.rows("DHCP_Options"))) == 2
