"""QEMU's own NVMe controllers, hot-plugged into a running guest over QMP: a card for machines in a VM lab.

A function is a PCI Express root port of the guest. What a client makes of a subsystem is kept in the ledger, inside
SPDK, and a controller appears when it gets its namespace, since QEMU makes both at once. Facts this rests on (QEMU
10.0): neither subsystems nor namespaces can be hot-plugged, so that a controller has one namespace, its NSID is 1, and
it has no uuid of ours: the guest knows the disk by the function and by the serial number. The volume reaches QEMU as a
network block device of this machine.
"""

import hashlib
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from foundation.spdk.errors import SpdkError
from opi_bridge.cards.listing_card import ListingCard
from opi_bridge.cards.model import (
    Capabilities,
    CardState,
    Controller,
    Endpoint,
    Function,
    Limits,
    Namespace,
    Slot,
    Subsystem,
)
from opi_bridge.cards.qmp import Qmp, QmpError
from opi_bridge.errors import CardRefused, FailedPrecondition, Unimplemented
from opi_bridge.ledger import Ledger
from opi_bridge.names import ROOT, Name
from opi_bridge.session import Session

_SUBSYSTEMS: Final = "qemuSubsystems"
_NAMESPACES: Final = "qemuNamespaces"
_CONTROLLERS: Final = "qemuControllers"
_NSID: Final = 1
_SERIAL_LENGTH: Final = 20


