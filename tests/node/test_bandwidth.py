"""runtimeConfig's bandwidth: bounds on the port in both directions, felt by traffic, gone with the pod."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

from cni.node.limits import Limits, limits_of
from cni.node.request import Bandwidth
from foundation.ovsdb import OvsdbSession
from lab.network.commands import run
from tests.node.stage import DEFAULT, DPU, HOST, Pod, Stage, output, vf_address

RATE, BURST = 4_000_000, 800_000
PORT, DATAGRAM, COUNT = 7000, 1300, 2000

# Prints how many bytes came, and the seconds from the first to the last of them.
RECEIVE = f"""
import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 23)
s.bind(("", {PORT})); s.settimeout(20); print("ready", flush=True)
size = len(s.recv(2000)); first = last = time.monotonic(); s.settimeout(1.5)
try:
    while True:
        size += len(s.recv(2000)); last = time.monotonic()
except TimeoutError:
    print(size, last - first)
"""
SEND = f"""
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range({COUNT}):
    s.sendto(bytes({DATAGRAM}), (sys.argv[1], {PORT}))
"""


@pytest.mark.parametrize(
    ("asked", "limits"),
    [
        (Bandwidth(), Limits()),
        (Bandwidth(egress_rate=1_000_001), Limits(sent_rate=1_000_001, sent_burst=800_000)),
        (
            Bandwidth(ingress_rate=10**9, ingress_burst=2**32 - 1),
            Limits(received_rate=10**9, received_burst=10**8),
        ),
        (
            Bandwidth(ingress_rate=8_000, ingress_burst=16_000, egress_rate=9_000, egress_burst=2**31 - 1),
            Limits(received_rate=8_000, received_burst=16_000, sent_rate=9_000, sent_burst=800_000),
        ),
        (Bandwidth(ingress_burst=16_000), Limits()),
    ],
)
def test_limits(asked: Bandwidth, limits: Limits) -> None:
    assert limits_of(asked) == limits


def test_limits_as_columns() -> None:
    limits = Limits(sent_rate=1_000_001, sent_burst=10, received_rate=5000, received_burst=9000)
    assert limits.policing() == {"ingress_policing_rate": 1001, "ingress_policing_burst": 1}
    assert limits.shaping() == {"max-rate": "5000", "burst": "9000"}
    assert Limits(sent_rate=1).shaping() == {}


async def rows(stage: Stage, node: str) -> dict[str, list[Any]]:
    """What OVS has of bandwidth: rows of QoS and Queue, and the ports that are policed."""
    session = OvsdbSession(stage.network.chassis[node].ovs, "Open_vSwitch")
    session.monitor(
        {
            "QoS": ["type", "external_ids"],
            "Queue": ["other_config"],
            "Interface": ["name", "ingress_policing_rate"],
        }
    )
    async with session:
        return {
            # ovn-controller has one of its own.
            "QoS": [row["type"] for row in session.rows("QoS").values() if row["type"] != "linux-noop"],
            "Queue": [row["other_config"] for row in session.rows("Queue").values()],
            "policed": [
                (row["name"], row["ingress_policing_rate"])
                for row in session.rows("Interface").values()
                if row["ingress_policing_rate"]
            ],
        }


async def received(source: Pod, target: Pod) -> tuple[int, float]:
    """(bits, seconds from the first to the last) of a burst of datagrams."""
    receiver = await asyncio.create_subprocess_exec(
        *("ip", "netns", "exec", target.netns, sys.executable, "-c", RECEIVE), stdout=asyncio.subprocess.PIPE
    )
    assert receiver.stdout is not None
    assert await receiver.stdout.readline() == b"ready\n"
    await run("ip", "netns", "exec", source.netns, sys.executable, "-c", SEND, target.ip)
    text, _ = await asyncio.wait_for(receiver.communicate(), 40)
    size, seconds = text.split()
    return int(size) * 8, float(seconds)


@pytest.mark.root
@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize(("node", "device", "switch"), [(DEFAULT, "", DEFAULT), (HOST, vf_address(0), DPU)])
async def test_bounds_are_on_the_port_and_go_with_the_pod(stage: Stage, node: str, device: str, switch: str) -> None:
    await stage.settled()
    pod, peer = await stage.pod(node, device=device), await stage.pod(DEFAULT)
    bandwidth = {"ingressRate": RATE, "ingressBurst": BURST, "egressRate": 2 * RATE, "egressBurst": 2**32 - 1}
    try:
        await stage.add(peer)
        await stage.add(pod, runtimeConfig={"bandwidth": bandwidth})
        (link,) = [name for name in await stage.ports(switch) if node == HOST or name not in await peers(stage, peer)]
        wanted = {
            "QoS": ["linux-htb"],
            "Queue": [{"max-rate": str(RATE), "burst": str(BURST)}],
            "policed": [(link, 2 * RATE // 1000)],
        }
        assert await rows(stage, switch) == wanted
        await stage.check(pod)
        # Lost with the port, they come back with it.
        await run("ovs-vsctl", f"--db={stage.network.chassis[switch].ovs}", "del-port", "br-int", link)
        async with asyncio.timeout(30):
            while await rows(stage, switch) != wanted:
                await asyncio.sleep(0.05)
            while "htb" not in await output(f"tc -n {stage.network.namespace(switch)} qdisc show dev {link}"):
                await asyncio.sleep(0.05)
        assert await stage.ping(peer, pod.ip, seconds=30)
        # The kernel drops what is policed only on its own datapath, which this machine room's OVS has not.
        bits, seconds = await received(peer, pod)
        assert 0 < bits <= BURST + 1.5 * RATE * seconds
        await run("ovs-vsctl", f"--db={stage.network.chassis[switch].ovs}", "clear", "Port", link, "qos")
        answer = await stage.call("CHECK", pod, stage.conf(pod, prevResult=pod.result))
        assert "what the pod receives" in answer.message
        await stage.delete(pod)
        assert await rows(stage, switch) == {"QoS": [], "Queue": [], "policed": []}
        await stage.delete(peer)
        await stage.clean(pod, peer)
    finally:
        await stage.forget(pod, peer)


async def peers(stage: Stage, peer: Pod) -> set[str]:
    """The node's ends of a veth pod."""
    return {one["name"] for one in peer.result["interfaces"] if not one.get("sandbox")}
