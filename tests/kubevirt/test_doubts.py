"""Hosts with several DPUs: where a machine may be, and where it cannot move."""

from __future__ import annotations

import pytest

from cni.controller.translate.names import vm_owner
from tests.controller.stage import Stage, node
from tests.kubevirt.objects import launcher, migration, vm, vmi
from tests.kubevirt.test_migrations import ports

DPUS = {"dpu-offload.io/mode": "dpu", "dpu-offload.io/host-node": "n3"}


@pytest.mark.parametrize(("source", "target"), [("n1", "n3"), ("n3", "n1")])
async def test_a_host_whose_dpu_is_in_doubt_takes_no_part_in_migrations(stage: Stage, source: str, target: str) -> None:
    """Both chassis must have names for a port to wait on two; told at once, while the guest has not left."""
    stage.put("node", node("e3", "10.1.5.0/24", labels=DPUS))
    stage.put("vm", vm("m"))
    stage.put("vmi", vmi("m", on=source))
    stage.put("pod", launcher("m", "a", on=source, created=1))
    await stage.settle()
    (before,) = ports(stage)
    stage.put("vmmigration", migration("j1", "m"))
    stage.put("pod", launcher("m", "b", on=target, job="j1", created=2))
    await stage.settle()
    problem = stage.problems[vm_owner("ns/m")]
    assert problem.reason == "MigrationBarred"
    assert "d3, e3" in str(problem)
    assert "ns/b" not in stage.annotations
    (port,) = ports(stage)
    assert port == before
    stage.remove("pod", "ns/b")
    await stage.settle()
    assert not stage.problems
    # One DPU is taken away: the next try is like any other.
    stage.remove("node", "e3")
    stage.put("pod", launcher("m", "c", on=target, job="j1", created=3))
    await stage.settle()
    (port,) = ports(stage)
    assert set(port["options"]["requested-chassis"].split(",")) == {"n1", "d3"}
    assert not stage.problems
