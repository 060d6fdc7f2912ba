"""How long a guest's TCP connection stands still when it moves between a plain node and a host with a DPU.

The floor is the same hand-over by bare OVN and OVS commands on the same network, in the same run: `requested-chassis`
of two chassis with `activation-strategy`, the target's port, the guest's announcement, one chassis again. Rounds are
interleaved. Needs root. `.venv/bin/python -m benchmarks.migration`
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from benchmarks import report
from lab.kubevirt.guest import Guest
from lab.kubevirt.watched import Watched
from lab.network import namespaces
from lab.network.commands import ip, run
from tests.kubevirt.rig import Rig
from tests.kubevirt.walks import SETTLED_SECONDS, configured, move, started
from tests.node.stage import DEFAULT, DPU, HOST, Pod

ROUNDS = 24
GOAL = 1.2


class Bare:
    """A guest whose ports are made by hand, on the default node's switch."""

    def __init__(self, rig: Rig, guest: Guest, ip: str) -> None:
        self._rig, self._guest, self._ip = rig, guest, ip
        self._port = f"bare-{guest.namespace}"
        self._at = ""
        self._pods: dict[str, tuple[str, str]] = {}

    async def up(self) -> None:
        await self._nb("lsp-add", DEFAULT, self._port)
        await self._nb("lsp-set-addresses", self._port, f"{self._guest.mac} {self._ip}")
        await self._nb("set", "logical_switch_port", self._port, f"options:requested-chassis={DEFAULT}")
        await self._guest.run(await self._pod(DEFAULT), announce=False)
        self._at = DEFAULT

    async def down(self) -> None:
        for node in tuple(self._pods):
            await self._drop(node)
        await self._nb("lsp-del", self._port)

    async def move(self, node: str, watched: Watched) -> float:
        """The longest stand-still in milliseconds."""
        both = f'options:requested-chassis="{self._at},{node}"'
        await self._nb("set", "logical_switch_port", self._port, both, "options:activation-strategy=rarp")
        pod = await self._pod(node)
        await watched.gap()
        await self._guest.run(pod, announce=True)
        await self._nb(
            *("set", "logical_switch_port", self._port, f"options:requested-chassis={node}"),
            *("--", "remove", "logical_switch_port", self._port, "options", "activation-strategy"),
        )
        await self._rig.bound(self._port, node)
        await asyncio.sleep(SETTLED_SECONDS)
        gap = await watched.gap()
        await self._drop(self._at)
        self._at = node
        return gap

    async def _pod(self, node: str) -> str:
        namespace, link = f"{self._guest.namespace}-{node[-3:]}", f"bare{secrets.token_hex(3)}"
        await namespaces.create(namespace)
        network = self._rig.stage.network
        await namespaces.veth((namespace, "eth0"), (network.namespace(node), link), mtu=1400)
        await ip(f"link set {link} up", namespace=network.namespace(node))
        await ip("link set eth0 up", namespace=namespace)
        self._pods[node] = namespace, link
        remote = f"--db={network.chassis[node].ovs}"
        ids = f"external_ids:iface-id={self._port}"
        await run("ovs-vsctl", remote, "add-port", "br-int", link, "--", "set", "interface", link, ids)
        await run(
            "ovs-vsctl", "--timeout=20", remote, "wait-until", "interface", link, "external_ids:ovn-installed=true"
        )
        await self._guest.plug(namespace)
        return namespace

    async def _drop(self, node: str) -> None:
        namespace, link = self._pods.pop(node)
        await self._guest.unplug(namespace)
        await run("ovs-vsctl", f"--db={self._rig.stage.network.chassis[node].ovs}", "del-port", link)
        await namespaces.remove(namespace)

    async def _nb(self, *words: str) -> None:
        await run("ovn-nbctl", f"--db={self._rig.stage.network.central.nb}", *words)


@contextlib.asynccontextmanager
async def bare(rig: Rig, ips: list[str]) -> AsyncIterator[tuple[Guest, Bare]]:
    """A guest made by hand, beside the machine with `ips`."""
    network, _, length = ips[0].partition("/")
    address = f"{network.rpartition('.')[0]}.250"
    async with rig.guest("0a:58:00:00:00:fa") as guest:
        made = Bare(rig, guest, address)
        await made.up()
        gateway = f"{network.rpartition('.')[0]}.1"
        await ip(f"addr add {address}/{length} dev eth0", f"route add default via {gateway}", namespace=guest.namespace)
        try:
            yield guest, made
        finally:
            await made.down()


async def measure(rig: Rig) -> tuple[list[float], list[float]]:
    """Gaps in milliseconds: through the suite, by hand."""
    ours: list[float] = []
    floor: list[float] = []
    peers: list[tuple[Pod, str]] = [await rig.peer(DPU), await rig.peer(DPU)]
    async with started(rig) as running, bare(rig, running.ips) as (guest, hand):
        await configured(running)
        async with (
            Watched(running.guest.namespace, peers[0][0].netns, peers[0][1]) as first,
            Watched(guest.namespace, peers[1][0].netns, peers[1][1]) as second,
        ):
            for number in range(ROUNDS):
                ours += await move(running, HOST if number % 2 == 0 else DEFAULT, first)
                floor.append(await hand.move(DPU if number % 2 == 0 else DEFAULT, second))
    return ours, floor


async def run_it() -> None:
    with tempfile.TemporaryDirectory(prefix="migration-") as directory:
        rig = Rig(Path(directory))
        try:
            await rig.up()
            ours, floor = await measure(rig)
        finally:
            await rig.down()
    value, least = statistics.median(ours), statistics.median(floor)
    for name, gaps in (("suite", ours), ("bare", floor)):
        sys.stdout.write(f"{name}: {' '.join(f'{gap:.1f}' for gap in gaps)} ms\n")
    sys.stdout.write(f"gap {value:.1f} ms, bare OVN {least:.1f} ms, ratio {value / least:.2f}\n")
    report.add(
        "VM migration, connection stands still p50",
        value=value,
        unit="ms",
        floor=least,
        goal={"of": "ratio", "max": GOAL},
    )


def main() -> None:
    asyncio.run(run_it())


if __name__ == "__main__":
    main()