class QemuCard(ListingCard):
    """`ports` names the root port of each function; a guest gets `wait` seconds to let a controller go."""

    def __init__(
        self, session: Session, ledger: Ledger, qmp: Qmp, ports: Mapping[Slot, tuple[Function, str]], *, wait: float
    ) -> None:
        super().__init__()
        self._session = session
        self._ledger = ledger
        self._qmp = qmp
        self._ports = {slot: port for slot, (_, port) in ports.items()}
        self._functions = {slot: function for slot, (function, _) in ports.items()}
        self._wait = wait

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            card="qemu", hotplug=True, explicit_attach=True, shared_controller=False, namespaces_per_controller=1
        )

    async def prepare(self) -> None:
        await self._plugged()

    async def _plugged(self) -> set[str]:
        """The ids of all devices that were plugged in or named at the guest's start."""
        return {one["name"] for one in await self._qmp.execute("qom-list", {"path": "/machine/peripheral"})}

    async def state(self) -> CardState:
        self._session.require()
        plugged = await self._plugged()
        subsystems = [self._subsystem(name, values, plugged) for name, values in self._ledger.under(ROOT, _SUBSYSTEMS)]
        users = {controller.endpoint: one.nqn for one in subsystems for controller in one.controllers}
        functions = tuple(
            replace(function, hotplug=True, nqn=users.get(slot, "")) for slot, function in self._functions.items()
        )
        return CardState(subsystems=tuple(subsystems), functions=functions)

    def _subsystem(self, name: Name, values: Mapping[str, str], plugged: set[str]) -> Subsystem:
        namespaces = [
            Namespace(_NSID, v["bdev"], v["uuid"], v["nguid"], v["eui64"], str(_NSID))
            for _, v in self._ledger.under(name, _NAMESPACES)
        ]
        slots = [Slot(int(v["port"]), int(v["pf"]), int(v["vf"])) for _, v in self._ledger.under(name, _CONTROLLERS)]
        return Subsystem(
            nqn=values["nqn"],
            serial=values["serial"],
            model=values["model"],
            max_namespaces=1,
            namespaces=tuple(namespaces),
            controllers=tuple(
                Controller(values["nqn"], slot, handle=slot.id, active=_device(slot) in plugged) for slot in slots
            ),
        )

    async def make_subsystem(self, subsystem: Subsystem) -> None:
        if len(subsystem.serial) > _SERIAL_LENGTH:
            raise FailedPrecondition(f"serial number {subsystem.serial!r} is longer than {_SERIAL_LENGTH} characters")
        values = {"nqn": subsystem.nqn, "serial": subsystem.serial, "model": subsystem.model}
        await self._ledger.put(_name(subsystem.nqn), values)

    async def remove_subsystem(self, nqn: str) -> None:
        await self._ledger.drop(_name(nqn))

    async def make_namespace(self, nqn: str, namespace: Namespace) -> Namespace:
        if namespace.nsid != _NSID:
            raise Unimplemented(f"a hot-plugged controller of QEMU has one namespace, NSID {_NSID}")
        values = {"bdev": namespace.bdev, "uuid": namespace.uuid, "nguid": namespace.nguid, "eui64": namespace.eui64}
        await self._ledger.put(_name(nqn).child(_NAMESPACES, str(_NSID)), values)
        return replace(namespace, handle=str(_NSID))

    async def remove_namespace(self, nqn: str, namespace: Namespace) -> None:
        await self._ledger.drop(_name(nqn).child(_NAMESPACES, str(_NSID)))

    async def make_controller(self, nqn: str, function: Function, limits: Limits) -> Controller:
        slot = function.slot
        values = {"port": str(slot.port), "pf": str(slot.pf), "vf": str(slot.vf)}
        if limits.queues:
            values["queues"] = str(limits.queues)
        await self._ledger.put(_name(nqn).child(_CONTROLLERS, slot.id), values)
        return Controller(nqn, slot, handle=slot.id, active=False)

    async def remove_controller(self, controller: Controller) -> None:
        assert isinstance(controller.endpoint, Slot)
        await self._unplug(controller.endpoint)
        await self._ledger.drop(_name(controller.nqn).child(_CONTROLLERS, controller.endpoint.id))

    async def attach_namespace(self, controller: Controller, namespace: Namespace) -> None:
        assert isinstance(controller.endpoint, Slot)
        slot = controller.endpoint
        # What is there under these names is left from a process that died, with a volume that is gone.
        await self._unplug(slot)
        path = await self._start_disk(namespace.bdev)
        kind = "host_device" if stat.S_ISBLK(Path(path).stat().st_mode) else "file"
        node = {"driver": "raw", "node-name": _node(slot), "file": {"driver": kind, "filename": path}}
        await self._qmp.execute("blockdev-add", node)
        subsystem = self._ledger.get(_name(controller.nqn)) or {}
        values = self._ledger.get(_name(controller.nqn).child(_CONTROLLERS, slot.id)) or {}
        device: dict[str, Any] = {"driver": "nvme", "id": _device(slot), "bus": self._ports[slot], "drive": _node(slot)}
        device["serial"] = subsystem.get("serial") or _serial(controller.nqn)
        if "queues" in values:
            device["max_ioqpairs"] = int(values["queues"])
        await self._qmp.execute("device_add", device)

    async def detach_namespace(self, controller: Controller, namespace: Namespace) -> None:
        assert isinstance(controller.endpoint, Slot)
        await self._unplug(controller.endpoint)
        await self._stop_disk(namespace.bdev)

    async def abandon(self, endpoint: Endpoint) -> None:
        if isinstance(endpoint, Slot) and endpoint in self._functions:
            await self._unplug(endpoint)

    async def _unplug(self, slot: Slot) -> None:
        await self._qmp.delete_device(_device(slot), wait=self._wait)
        try:
            await self._qmp.execute("blockdev-del", {"node-name": _node(slot)})
        except QmpError as error:
            if "Failed to find" not in str(error):
                raise

    async def _start_disk(self, bdev: str) -> str:
        for disk in await self._session.call("nbd_get_disks"):
            if disk["bdev_name"] == bdev:
                return str(disk["nbd_device"])
        try:
            return str(await self._session.call("nbd_start_disk", {"bdev_name": bdev}))
        except SpdkError as error:
            raise CardRefused(
                f"volume {bdev} cannot be made a block device of this machine: {error.message}"
            ) from error

    async def _stop_disk(self, bdev: str) -> None:
        for disk in await self._session.call("nbd_get_disks"):
            if disk["bdev_name"] == bdev:
                await self._session.call("nbd_stop_disk", {"nbd_device": disk["nbd_device"]})


def _name(nqn: str) -> Name:
    return ROOT.child(_SUBSYSTEMS, hashlib.blake2s(nqn.encode(), digest_size=8).hexdigest())


def _serial(nqn: str) -> str:
    return hashlib.sha256(nqn.encode()).hexdigest()[:_SERIAL_LENGTH]


def _device(slot: Slot) -> str:
    return f"dpu-{slot.id}"


def _node(slot: Slot) -> str:
    """Node names are shorter than 32 characters."""
    return f"dpu-{slot.port}-{slot.pf}-{slot.vf}"
