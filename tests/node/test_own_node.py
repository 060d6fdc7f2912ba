"""What the Node's annotations ask of the machine: a port by which it reaches its pods, answers to health checks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from foundation.kube.resources import NODES
from foundation.ovsdb import fresh_name
from foundation.ovsdb import operations as op
from lab.network.commands import CommandFailed, run
from tests.node.stage import DEFAULT, DPU, HOST, Stage, shell, vf_address

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="session")]

MANAGEMENT, CHECKS = "dpu-offload.io/management", "dpu-offload.io/health-checks"
NUMBERS = {DEFAULT: 2, DPU: 3}


async def eventually(check: Callable[[], Awaitable[bool]], *, seconds: float = 40.0) -> None:
    async with asyncio.timeout(seconds):
        while not await check():
            await asyncio.sleep(0.1)


async def annotate(stage: Stage, node: str, **annotations: Any) -> None:
    found = {key: None if value is None else json.dumps(value) for key, value in annotations.items()}
    await stage.client.merge_patch(NODES, node, "", {"metadata": {"annotations": found}})


async def port(stage: Stage, node: str) -> None:
    """The logical port of a node's own, as cni-controller makes it."""
    number, name = NUMBERS[node], fresh_name()
    lan = next(row for row in stage.northbound.rows("Logical_Switch").values() if row["name"] == "lan")
    row = {
        "name": f"management_{node}",
        "addresses": f"0a:58:0a:4d:00:0{number} 10.77.0.{number} fd77::{number}",
        "options": {"requested-chassis": node},
    }
    await stage.northbound.transact(
        op.insert("Logical_Switch_Port", row, uuid_name=name),
        op.mutate("Logical_Switch", lan.uuid, [("ports", "insert", name)]),
    )


def described(node: str, **more: Any) -> dict[str, Any]:
    number = NUMBERS[node]
    found = {
        "port": f"management_{node}",
        "mac": f"0a:58:0a:4d:00:0{number}",
        "ips": [f"10.77.0.{number}/16", f"fd77::{number}/64"],
        "gateways": ["10.77.255.1"],
        "routes": [{"dest": "10.96.0.0/12", "nextHop": "10.77.255.1"}],
        "mtu": 1400,
    }
    return found | more


async def reaches(stage: Stage, node: str, address: str) -> bool:
    return await shell(f"ip netns exec {stage.network.namespace(node)} ping -n -q -c 1 -W 1 {address}")


async def shown(stage: Stage, node: str, what: str) -> str:
    return await run("ip", "-n", stage.network.namespace(node), *what.split())


async def test_a_node_reaches_its_own_and_other_pods(stage: Stage) -> None:
    await stage.settled()
    pods = [await stage.pod(DEFAULT), await stage.pod(DPU), await stage.pod(HOST, device=vf_address(0))]
    try:
        for node in (DEFAULT, DPU):
            await port(stage, node)
            await annotate(stage, node, **{MANAGEMENT: described(node)})
        await asyncio.gather(*(stage.add(pod) for pod in pods))
        for node in (DEFAULT, DPU):
            for pod in pods:
                await eventually(lambda node=node, pod=pod: reaches(stage, node, pod.ip))  # type: ignore[misc]
            await eventually(lambda node=node: reaches(stage, node, pods[0].ip6))  # type: ignore[misc]
        routes = await shown(stage, DEFAULT, "route")
        assert "10.96.0.0/12 via 10.77.255.1 dev dpo-mgmt" in routes
        assert "default" not in routes
        # What OVS loses comes back: its process, the port, the address.
        await stage.network.restart_switch(DEFAULT)
        await eventually(lambda: reaches(stage, DEFAULT, pods[0].ip))
        await run("ovs-vsctl", f"--db={stage.network.chassis[DEFAULT].ovs}", "del-port", "br-int", "dpo-mgmt")
        await eventually(lambda: reaches(stage, DEFAULT, pods[0].ip))
        # Another description takes the place of the former.
        changed = described(DEFAULT, ips=["10.77.0.2/17"], routes=[])
        await annotate(stage, DEFAULT, **{MANAGEMENT: changed})

        async def replaced() -> bool:
            addresses, routes = await shown(stage, DEFAULT, "addr show dpo-mgmt"), await shown(stage, DEFAULT, "route")
            gone = "10.77.0.2/16" not in addresses and "fd77" not in addresses and "10.96" not in routes
            return "10.77.0.2/17" in addresses and gone

        await eventually(replaced)
        await annotate(stage, DEFAULT, **{MANAGEMENT: {"ips": ["nonsense"]}})

        async def told() -> bool:
            status, text = await stage.get(DEFAULT, "/readyz")
            return status == 503 and "dpu-offload.io/management is malformed" in text

        await eventually(told)
        # It stays through a restart of cni-node, and goes with the annotation.
        await annotate(stage, DEFAULT, **{MANAGEMENT: described(DEFAULT)})
        stage.kill(DEFAULT)
        await stage.settled()
        assert await reaches(stage, DEFAULT, pods[0].ip)
    finally:
        await stage.settled()
        for node in (DEFAULT, DPU):
            await annotate(stage, node, **{MANAGEMENT: None})
        await asyncio.gather(*(stage.delete(pod) for pod in pods))
        await stage.clean(*pods)
        await stage.forget(*pods)


async def asked(stage: Stage, node: str, port: int, path: str = "/") -> tuple[str, dict[str, Any], str]:
    """Status line, body and head of an answer to a load balancer, over IPv4 in the node's namespace; empty for none."""
    request = f"GET {path} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n"
    script = f"exec 3<>/dev/tcp/127.0.0.1/{port}; printf '{request}' >&3; cat <&3"
    namespace = stage.network.namespace(node)
    try:
        text = await run("ip", "netns", "exec", namespace, "bash", "-c", script)
    except CommandFailed:
        return "", {}, ""
    head, _, body = text.replace("\r\n", "\n").partition("\n\n")
    if not body:
        # It was about to close.
        return "", {}, ""
    return head.partition("\n")[0], json.loads(body), head


@pytest.mark.parametrize("node", [DEFAULT, HOST])
async def test_health_checks_are_answered_where_a_service_has_a_port_for_them(stage: Stage, node: str) -> None:
    await stage.settled()
    service = {"namespace": "shop", "name": "web"}
    namespace = stage.network.namespace(node)
    await run("ip", "-n", namespace, "link", "set", "lo", "up")
    try:
        await annotate(stage, node, **{CHECKS: [{"port": 32109, "service": service, "localEndpoints": 2}]})

        async def is_well() -> bool:
            return (await asked(stage, node, 32109))[0] == "HTTP/1.1 200 OK"

        await eventually(is_well)
        _, body, head = await asked(stage, node, 32109, "/healthz")
        assert body == {"service": service, "localEndpoints": 2, "serviceProxyHealthy": True}
        assert "X-Load-Balancing-Endpoint-Weight: 2" in head
        await annotate(
            stage,
            node,
            **{
                CHECKS: [
                    {"port": 32109, "service": service, "localEndpoints": 0},
                    {"port": 32110, "service": service, "localEndpoints": 1},
                ]
            },
        )

        async def is_empty() -> bool:
            return (await asked(stage, node, 32109))[0] == "HTTP/1.1 503 Service Unavailable"

        await eventually(is_empty)
        assert (await asked(stage, node, 32110))[0] == "HTTP/1.1 200 OK"
        await annotate(stage, node, **{CHECKS: None})

        async def is_closed() -> bool:
            return (await asked(stage, node, 32109))[0] == ""

        await eventually(is_closed)
    finally:
        await annotate(stage, node, **{CHECKS: None})
