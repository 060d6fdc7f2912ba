"""A machine's life on the rig: started, moved, stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from lab.kubevirt.cluster import Machine, Move
from lab.kubevirt.guest import Guest
from lab.kubevirt.watched import Watched
from lab.network.commands import ip
from tests.kubevirt.rig import Rig
from tests.node.stage import DEFAULT, Pod

SETTLED_SECONDS = 0.2


def body(name: str, **interface: Any) -> dict[str, Any]:
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "running": True,
            "template": {
                "metadata": {},
                "spec": {
                    "hostname": "web",
                    "domain": {"devices": {"interfaces": [{"name": "default", **(interface or {"bridge": {}})}]}},
                    "networks": [{"name": "default", "pod": {}}],
                },
            },
        },
    }


@dataclass
class Running:
    """A machine whose guest runs in `sandbox`."""

    rig: Rig
    machine: Machine
    guest: Guest
    sandbox: Pod
    ips: list[str]

    @property
    def port(self) -> str:
        return f"default_vm_{self.machine.name}"

    async def given(self) -> dict[str, Any]:
        """What the pod with the guest was given on the default network."""
        assert self.machine.pod is not None
        return dict((await self.rig.given(self.machine.pod))["default"])

    async def over(self, move: Move, *, kept: bool = False) -> None:
        """The pod that has lost goes; `kept`: the source has kept the guest."""
        loser = move.target if kept else move.source
        await self.rig.delete(loser)
        await self.machine.end(loser)


@asynccontextmanager
async def started(rig: Rig) -> AsyncIterator[Running]:
    """A machine on the default node; afterwards nothing of it is left."""
    machine = await rig.machine(body(rig.name("m")))
    pod = await machine.start(DEFAULT)
    sandbox = await rig.add(pod)
    given = (await rig.given(pod))["default"]
    async with rig.guest(given["mac"]) as guest:
        await guest.plug(sandbox.netns)
        await guest.run(sandbox.netns, announce=False)
        yield Running(rig, machine, guest, sandbox, given["ips"])
        assert machine.pod is not None
        await rig.delete(machine.pod)
    await machine.stop()
    await machine.delete()


async def configured(running: Running) -> None:
    """The guest has set itself up with what it was given."""
    given = await running.given()
    for address, gateway in zip(given["ips"], given["gateways"], strict=True):
        everywhere = "::/0" if ":" in gateway else "0.0.0.0/0"
        await ip(
            f"addr replace {address} dev eth0",
            f"route replace {everywhere} via {gateway} dev eth0",
            namespace=running.guest.namespace,
        )


async def move(running: Running, node: str, *watched: Watched, announce: bool = True) -> list[float]:
    """One pre-copy migration, phase by phase; the longest stand-still of each connection at the hand-over, in ms.

    `announce`: the guest's cards are announced, else KubeVirt's word alone hands the port over.
    """
    rig, machine, guest = running.rig, running.machine, running.guest
    begun = await machine.begin(node)
    target = await rig.add(begun.target)
    await machine.running(begun)
    await guest.plug(target.netns)
    await asyncio.gather(*(each.gap() for each in watched))
    await guest.run(target.netns, announce=announce)
    await machine.ready(begun)
    await rig.bound(running.port, node)
    await asyncio.sleep(SETTLED_SECONDS)
    gaps = await asyncio.gather(*(each.gap() for each in watched))
    await machine.succeed(begun)
    await guest.unplug(running.sandbox.netns)
    await running.over(begun)
    running.sandbox = target
    await asyncio.gather(*(each.gap() for each in watched))
    return gaps
