"""The connections of an address that has left are forgotten on the side that tracked them."""

from __future__ import annotations

import asyncio

import pytest

from foundation.ovsdb import fresh_name
from foundation.ovsdb import operations as op
from lab.network.commands import run
from tests.node.stage import DEFAULT, DPU, HOST, Stage, vf_address

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="session")]


async def tracked(stage: Stage, node: str) -> str:
    control = stage.network.chassis[node].directory / "vswitchd.ctl"
    return await run("ovs-appctl", "-t", control, "dpctl/dump-conntrack")


@pytest.mark.parametrize(("node", "device", "switch"), [(DEFAULT, "", DEFAULT), (HOST, vf_address(0), DPU)])
async def test_connections_go_with_their_address(stage: Stage, node: str, device: str, switch: str) -> None:
    await stage.settled()
    lan = next(row for row in stage.northbound.rows("Logical_Switch").values() if row["name"] == "lan")
    name = fresh_name()
    acl = {"direction": "to-lport", "priority": 1000, "match": "ip4", "action": "allow-related"}
    (made, _) = await stage.northbound.transact(
        op.insert("ACL", acl, uuid_name=name), op.mutate("Logical_Switch", lan.uuid, [("acls", "insert", name)])
    )
    pod, peer = await stage.pod(node, device=device), await stage.pod(DEFAULT)
    try:
        await stage.add(pod)
        await stage.add(peer)
        async with asyncio.timeout(20):
            while f"src={pod.ip}" not in await tracked(stage, switch):
                assert await stage.ping(peer, pod.ip)
        await stage.delete(pod)
        async with asyncio.timeout(20):
            while f"={pod.ip}," in await tracked(stage, switch):
                await asyncio.sleep(0.02)
        await stage.delete(peer)
        await stage.clean(pod, peer)
    finally:
        await stage.northbound.transact(op.mutate("Logical_Switch", lan.uuid, [("acls", "delete", made.uuid)]))
        await stage.forget(pod, peer)
