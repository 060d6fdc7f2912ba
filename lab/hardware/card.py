"""The card's NVMe side: what the DPU's SPDK emulates appears on the host as a controller with a disk.

The card is the guest of each vfio-user socket below one directory, ``pf<P>vf<V>/cntrl``. The stand-in tells it over
that socket, one JSON object a line, which namespaces the controller has and which file holds their bytes; the card
makes sysfs entries, a loop device over that file, a block node and the uevents a kernel would send.

A controller that vanishes while it still has namespaces is *lost*, as after a crash of the card's firmware: its disk
stays, its state reads ``resetting``, and it goes on when the same subsystem comes back on the same function. When the
function's directory goes, the function is unplugged.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import re
import stat
import uuid as uuid_module
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foundation.daemon.work import Backoff
from foundation.inotify import DirectoryWatch
from lab.hardware import loops, plan
from lab.hardware.sysfs import SysfsTree
from lab.hardware.uevents import UeventSender

log = logging.getLogger(__name__)

_SLOT = re.compile(r"pf(\d+)vf(\d+)")
LONGEST_LINE = 1 << 20
_REFUSED = Backoff(initial=0.01, maximum=0.5)


@dataclasses.dataclass
class Disk:
    instance: int
    nsid: int
    uuid: str
    file: Path
    loop: Path
    device: tuple[int, int]


@dataclasses.dataclass
class Controller:
    index: int
    nqn: str
    pci: str
    disks: dict[int, Disk] = dataclasses.field(default_factory=dict)
    next_instance: int = 1


class Card:
    """One task a function slot; the slots come and go with the directory."""

    def __init__(self, directory: Path, tree: SysfsTree, devices: Path) -> None:
        self._directory = directory
        self._tree = tree
        self._devices = devices
        self._uevents = UeventSender()
        self._controllers: dict[str, Controller] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Follow the directory until cancelled."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._devices.mkdir(parents=True, exist_ok=True)
        changed = asyncio.Event()
        with DirectoryWatch(self._directory, lambda _name: changed.set()):
            try:
                while True:
                    changed.clear()
                    for name in [name for name, task in self._tasks.items() if task.done()]:
                        self._tasks.pop(name).result()
                    for slot in sorted(self._directory.iterdir()):
                        if _SLOT.fullmatch(slot.name) and slot.name not in self._tasks:
                            self._tasks[slot.name] = asyncio.create_task(self._slot(slot), name=slot.name)
                            self._tasks[slot.name].add_done_callback(lambda _task: changed.set())
                    await changed.wait()
            finally:
                for task in self._tasks.values():
                    task.cancel()
                await asyncio.gather(*self._tasks.values(), return_exceptions=True)
                self._uevents.close()

    async def _slot(self, slot: Path) -> None:
        """One life of a function's directory: follow it while it is there, unplug the function when it goes."""
        changed, gone = asyncio.Event(), asyncio.Event()

        def note(name: str) -> None:
            changed.set()
            if not name:
                gone.set()

        try:
            with DirectoryWatch(slot, note):
                await self._follow(slot, changed, gone)
        except FileNotFoundError:
            pass  # gone before it could be watched
        controller = self._controllers.get(slot.name)
        if controller is not None:
            for nsid in list(controller.disks):
                await self._remove(controller, nsid)
            self._drop(slot.name, controller)

    async def _follow(self, slot: Path, changed: asyncio.Event, gone: asyncio.Event) -> None:
        refused = 0
        while not gone.is_set():
            changed.clear()
            try:
                reader, writer = await asyncio.open_unix_connection(slot / "cntrl", limit=LONGEST_LINE)
            except FileNotFoundError:
                await changed.wait()
                continue
            except ConnectionRefusedError:
                # Bound but not listening yet, or left by a killed server: no event tells when that ends.
                refused += 1
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), _REFUSED.delay(refused))
                continue
            refused = 0
            try:
                await self._serve(slot.name, reader)
            finally:
                writer.close()

    async def _serve(self, slot: str, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionResetError):  # a killed server, as good as the end of its stream
            async for line in reader:
                await self._take(slot, json.loads(line))
        controller = self._controllers.get(slot)
        if controller is None:
            return
        if controller.disks:
            log.warning("function %s (%s) lost its emulation; its disk waits for it", slot, controller.pci)
            self._tree.set_nvme_state(controller.index, pci=controller.pci, state="resetting")
        else:
            self._drop(slot, controller)

    async def _take(self, slot: str, event: Mapping[str, Any]) -> None:
        match event["event"]:
            case "controller":
                await self._controller(slot, event)
            case "namespace_add":
                await self._add(self._controllers[slot], event)
            case "namespace_remove":
                await self._remove(self._controllers[slot], event["nsid"])
            case "namespace_resize":
                await self._resize(self._controllers[slot], event["nsid"], event["size"])
            case other:
                raise ValueError(f"function {slot}: the emulation sent an unknown event {other!r}")

    async def _controller(self, slot: str, event: Mapping[str, Any]) -> None:
        nqn = str(event["nqn"])
        current = self._controllers.get(slot)
        if current is not None and current.nqn == nqn:
            self._tree.set_nvme_state(current.index, pci=current.pci, state="live")
            log.info("function %s (%s) is back", slot, current.pci)
            return
        if current is not None:
            for nsid in list(current.disks):
                await self._remove(current, nsid)
            self._drop(slot, current)
        match = _SLOT.fullmatch(slot)
        if match is None:
            raise ValueError(f"{slot} is not the name of a function slot")
        taken = {controller.index for controller in self._controllers.values()}
        index = next(number for number in range(len(taken) + 1) if number not in taken)
        controller = Controller(index=index, nqn=nqn, pci=plan.storage_function(int(match[2])))
        self._controllers[slot] = controller
        self._tree.add_nvme_controller(
            index,
            pci=controller.pci,
            nqn=nqn,
            serial=str(event["serial"]),
            model=str(event["model"]),
            firmware=str(event.get("firmware", "")),
            cntlid=int(str(event["cntlid"])),
        )
        path = self._device_path(controller)
        self._uevents.send("add", f"{path}/nvme/nvme{index}", "nvme", DEVNAME=f"nvme{index}", NVME_TRTYPE="pcie")
        self._uevents.send("bind", path, "pci", DRIVER="nvme", PCI_SLOT_NAME=controller.pci)

    async def _add(self, controller: Controller, event: Mapping[str, Any]) -> None:
        nsid, uuid, size = int(str(event["nsid"])), str(event["uuid"]), int(str(event["size"]))
        known = controller.disks.get(nsid)
        if known is not None and known.uuid == uuid and known.file == Path(str(event["file"])):
            return  # it came back after its emulation was lost: the same disk, never gone
        if known is not None:
            await self._remove(controller, nsid)
        file = Path(str(event["file"]))
        loop = await loops.attach(
            file, offset=int(str(event.get("offset", 0))), size=size, read_only=bool(event.get("read_only", False))
        )
        disk = Disk(
            instance=controller.next_instance,
            nsid=nsid,
            uuid=uuid,
            file=file,
            loop=loop,
            device=loops.device_number(loop),
        )
        controller.next_instance += 1
        controller.disks[nsid] = disk
        node = self._node(controller, disk)
        node.unlink(missing_ok=True)
        os.mknod(node, 0o600 | stat.S_IFBLK, os.makedev(*disk.device))
        self._tree.add_nvme_namespace(
            controller.index,
            disk.instance,
            pci=controller.pci,
            nsid=nsid,
            uuid=uuid,
            nguid=str(uuid_module.UUID(str(event["nguid"]))),  # sysfs prints it with dashes
            size=size,
            device=disk.device,
        )
        self._block_uevent("add", controller, disk)
        log.info("function %s: disk %s, %d bytes, uuid %s", controller.pci, node.name, size, uuid)

    async def _remove(self, controller: Controller, nsid: int) -> None:
        disk = controller.disks.pop(nsid, None)
        if disk is None:
            return
        self._tree.remove_nvme_namespace(controller.index, disk.instance, pci=controller.pci, device=disk.device)
        self._node(controller, disk).unlink(missing_ok=True)
        self._block_uevent("remove", controller, disk)
        await loops.detach(disk.loop)

    async def _resize(self, controller: Controller, nsid: int, size: int) -> None:
        disk = controller.disks[nsid]
        await loops.resize(disk.loop, size=size)
        self._tree.set_nvme_size(controller.index, disk.instance, size=size)
        self._block_uevent("change", controller, disk, RESIZE="1")

    def _drop(self, slot: str, controller: Controller) -> None:
        del self._controllers[slot]
        self._tree.remove_nvme_controller(controller.index, pci=controller.pci)
        path = self._device_path(controller)
        self._uevents.send("remove", f"{path}/nvme/nvme{controller.index}", "nvme", DEVNAME=f"nvme{controller.index}")
        self._uevents.send("unbind", path, "pci", PCI_SLOT_NAME=controller.pci)

    def _block_uevent(self, action: str, controller: Controller, disk: Disk, **more: str) -> None:
        name = f"nvme{controller.index}n{disk.instance}"
        major, minor = disk.device
        self._uevents.send(
            action,
            f"/devices/virtual/nvme-subsystem/nvme-subsys{controller.index}/{name}",
            "block",
            DEVNAME=name,
            DEVTYPE="disk",
            MAJOR=str(major),
            MINOR=str(minor),
            **more,
        )

    def _node(self, controller: Controller, disk: Disk) -> Path:
        return self._devices / f"nvme{controller.index}n{disk.instance}"

    def _device_path(self, controller: Controller) -> str:
        return "/" + str(self._tree.device(controller.pci).relative_to(self._tree.root))
