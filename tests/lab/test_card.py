"""The lab's card: a controller on a vfio-user socket becomes a disk on the host, with real bytes and real uevents."""

import asyncio
import contextlib
import json
import os
import shutil
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from foundation.pci import Sysfs
from lab.hardware import loops, plan
from lab.hardware.card import Card
from lab.hardware.sysfs import SysfsTree
from lab.layout import HOST_NODE, Layout

pytestmark = pytest.mark.root

SIZE = 16 << 20
UUID = "6f7c9a52-6d0e-5a0b-9d0e-0123456789ab"
NQN = "nqn.2026-11.io.dpu-offload:test"
CONTROLLER = {"event": "controller", "nqn": NQN, "serial": "S1", "model": "M1", "cntlid": 1, "firmware": "26.05"}


class Emulation:
    """The server's end of ``cntrl``: what a DPU's SPDK would be."""

    def __init__(self, slot: Path) -> None:
        self._slot = slot
        self._writer: asyncio.StreamWriter | None = None
        self._connected = asyncio.Event()

    async def start(self) -> None:
        self._slot.mkdir(parents=True, exist_ok=True)
        self._server = await asyncio.start_unix_server(self._accept, self._slot / "cntrl")

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._connected.set()
        with contextlib.suppress(ConnectionError):
            await reader.read()

    async def send(self, *events: dict[str, Any]) -> None:
        await asyncio.wait_for(self._connected.wait(), 5)
        assert self._writer is not None
        for event in events:
            self._writer.write(json.dumps(event).encode() + b"\n")
        await self._writer.drain()

    async def die(self) -> None:
        """As after SIGKILL: the connection ends and the socket file stays."""
        self._server.close()
        if self._writer is not None:
            self._writer.close()
        await self._server.wait_closed()
        self._connected.clear()
        (self._slot / "cntrl").unlink(missing_ok=True)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    run = Path("/run") / f"dl-{os.getpid()}"
    layout = Layout(run=run, prefix="t")
    plan.lay_out(layout)
    return layout


@pytest.fixture
async def card(layout: Layout) -> AsyncIterator[Card]:
    card = Card(layout.functions, SysfsTree(layout.sysfs(HOST_NODE)), layout.devices)
    task = asyncio.create_task(card.run())
    yield card
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    for device in await loops.below(layout.run):
        await loops.detach(device)
    await asyncio.to_thread(shutil.rmtree, layout.run)


async def until(holds: Callable[[], object], what: str) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.01)
    assert holds(), what


def namespace(file: Path, *, nsid: int = 1, uuid: str = UUID) -> dict[str, Any]:
    return {
        "event": "namespace_add",
        "nsid": nsid,
        "uuid": uuid,
        "nguid": uuid.replace("-", ""),
        "size": SIZE,
        "block_size": 4096,
        "file": str(file),
        "offset": 0,
        "read_only": False,
    }


def backing_file(layout: Layout) -> Path:
    file = layout.run / "volume.img"
    with file.open("wb") as opened:
        opened.truncate(SIZE)
    return file


async def test_a_namespace_becomes_a_disk_and_goes_again(layout: Layout, card: Card) -> None:
    file = backing_file(layout)
    emulation = Emulation(layout.functions / "pf0vf2")
    await emulation.start()
    await emulation.send(CONTROLLER, namespace(file))
    sysfs = Sysfs(layout.sysfs(HOST_NODE))
    node = layout.devices / "nvme0n1"
    await until(node.exists, "a block node appears")
    await until(lambda: sysfs.namespace_by_uuid(UUID), "the namespace is in sysfs")
    found = sysfs.namespace_by_uuid(UUID)
    assert found is not None
    assert found.size == SIZE
    assert stat.S_ISBLK(node.stat().st_mode)
    with node.open("r+b", buffering=0) as disk:
        disk.write(b"x" * 4096)
        os.fsync(disk.fileno())
    assert file.read_bytes()[:4096] == b"x" * 4096
    controllers = sysfs.nvme_controllers(plan.storage_function(2))
    assert [controller.subsystem_nqn for controller in controllers] == [NQN]

    await emulation.send({"event": "namespace_remove", "nsid": 1})
    await until(lambda: not node.exists(), "the node goes")
    assert sysfs.namespace_by_uuid(UUID) is None
    await emulation.die()
    await until(lambda: not sysfs.nvme_controllers(plan.storage_function(2)), "the controller goes")


async def test_a_resize_is_seen_while_the_disk_is_open(layout: Layout, card: Card) -> None:
    file = backing_file(layout)
    emulation = Emulation(layout.functions / "pf0vf1")
    await emulation.start()
    await emulation.send(CONTROLLER, namespace(file))
    node = layout.devices / "nvme0n1"
    await until(node.exists, "a block node appears")
    with node.open("rb") as disk:
        os.truncate(file, 2 * SIZE)
        await emulation.send({"event": "namespace_resize", "nsid": 1, "size": 2 * SIZE})
        sysfs = Sysfs(layout.sysfs(HOST_NODE))
        await until(lambda: (found := sysfs.namespace_by_uuid(UUID)) and found.size == 2 * SIZE, "sysfs grows")
        assert disk.seek(0, os.SEEK_END) == 2 * SIZE
    await emulation.die()


async def test_a_crash_of_the_emulation_leaves_the_disk_and_it_goes_on(layout: Layout, card: Card) -> None:
    file = backing_file(layout)
    emulation = Emulation(layout.functions / "pf0vf3")
    await emulation.start()
    await emulation.send(CONTROLLER, namespace(file))
    node = layout.devices / "nvme0n1"
    await until(node.exists, "a block node appears")
    number = node.stat().st_rdev
    sysfs = Sysfs(layout.sysfs(HOST_NODE))

    def state() -> str:
        return next(iter(sysfs.nvme_controllers(plan.storage_function(3)))).state

    await emulation.die()
    await until(lambda: state() == "resetting", "the controller is known to be lost")
    assert node.stat().st_rdev == number
    await emulation.start()
    await emulation.send(CONTROLLER, namespace(file))
    await until(lambda: state() == "live", "the controller is back")
    assert node.stat().st_rdev == number
    await emulation.die()


async def test_a_function_whose_directory_goes_is_unplugged(layout: Layout, card: Card) -> None:
    file = backing_file(layout)
    slot = layout.functions / "pf0vf4"
    emulation = Emulation(slot)
    await emulation.start()
    await emulation.send(CONTROLLER, namespace(file))
    node = layout.devices / "nvme0n1"
    await until(node.exists, "a block node appears")
    await emulation.die()
    assert node.exists()
    slot.rmdir()
    sysfs = Sysfs(layout.sysfs(HOST_NODE))
    await until(lambda: not sysfs.nvme_controllers(plan.storage_function(4)), "the controller goes")
    assert not node.exists()
    assert await loops.below(layout.run) == []


async def test_a_function_that_is_made_again_at_once_is_another_one(layout: Layout, card: Card) -> None:
    file = backing_file(layout)
    slot = layout.functions / "pf0vf5"
    node = layout.devices / "nvme0n1"
    for _ in range(5):
        emulation = Emulation(slot)
        await emulation.start()
        await emulation.send(CONTROLLER, namespace(file))
        await until(node.exists, "a block node appears")
        await emulation.send({"event": "namespace_remove", "nsid": 1})
        await until(lambda: not node.exists(), "the node goes")
        await emulation.die()
        slot.rmdir()
