"""The offload report as operators get it: over HTTP on the node and on the host, in metrics, on the Node object."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from foundation.kube.resources import NODES
from tests.node.stage import DEFAULT, DPU, HOST, Pod, Stage, vf_address

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="session")]


async def report(stage: Stage, node: str, pod: Pod) -> dict[str, Any]:
    """What a node says of one pod, once its pings have made flows."""
    async with asyncio.timeout(30):
        while True:
            status, text = await stage.get(node, f"/offload?pod={pod.namespace}/{pod.name}")
            assert status == 200, text
            (found,) = json.loads(text)["attachments"]
            if any(flow["packets"] for flow in found["flows"]):
                return dict(found)
            await asyncio.sleep(0.1)


async def test_host_and_dpu_tell_the_same_of_a_pods_flows(stage: Stage) -> None:
    await stage.settled()
    accelerated, plain = await stage.pod(HOST, device=vf_address(0)), await stage.pod(DEFAULT)
    try:
        await stage.add(accelerated)
        await stage.add(plain)
        assert await stage.ping(plain, accelerated.ip)
        on_node = await report(stage, DEFAULT, plain)
        on_dpu = await report(stage, DPU, accelerated)
        assert (on_dpu["host"], on_dpu["link"], on_dpu["network"]) == (HOST, "pf0vf0", "default")
        on_host = await report(stage, HOST, accelerated)
        assert (on_host["host"], on_host["interface"], on_host["link"]) == ("", "eth0", "pf0vf0")
        for found in (on_node, on_dpu, on_host):
            assert not found["inHardware"]
            assert found["hardware"]["flows"] == 0
            assert found["software"]["flows"] >= len(found["flows"]) > 0
            assert found["software"]["packets"] >= 1
            assert all(flow["reason"] for flow in found["flows"])
        # Its datapath was never told to offload, which is the first cause.
        assert any("hw-offload=true" in flow["reason"] for flow in on_host["flows"])
        await counted(stage, DEFAULT, f'pod="{plain.name}"')
        await counted(stage, DPU, f'pod="{accelerated.name}"')
        await stage.delete(accelerated)
        status, text = await stage.get(HOST, f"/offload?pod={accelerated.namespace}/{accelerated.name}")
        assert (status, "has no attachment on node node-host" in text) == (404, True)
        await stage.delete(plain)
        await stage.clean(accelerated, plain)
    finally:
        await stage.forget(accelerated, plain)


async def counted(stage: Stage, node: str, pod: str) -> None:
    """The metrics have the pod, and the Node's annotation the whole switch."""
    async with asyncio.timeout(30):
        while True:
            _, text = await stage.get(node, "/metrics")
            lines = [
                line for line in text.splitlines() if line.startswith("dpu_offload_cni_offload_flows") and pod in line
            ]
            if any('where="software"' in line and float(line.rsplit(" ", 1)[1]) > 0 for line in lines):
                break
            await asyncio.sleep(0.1)
        assert 'dpu_offload_datapath_flows{where="hardware"} 0.0' in text
        while not (found := (await stage.client.get(NODES, node)).metadata.annotations.get("dpu-offload.io/offload")):
            await asyncio.sleep(0.1)
    share = json.loads(found)
    assert share["hardwareFlows"] == 0
    assert set(share) == {"hardwareFlows", "softwareFlows", "hardwareBytes", "softwareBytes"}


async def test_odd_questions(stage: Stage) -> None:
    await stage.settled()
    assert (await stage.get(DEFAULT, "/offload"))[0] == 200
    assert (await stage.get(DEFAULT, "/offload?pod=nobody"))[0] == 404
    status, text = await stage.get(DEFAULT, "/offload?pods=a/b")
    assert (status, "unknown parameter pods" in text) == (400, True)


async def test_a_dpu_that_is_away_is_told(stage: Stage) -> None:
    await stage.settled()
    pod = await stage.pod(HOST, device=vf_address(0))
    try:
        await stage.add(pod)
        stage.kill(DPU)
        status, text = await stage.get(HOST, "/offload")
        assert (status, "DPU node-dpu" in text) == (503, True)
        await stage.settled()
        await stage.delete(pod)
        await stage.clean(pod)
    finally:
        await stage.forget(pod)
