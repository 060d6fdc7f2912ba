"""Virtio disks: one unix socket a controller, which a guest may connect to."""

from __future__ import annotations

import asyncio
import errno
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.spdk.bdevs import Bdev
from lab.spdk.dispatch import VHOST, method
from lab.spdk.failures import INTERNAL_ERROR, INVALID_PARAMS, refused

if TYPE_CHECKING:
    from lab.spdk.instance import Instance

_log = logging.getLogger(__name__)


class Guest(asyncio.Protocol):
    def __init__(self, controller: VhostController) -> None:
        self._controller = controller

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._controller.guests.append(self)
        if self._controller.bdev is not None:
            self._controller.bdev.openers += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._controller.guests.remove(self)
        if self._controller.bdev is not None:
            self._controller.bdev.openers -= 1
        if not self._controller.guests:
            self._controller.left.set()


@dataclass(eq=False)
class VhostController:
    name: str
    socket: str
    cpumask: int
    readonly: bool
    bdev: Bdev | None
    guests: list[Guest] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    server: asyncio.Server | None = None

    def describe(self) -> dict[str, Any]:
        return {
            "ctrlr": self.name,
            "cpumask": f"{self.cpumask:#x}",
            "delay_base_us": 0,
            "iops_threshold": 60000,
            "socket": self.socket,
            "sessions": [
                {
                    "vid": number,
                    "id": number,
                    "name": f"{self.name}s{number}",
                    "started": True,
                    "max_queues": 1,
                    "inflight_task_cnt": 0,
                }
                for number, _ in enumerate(self.guests)
            ],
            "backend_specific": {
                "block": {
                    "readonly": self.readonly,
                    "bdev": self.bdev.name if self.bdev else None,
                    "transport": "vhost_user_blk",
                }
            },
        }


class Vhost:
    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self.controllers: dict[str, VhostController] = {}
        instance.on_exit.append(self._close)

    async def create(self, name: str, bdev: Bdev, *, cpumask: int, readonly: bool) -> None:
        path = Path(self._instance.settings.vhost_directory) / name
        controller = VhostController(name, str(path), cpumask, readonly, bdev)
        self.controllers[name] = controller
        path.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        controller.server = await loop.create_unix_server(lambda: Guest(controller), str(path))

        def gone() -> None:
            controller.bdev = None

        bdev.on_removed.append(gone)
        bdev.writers += 1

    async def delete(self, controller: VhostController) -> None:
        # As the real one: it waits for the guest, however long that takes.
        if controller.guests:
            controller.left.clear()
            await controller.left.wait()
        self.controllers.pop(controller.name, None)
        self._remove_socket(controller)
        if controller.bdev is not None:
            controller.bdev.writers -= 1
            controller.bdev = None

    def _remove_socket(self, controller: VhostController) -> None:
        if controller.server is not None:
            controller.server.close()
        Path(controller.socket).unlink(missing_ok=True)

    def _close(self) -> None:
        for controller in self.controllers.values():
            self._remove_socket(controller)


@method("vhost_create_blk_controller", refusal=VHOST)
async def create_blk(instance: Instance, params: dict[str, Any]) -> bool:
    mask = instance.settings.core_mask
    try:
        asked = int(params.get("cpumask", hex(mask)), 16)
    except ValueError as error:
        raise refused(errno.EINVAL, INVALID_PARAMS) from error
    if not asked or asked & ~mask:
        raise refused(errno.EINVAL, INVALID_PARAMS)
    bdev = instance.bdevs.find(params["dev_name"])
    if bdev is None:
        raise refused(errno.ENODEV, INVALID_PARAMS)
    if params["ctrlr"] in instance.vhost.controllers:
        raise refused(errno.EEXIST, INVALID_PARAMS)
    if bdev.claims:
        raise refused(errno.EPERM, INVALID_PARAMS)
    await instance.vhost.create(params["ctrlr"], bdev, cpumask=asked, readonly=params.get("readonly", False))
    return True


@method("vhost_delete_controller", refusal=VHOST)
async def delete(instance: Instance, params: dict[str, Any]) -> bool:
    controller = instance.vhost.controllers.get(params["ctrlr"])
    if controller is None:
        raise refused(errno.ENODEV, INVALID_PARAMS)
    await instance.vhost.delete(controller)
    return True


@method("vhost_get_controllers", refusal=VHOST, optional=True)
def get_controllers(instance: Instance, params: dict[str, Any]) -> list[dict[str, Any]]:
    controllers = instance.vhost.controllers
    name = params.get("name")
    if name is not None and name not in controllers:
        raise refused(errno.ENODEV, INTERNAL_ERROR)
    return [controller.describe() for _, controller in sorted(controllers.items()) if name in (None, controller.name)]
