"""A pod that selects one network twice has two interfaces there, each with a port, a MAC and addresses of its own."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from foundation.kube.resources import PODS
from foundation.ovsdb import fresh_name
from foundation.ovsdb import operations as op
from lab.network.commands import run
from tests.node.stage import DEFAULT, HOST, Stage, vf_address

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="session")]
NETWORK = "default/blue"


@pytest.mark.parametrize(
    ("node", "devices", "part"), [(DEFAULT, ("", ""), 200), (HOST, (vf_address(0), vf_address(1)), 201)]
)
async def test_each_interface_has_what_was_assigned_to_it(
    stage: Stage, node: str, devices: tuple[str, str], part: int
) -> None:
    pod = await stage.pod(node, port=False)
    peer = await stage.pod(DEFAULT)
    given: dict[str, dict[str, Any]] = {
        f"{NETWORK}{suffix}": {
            "ips": [f"10.77.{part}.{number}/16"],
            "mac": f"0a:58:0a:4d:{part:x}:0{number}",
            "mtu": 1400,
        }
        for number, suffix in ((1, ""), (2, "/1"))
    }
    annotations = {"k8s.v1.cni.cncf.io/networks": "blue, blue", "dpu-offload.io/pod-networks": json.dumps(given)}
    await stage.client.merge_patch(PODS, pod.name, pod.namespace, {"metadata": {"annotations": annotations}})
    for assigned, suffix in zip(given.values(), ("", "_1"), strict=True):
        lan = next(row for row in stage.northbound.rows("Logical_Switch").values() if row["name"] == "lan")
        address = f"{assigned['mac']} {str(assigned['ips'][0]).partition('/')[0]}"
        row = {"name": f"default.blue_{pod.port}{suffix}", "addresses": address, "port_security": address}
        name = fresh_name()
        await stage.northbound.transact(
            op.insert("Logical_Switch_Port", row, uuid_name=name),
            op.mutate("Logical_Switch", lan.uuid, [("ports", "insert", name)]),
        )
    try:
        await stage.add(peer)
        sandboxes = []
        # In the other order than selected: what counts is the interface's name.
        for ifname, device in (("net2", devices[1]), ("net1", devices[0])):
            sandbox = dataclasses.replace(pod, ifname=ifname, device=device)
            conf = {**stage.conf(sandbox), "name": "blue", "netAttachDefName": NETWORK}
            answer = await stage.call("ADD", sandbox, conf)
            assert answer.status == 0, answer.message
            sandboxes.append((sandbox, {**conf, "prevResult": answer.output}))
        macs = {link["ifname"]: link["address"] for link in await stage.links(pod.netns)}
        assert (macs["net1"], macs["net2"]) == tuple(each["mac"] for each in given.values())
        for sandbox, conf in sandboxes:
            # By the interface: a kernel with two in one subnet takes the first one's way.
            ping = ("ping", "-q", "-c", "1", "-w", "30", "-I", sandbox.ifname, peer.ip)
            await run("ip", "netns", "exec", pod.netns, *ping)
            assert (await stage.call("CHECK", sandbox, conf)).status == 0
            assert (await stage.call("DEL", sandbox, conf)).status == 0
        await stage.delete(peer)
        await stage.clean()
    finally:
        await stage.forget(pod, peer)
