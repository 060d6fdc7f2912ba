"""NVIDIA SNAP-4 on BlueField-3: functions known by VUID, controllers made suspended, then resumed or hot-plugged.

SNAP lists before it acts, since its errors do not say why: so does this card. Hot-plug functions are made once, powered
off, so that their VUIDs are known before any volume is on them.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from foundation.spdk.errors import SpdkError
from opi_bridge.cards.listing_card import ListingCard
from opi_bridge.cards.model import (
    Capabilities,
    CardState,
    Controller,
    Function,
    Limits,
    Namespace,
    Slot,
    Subsystem,
)
from opi_bridge.errors import CardRefused
from opi_bridge.session import Session

# SNAP's word for a function that the host has not enumerated yet.
_NO_ADDRESS: Final = "00:00.0"
_HOTPLUG_SECONDS: Final = 30.0
_SUSPEND_MS: Final = 5000


class Snap4Card(ListingCard):
    def __init__(self, session: Session, *, hotplug: int) -> None:
        super().__init__()
        self._session = session
        self._hotplug = hotplug

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            card="snap4",
            hotplug=self._hotplug > 0,
            suspend=True,
            vuid=True,
            explicit_attach=True,
            shared_controller=True,
            transports=("tcp", "rdma"),
        )

    async def prepare(self) -> None:
        await self._list_functions()
        there = sum(function.hotplug for function in self._functions.values())
        for _ in range(self._hotplug - there):
            await self._session.raw("nvme_function_create")
        if there < self._hotplug:
            await self._list_functions()

    async def _list_functions(self) -> None:
        listed, controllers = await asyncio.gather(
            self._session.raw("emulation_function_list", {"all": True}), self._session.raw("nvme_controller_list")
        )
        users = {one["ctrl_id"]: one["nqn"] for one in controllers}
        found = {}
        for physical in listed:
            if physical.get("emulation_type", "nvme").lower() != "nvme":
                continue
            pf = physical["pf_index"]
            for vf, one in [
                (0, physical),
                *((virtual["vf_index"] + 1, virtual) for virtual in physical.get("vfs", ())),
            ]:
                slot = Slot(0, pf, vf)
                address = one.get("pci_bdf", "")
                found[slot] = Function(
                    slot,
                    vuid=one.get("vuid", ""),
                    pci_address="" if address == _NO_ADDRESS else address,
                    hotplug=bool(physical.get("hotplugged")),
                    nqn=users.get(one.get("ctrl_id"), ""),
                )
        self._functions = found

    async def functions(self) -> tuple[Function, ...]:
        await self._list_functions()
        return tuple(self._functions.values())

    async def state(self) -> CardState:
        self._session.require()
        subsystems, namespaces, controllers, _ = await asyncio.gather(
            self._session.raw("nvme_subsystem_list"),
            self._session.raw("nvme_namespace_list"),
            self._session.raw("nvme_controller_list"),
            self._list_functions(),
        )
        made = tuple(self._subsystem(one, namespaces, controllers) for one in subsystems)
        return CardState(subsystems=made, functions=tuple(self._functions.values()))

    def _subsystem(
        self, raw: Mapping[str, Any], namespaces: Sequence[Mapping[str, Any]], controllers: Sequence[Mapping[str, Any]]
    ) -> Subsystem:
        nqn = raw["nqn"]
        return Subsystem(
            nqn=nqn,
            serial=raw.get("sn", ""),
            model=raw.get("mn", ""),
            max_namespaces=raw.get("mnan", 0),
            namespaces=tuple(
                Namespace(one["nsid"], one["bdev_name"], one.get("uuid", "").lower(), handle=str(one["nsid"]))
                for one in namespaces
                if one["nqn"] == nqn
            ),
            controllers=tuple(self._controller(one) for one in controllers if one["nqn"] == nqn),
        )

    def _controller(self, raw: Mapping[str, Any]) -> Controller:
        slot = next((slot for slot, f in self._functions.items() if f.vuid and f.vuid == raw.get("vuid")), None)
        if slot is None:
            slot = Slot(0, raw.get("pf_id", 0), raw["vf_id"] + 1 if "vf_id" in raw else 0)
        return Controller(raw["nqn"], slot, handle=raw["ctrl_id"], active=not raw.get("suspended", False))

    async def _do(self, method: str, params: Mapping[str, Any], *, seconds: float = 0.0) -> Any:
        try:
            return await self._session.call(method, params, deadline=seconds)
        except SpdkError as error:
            raise CardRefused(f"SNAP refuses {method}: {error.message}") from error

    async def make_subsystem(self, subsystem: Subsystem) -> None:
        more = {"sn": subsystem.serial, "mn": subsystem.model, "mnan": subsystem.max_namespaces}
        params = {"nqn": subsystem.nqn, **{key: value for key, value in more.items() if value}}
        await self._do("nvme_subsystem_create", params)

    async def remove_subsystem(self, nqn: str) -> None:
        await self._do("nvme_subsystem_destroy", {"nqn": nqn})

    async def make_namespace(self, nqn: str, namespace: Namespace) -> Namespace:
        params = {"bdev_name": namespace.bdev, "nqn": nqn, "nsid": namespace.nsid}
        await self._do("nvme_namespace_create", {**params, **({"uuid": namespace.uuid} if namespace.uuid else {})})
        return Namespace(namespace.nsid, namespace.bdev, namespace.uuid, handle=str(namespace.nsid))

    async def remove_namespace(self, nqn: str, namespace: Namespace) -> None:
        await self._do("nvme_namespace_destroy", {"nqn": nqn, "nsid": namespace.nsid})

    async def make_controller(self, nqn: str, function: Function, limits: Limits) -> Controller:
        params: dict[str, Any] = {"nqn": nqn, "suspended": True}
        if function.vuid:
            params["vuid"] = function.vuid
        else:
            params["pf_id"] = function.slot.pf
            if function.slot.vf:
                params["vf_id"] = function.slot.vf - 1
        if limits.queues:
            params["num_queues"] = limits.queues
        answer = await self._do("nvme_controller_create", params)
        return Controller(nqn, function.slot, handle=answer["ctrl_id"], active=False)

    async def remove_controller(self, controller: Controller) -> None:
        await self._do("nvme_controller_destroy", {"ctrl_id": controller.handle})

    async def attach_namespace(self, controller: Controller, namespace: Namespace) -> None:
        await self._do("nvme_controller_attach_ns", {"ctrl_id": controller.handle, "nsid": namespace.nsid})

    async def detach_namespace(self, controller: Controller, namespace: Namespace) -> None:
        await self._do("nvme_controller_detach_ns", {"ctrl_id": controller.handle, "nsid": namespace.nsid})

    async def expose(self, controller: Controller) -> None:
        await self._do("nvme_controller_resume", {"ctrl_id": controller.handle})
        if self._plugged(controller):
            params = {"ctrl_id": controller.handle, "wait_for_done": True}
            await self._do("nvme_controller_hotplug", params, seconds=_HOTPLUG_SECONDS)

    async def hide(self, controller: Controller) -> None:
        if self._plugged(controller):
            params = {"ctrl_id": controller.handle, "wait_for_done": True}
            await self._do("nvme_controller_hotunplug", params, seconds=_HOTPLUG_SECONDS)
        elif controller.active:
            await self._do("nvme_controller_suspend", {"ctrl_id": controller.handle, "timeout_ms": _SUSPEND_MS})

    def _plugged(self, controller: Controller) -> bool:
        function = self._functions.get(controller.endpoint) if isinstance(controller.endpoint, Slot) else None
        return function is not None and function.hotplug
