"""Random lives of machines: whatever KubeVirt, its users and the cluster do, each has one port with what is its own.

`KUBEVIRT_SEQUENCES=500` plays as many, others each time.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from foundation.ovsdb import Row
from tests.controller.stage import Northbound, Stage, contents, pod
from tests.kubevirt.conftest import FAMILIES
from tests.kubevirt.lives import LANS, Cluster, Life

EXAMPLES = int(os.environ.get("KUBEVIRT_SEQUENCES", "20"))


def ports(stage: Stage, name: str) -> dict[str, Row]:
    found = [row for row in stage.rows("Logical_Switch_Port") if row["external_ids"].get("vm") == name]
    by_part = {row["external_ids"]["dpu-offload.io/part"]: row for row in found}
    assert len(by_part) == len(found)
    return by_part


class Watch:
    """What must be true after each event."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.had: dict[tuple[str, str, int], str] = {}
        self.ever: set[str] = set()

    def check(self, stage: Stage) -> None:
        assert stage.core.engine.failures == 0
        assert stage.refused == []
        for life in self.cluster.lives.values():
            self._one(stage, life)
        self._all(stage)

    def _one(self, stage: Stage, life: Life) -> None:
        found = ports(stage, life.name)
        if not life.pods:
            assert found == {}
        if not life.exists and not life.pods and life.spec is None:
            self.had = {key: ips for key, ips in self.had.items() if key[0] != life.name}
        for part, row in found.items():
            named = list(filter(None, row["options"].get("requested-chassis", "").split(",")))
            assert ("activation-strategy" in row["options"]) is (len(named) == 2)
            if life.guest:
                assert named == self._expected(life)
            self._kept(life, part, row)

    def _expected(self, life: Life) -> list[str]:
        """Where the guest's ports must be bound."""
        there = self._chassis(life, life.guest)
        move = life.move
        if move is None or move.target not in life.pods:
            return there
        target = self._chassis(life, move.target)
        if move.phase == "Ready":
            return target
        return [*there, *target] if there and target else there

    def _chassis(self, life: Life, name: str) -> list[str]:
        on = life.pods[name]["spec"]["nodeName"]
        return ["d3"] if on == "n3" else [on] if on in self.cluster.nodes else []

    def _kept(self, life: Life, part: str, row: Row) -> None:
        (text,) = row["addresses"]
        mac, *ips = text.split()
        wanted = life.spec["domain"]["devices"]["interfaces"][0].get("macAddress", "") if life.spec else ""
        if part == "default" and wanted:
            assert mac == wanted
        era = life.era if part == "ns/lan" else 0
        self.ever |= set(ips) if part == "ns/lan" else set()
        before = self.had.setdefault((life.name, part, era), " ".join(ips))
        assert before == " ".join(ips), f"{life.name} had {before} on {part}"

    def _all(self, stage: Stage) -> None:
        seen: set[tuple[str, str]] = set()
        for row in stage.rows("Logical_Switch_Port"):
            if row["type"] or not row["addresses"]:
                continue
            part = row["external_ids"]["dpu-offload.io/part"]
            for each in next(iter(row["addresses"])).split():
                assert (part, each) not in seen, f"{each} twice on {part}"
                seen.add((part, each))


@asynccontextmanager
async def staged(cluster: Cluster, northbound: Northbound) -> AsyncIterator[Stage]:
    async with Stage(northbound.remote) as stage:
        cluster.stage = stage
        cluster.everything()
        await stage.settle()
        yield stage


async def play(families: str, topology: str, choices: list[int]) -> None:
    cluster = Cluster(families, topology)
    watch = Watch(cluster)
    northbound = Northbound()
    try:
        left = list(choices)
        while left:
            async with staged(cluster, northbound) as stage:
                cluster.learn()
                while left:
                    options = cluster.options()
                    event = options[left.pop(0) % len(options)]
                    note(" ".join(event))
                    if event[0] == "restart":
                        break
                    cluster.happen(*event)
                    await stage.settle()
                    watch.check(stage)
                    cluster.learn()
                before = contents(stage)
                problems = {owner: str(each) for owner, each in stage.problems.items()}
            async with staged(cluster, northbound) as stage:
                assert contents(stage) == before
                assert {owner: str(each) for owner, each in stage.problems.items()} == problems
                watch.check(stage)
        async with staged(cluster, northbound) as stage:
            for life in cluster.lives.values():
                cluster.delete(life)
            await stage.settle()
            assert [row for row in stage.rows("Logical_Switch_Port") if "vm" in row["external_ids"]] == []
            # What they had can be had.
            known = set(stage.problems)
            held = {each for row in stage.rows("Logical_Switch_Port") for each in str(row["addresses"]).split("'")[1:2]}
            free = set() if topology == "layer3" else watch.ever - {ip for each in held for ip in each.split()}
            for claim in cluster.claims:
                stage.remove("ipamclaim", f"ns/{claim}")
            for index, ip in enumerate(sorted(free)):
                asked = json.dumps([{"name": "lan", "ips": [ip]}])
                stage.put("pod", pod(f"heir{index}", on="d3", annotations={"k8s.v1.cni.cncf.io/networks": asked}))
            await stage.settle()
            assert set(stage.problems) == known
            assert {row["external_ids"]["dpu-offload.io/owner"] for row in stage.rows("DHCP_Options")} <= {"network"}
            assert {owner.kind for owner in stage.problems} <= {"pod"}  # of nodes that are gone
            has = sum(len(stage.core.world.pools[name]) for name in cluster.nodes)
            assert has == sum(each["spec"]["nodeName"] in cluster.nodes for each in cluster.strangers.values())
    finally:
        northbound.remove()


CHOICES = st.lists(st.integers(0, 1 << 20), min_size=20, max_size=60)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize="KUBEVIRT_SEQUENCES" not in os.environ,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate,),  # the events are noted; to look for fewer takes minutes
)
@given(st.sampled_from(list(FAMILIES)), st.sampled_from(list(LANS)), CHOICES)
async def test_whatever_happens_each_machine_has_what_is_its_own(
    families: str, topology: str, choices: list[int]
) -> None:
    await play(families, topology, choices)
