"""NVIDIA SNAP-3 on BlueField-2: namespaces exist on controllers only, which therefore come first.

What a client makes of a subsystem before it has a controller is kept in the ledger, inside SNAP's own process, and put
onto each controller as that is made.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
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
from opi_bridge.ledger import Ledger
from opi_bridge.names import Name
from opi_bridge.session import Session

_ENTRIES: Final = "snap3Namespaces"


class Snap3Card(ListingCard):
    def __init__(self, session: Session, ledger: Ledger, *, manager: str) -> None:
        super().__init__()
        self._session = session
        self._ledger = ledger
        self._manager = manager

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(card="snap3", explicit_attach=True, transports=("tcp", "rdma"))

    async def prepare(self) -> None:
        await self._list()

    async def _list(self) -> list[Mapping[str, Any]]:
        controllers: list[Mapping[str, Any]] = [
            one for one in await self._session.raw("controller_list") if one.get("type", "nvme") == "nvme"
        ]
        users = {_slot(one): one["subnqn"] for one in controllers}
        found = {}
        for one in await self._session.raw("emulation_functions_list"):
            if one.get("emulation_type", "nvme").lower() == "nvme":
                slot = _slot(one)
                found[slot] = Function(slot, pci_address=one.get("pci_bdf", ""), nqn=users.get(slot, ""))
        self._functions = found
        return controllers

    async def functions(self) -> tuple[Function, ...]:
        await self._list()
        return tuple(self._functions.values())

    async def state(self) -> CardState:
        self._session.require()
        controllers = await self._list()
        subsystems = [self._subsystem(one, controllers) for one in await self._session.raw("subsystem_nvme_list")]
        return CardState(subsystems=tuple(subsystems), functions=tuple(self._functions.values()))

    def _subsystem(self, raw: Mapping[str, Any], controllers: list[Mapping[str, Any]]) -> Subsystem:
        nqn = raw["nqn"]
        return Subsystem(
            nqn=nqn,
            serial=raw.get("serial_number", ""),
            model=raw.get("model_number", ""),
            max_namespaces=raw.get("maximum_namespaces", 0),
            namespaces=tuple(
                Namespace(int(v["nsid"]), v["bdev"], v["uuid"], v["nguid"], v["eui64"], v["nsid"])
                for _, v in sorted(self._ledger.under(_owner(nqn), _ENTRIES), key=lambda entry: int(entry[1]["nsid"]))
            ),
            controllers=tuple(
                Controller(nqn, _slot(one), handle=one["name"], controller_id=one.get("cntlid"))
                for one in controllers
                if one["subnqn"] == nqn
            ),
        )

    async def _do(self, method: str, params: Mapping[str, Any]) -> Any:
        try:
            return await self._session.call(method, params)
        except SpdkError as error:
            raise CardRefused(f"SNAP refuses {method}: {error.message}") from error

    async def make_subsystem(self, subsystem: Subsystem) -> None:
        params: dict[str, Any] = {
            "nqn": subsystem.nqn,
            "serial_number": subsystem.serial or "SNAP",
            "model_number": subsystem.model or "SNAP",
        }
        if subsystem.max_namespaces:
            params["maximum_namespaces"] = subsystem.max_namespaces
        await self._do("subsystem_nvme_create", params)

    async def remove_subsystem(self, nqn: str) -> None:
        await self._do("subsystem_nvme_delete", {"nqn": nqn})

    async def make_namespace(self, nqn: str, namespace: Namespace) -> Namespace:
        values = {"nsid": str(namespace.nsid), "bdev": namespace.bdev, "uuid": namespace.uuid}
        values |= {"nguid": namespace.nguid, "eui64": namespace.eui64}
        await self._ledger.put(_owner(nqn).child(_ENTRIES, str(namespace.nsid)), values)
        return replace(namespace, handle=str(namespace.nsid))

    async def remove_namespace(self, nqn: str, namespace: Namespace) -> None:
        await self._ledger.drop(_owner(nqn).child(_ENTRIES, str(namespace.nsid)))

    async def make_controller(self, nqn: str, function: Function, limits: Limits) -> Controller:
        params: dict[str, Any] = {"emulation_manager": self._manager, "nqn": nqn, "pf_id": function.slot.pf}
        if function.slot.vf:
            params["vf_id"] = function.slot.vf - 1
        if limits.queues:
            params["nr_io_queues"] = limits.queues
        if limits.namespaces:
            params["max_namespaces"] = limits.namespaces
        answer = await self._do("controller_nvme_create", params)
        return Controller(nqn, function.slot, handle=answer["name"], controller_id=answer.get("cntlid"))

    async def remove_controller(self, controller: Controller) -> None:
        await self._do("controller_nvme_delete", {"name": controller.handle})

    async def attach_namespace(self, controller: Controller, namespace: Namespace) -> None:
        params = {"ctrl": controller.handle, "bdev_type": "spdk", "bdev": namespace.bdev, "nsid": namespace.nsid}
        await self._do("controller_nvme_namespace_attach", {**params, **namespace.identity})

    async def detach_namespace(self, controller: Controller, namespace: Namespace) -> None:
        await self._do("controller_nvme_namespace_detach", {"ctrl": controller.handle, "nsid": namespace.nsid})


def _slot(raw: Mapping[str, Any]) -> Slot:
    vf = raw.get("vf_id", raw.get("vf_index"))
    pf = raw.get("pf_id", raw.get("pf_index", 0))
    return Slot(0, pf, 0 if vf is None else vf + 1)


def _owner(nqn: str) -> Name:
    return Name((("snap3Subsystems", hashlib.blake2s(nqn.encode(), digest_size=8).hexdigest()),))
