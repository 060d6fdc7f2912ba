"""A VF's netdev is in the host's sysfs while, and only while, it is in the host's network namespace."""

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from foundation.pci import Sysfs
from lab.hardware import plan
from lab.hardware.netdevs import NetdevKeeper
from lab.hardware.sysfs import SysfsTree
from lab.layout import HOST_NODE, Layout
from lab.network import namespaces
from lab.network.commands import ip

pytestmark = pytest.mark.root

VF = plan.network_functions()[1]


@pytest.fixture
async def layout() -> AsyncIterator[Layout]:
    layout = Layout(run=Path("/run") / f"dn-{os.getpid()}", prefix=f"dn{os.getpid()}")
    plan.lay_out(layout)
    names = [layout.netns(node) for node in ("node-host", "node-dpu", "node-pod")]
    await namespaces.create(*names)
    await namespaces.veth((names[0], VF.netdev), (names[1], VF.representor), mac=VF.mac)
    yield layout
    for name in names:
        await namespaces.remove(name)
    await asyncio.to_thread(shutil.rmtree, layout.run)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.01)


async def test_a_vf_is_followed_out_and_back_under_another_name(layout: Layout) -> None:
    keeper = NetdevKeeper(
        SysfsTree(layout.sysfs(HOST_NODE)),
        host_netns=layout.netns_path("node-host"),
        dpu_netns=layout.netns_path("node-dpu"),
    )
    task = asyncio.create_task(keeper.run())
    sysfs = Sysfs(layout.sysfs(HOST_NODE))
    try:
        await until(lambda: list(sysfs.netdevs(VF.pci)) == [VF.netdev])
        pod = layout.netns("node-pod")
        await ip(f"link set {VF.netdev} netns {pod} name eth0", namespace=layout.netns("node-host"))
        await until(lambda: not list(sysfs.netdevs(VF.pci)))
        await ip(f"link set eth0 netns {layout.netns('node-host')} name dev7", namespace=pod)
        await until(lambda: list(sysfs.netdevs(VF.pci)) == ["dev7"])
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
