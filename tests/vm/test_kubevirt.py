"""A virtual machine under QEMU on the suite's network and disk: stopped, started on another node, the same machine.

The nodes are the lab's: a plain one, where the pod has a veth pair, and a host with a DPU, where it has a virtual
function whose representor is on the DPU's switch. QEMU's tap hangs on a bridge with that interface in the pod, as
KubeVirt's bridge binding has it. A lab's function is a veth, which vfio-pci cannot take: for a function that is in the
machine itself, the host is a guest with an emulated card (tests/vm/hypervisor.py). The disk is a raw block claim, with
every daemon from csi-controller to opi-bridge and csi-node-host.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from dpu_offload_stubs.csi import csi_pb2
from lab.certificates import Authority
from lab.hardware import loops
from lab.kubevirt.cluster import Machine
from lab.kubevirt.taps import TAP, wire
from lab.vm import devices
from lab.vm.guest import Parts
from lab.vm.tiny import TinyGuest
from tests.csi_rig.estate import Estate, estate, nursery
from tests.csi_rig.plant import plant
from tests.csi_rig.target import Target
from tests.dpu_rig.rig import Pair
from tests.kubevirt.rig import Rig
from tests.kubevirt.walks import body
from tests.node.stage import DEFAULT, HOST
from tests.vm.hypervisor import Hypervisor, hypervisor
from tests.vm.inside.virtual_machine import SCRIPT, life

pytestmark = [
    pytest.mark.vm,
    pytest.mark.root,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(600),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    rig = Rig(tmp_path_factory.mktemp("rig"))
    try:
        await rig.up()
        yield rig
    finally:
        await rig.down()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def storage() -> AsyncIterator[Estate]:
    """Both nodes with a DPU for disks each."""
    with tempfile.TemporaryDirectory(prefix="vm-", dir="/tmp") as name, nursery() as bearer:
        directory = Path(name)
        target = Target(directory, size=4 << 30)
        pairs = [(host, Pair(directory / host)) for host in (DEFAULT, HOST)]
        for part in (DEFAULT, HOST, "plant"):
            (directory / part).mkdir()
        await target.start()
        try:
            async with (
                plant(directory / "plant", target, Authority(directory / "pki")) as built,
                estate(built, bearer, pairs) as running,
            ):
                yield running
        finally:
            for _, pair in pairs:
                pair.end()
            await target.stop()
            for device in await loops.below(directory):
                await loops.detach(device)


@contextlib.asynccontextmanager
async def attached(storage: Estate, volume: csi_pb2.Volume, host: str) -> AsyncIterator[str]:
    """The machine's disk on a host, as kubelet and the side-cars get it there: the device in its pod."""
    path = await storage.attach(volume, host)
    try:
        yield path
    finally:
        await storage.detach(volume, host)


async def boot(rig: Rig, machine: Machine, node: str, disk: str, parts: Parts) -> tuple[str, str, str]:
    """One life of the machine on a node: its address, its MAC, what it found on its disk."""
    pod = await machine.start(node)
    sandbox = await rig.add(pod)
    given = (await rig.given(pod))["default"]
    await wire(sandbox.netns)
    cards = (devices.tap(TAP, mac=given["mac"]), devices.block(disk))
    async with TinyGuest(parts.unpacked, parts.kernel, script=SCRIPT, devices=cards, netns=sandbox.netns) as guest:
        told = await life(guest)
    await rig.delete(pod)
    await machine.stop()
    return same(told, given)


def same(told: Mapping[str, str], given: Mapping[str, Any]) -> tuple[str, str, str]:
    """A life's address, MAC and data, of which the first two are those that the pod was given."""
    assert told["eth0"] == given["ips"][0]
    assert told["mac"] == given["mac"]
    assert told["reached"] == given["gateways"][0]
    return told["eth0"], told["mac"], told["found"]


async def test_a_machine_is_the_same_on_another_node(rig: Rig, storage: Estate) -> None:
    parts = await Parts.prepare()
    machine = await rig.machine(body(rig.name("m")))
    volume = await storage.create()
    lives = []
    for node in (DEFAULT, HOST, DEFAULT):
        async with attached(storage, volume, node) as disk:
            lives.append(await boot(rig, machine, node, disk, parts))
    await machine.delete()
    await storage.plant.delete(volume)
    assert [found for _, _, found in lives] == ["nothing", "kept", "kept"]
    assert len({(address, mac) for address, mac, _ in lives}) == 1


async def passed_through(rig: Rig, machine: Machine, host: Hypervisor, disk: str) -> tuple[str, str, str]:
    """One life of the machine on a host, in which the function itself is in the guest."""
    pod = await machine.start(HOST)
    before = await host.function_mac()
    sandbox = await host.add(pod)
    given = (await rig.given(pod))["default"]
    assert sandbox.result["interfaces"][-1]["pciID"] == host.function
    assert await host.function_mac() == given["mac"]
    await rig.bound(f"default_vm_{machine.name}", HOST)
    async with host.disk(disk) as function:
        told = await host.run(function)
    await host.delete(sandbox)
    await machine.stop()
    assert await host.function_mac() == before
    return same(told, given)


async def test_a_machine_with_a_function_of_its_own_is_the_same_elsewhere(rig: Rig, storage: Estate) -> None:
    parts = await Parts.prepare()
    name = rig.name("m")
    plain, through = body(name), body(name, sriov={})
    through["spec"]["template"]["spec"]["networks"] = [
        {"name": "default", "multus": {"networkName": "dpu-offload/vf", "default": True}}
    ]
    machine = await rig.machine(through)
    volume = await storage.create("passed")
    lives = []
    async with hypervisor(rig, parts, disk=volume.capacity_bytes) as host:
        async with attached(storage, volume, HOST) as disk:
            lives.append(await passed_through(rig, machine, host, disk))
        await machine.edit(plain["spec"]["template"])
        async with attached(storage, volume, DEFAULT) as disk:
            lives.append(await boot(rig, machine, DEFAULT, disk, parts))
        await machine.edit(through["spec"]["template"])
        async with attached(storage, volume, HOST) as disk:
            lives.append(await passed_through(rig, machine, host, disk))
    await machine.delete()
    await storage.plant.delete(volume)
    assert [found for _, _, found in lives] == ["nothing", "kept", "kept"]
    assert len({(address, mac) for address, mac, _ in lives}) == 1
