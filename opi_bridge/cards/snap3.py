"""NVIDIA SNAP-3 on BlueField-2: namespaces exist on controllers only, which therefore come first.

What a client makes of a subsystem before it has a controller is kept in the ledger, inside SNAP's own process, and put
onto each controller as that is made.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Final

from foundation.spdk.errors import SpdkError
from opi_bridge.cards.model import (
    Capabilities,
    CardState,
    Controller,
    Endpoint,
    Function,
    Limits,
    Namespace,
    Qos,
    Slot,
    Subsystem,
)
from opi_bridge.errors import AlreadyExists, CardRefused, NotFound, OutOfRange, Unimplemented
from opi_bridge.ledger import Ledger
from opi_bridge.names import Name
from opi_bridge.session import Session

_ENTRIES: Final = "snap3Namespaces"


class Snap3Card:
    def __init__(self, session: Session, ledger: Ledger, *, manager: str) -> None:
        self._session = session
        self._ledger = ledger
        self._manager = manager
        self._functions: dict[Slot, Function] = {}

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

    def check_endpoint(self, endpoint: Endpoint) -> None:
        if not isinstance(endpoint, Slot):
            raise Unimplemented("this card shows volumes on its PCI functions only")
        if endpoint not in self._functions:
            raise OutOfRange(f"the card has no function {endpoint}; it has {len(self._functions)} functions")

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

    async def subsystem(self, nqn: str) -> Subsystem | None:
        return next((one for one in (await self.state()).subsystems if one.nqn == nqn), None)

    async def _do(self, method: str, params: Mapping[str, Any]) -> Any:
        try:
            return await self._session.call(method, params)
        except SpdkError as error:
            raise CardRefused(f"SNAP refuses {method}: {error.message}") from error

    async def create_subsystem(self, subsystem: Subsystem, *, psk: str = "") -> None:
        if subsystem.hosts or psk:
            raise Unimplemented("a PCI function has no host NQN: leave hostnqn empty")
        if await self.subsystem(subsystem.nqn) is not None:
            raise AlreadyExists(f"a subsystem with NQN {subsystem.nqn} exists already")
        params: dict[str, Any] = {
            "nqn": subsystem.nqn,
            "serial_number": subsystem.serial or "SNAP",
            "model_number": subsystem.model or "SNAP",
        }
        if subsystem.max_namespaces:
            params["maximum_namespaces"] = subsystem.max_namespaces
        await self._do("subsystem_nvme_create", params)

    async def delete_subsystem(self, nqn: str) -> bool:
        if await self.subsystem(nqn) is None:
            return False
        await self._do("subsystem_nvme_delete", {"nqn": nqn})
        return True

    async def create_namespace(self, nqn: str, namespace: Namespace) -> Namespace:
        subsystem = await self.subsystem(nqn)
        if subsystem is None:
            raise NotFound(f"there is no subsystem {nqn}")
        if subsystem.namespace(namespace.nsid) is not None:
            raise AlreadyExists(f"subsystem {nqn} has a namespace with NSID {namespace.nsid} already")
        values = {"nsid": str(namespace.nsid), "bdev": namespace.bdev, "uuid": namespace.uuid}
        values |= {"nguid": namespace.nguid, "eui64": namespace.eui64}
        await self._ledger.put(_owner(nqn).child(_ENTRIES, str(namespace.nsid)), values)
        return Namespace(
            namespace.nsid, namespace.bdev, namespace.uuid, namespace.nguid, namespace.eui64, str(namespace.nsid)
        )

    async def delete_namespace(self, nqn: str, namespace: Namespace) -> bool:
        name = _owner(nqn).child(_ENTRIES, str(namespace.nsid))
        found = self._ledger.get(name) is not None
        await self._ledger.drop(name)
        return found

    async def create_controller(self, nqn: str, endpoint: Endpoint, limits: Limits) -> Controller:
        self.check_endpoint(endpoint)
        state = await self.state()
        if all(one.nqn != nqn for one in state.subsystems):
            raise NotFound(f"there is no subsystem {nqn}")
        function = next(f for f in state.functions if f.slot == endpoint)
        if function.nqn:
            raise AlreadyExists(f"function {endpoint} carries a controller of subsystem {function.nqn} already")
        params: dict[str, Any] = {"emulation_manager": self._manager, "nqn": nqn, "pf_id": function.slot.pf}
        if function.slot.vf:
            params["vf_id"] = function.slot.vf - 1
        if limits.queues:
            params["nr_io_queues"] = limits.queues
        if limits.namespaces:
            params["max_namespaces"] = limits.namespaces
        answer = await self._do("controller_nvme_create", params)
        return Controller(nqn, endpoint, handle=answer["name"], controller_id=answer.get("cntlid"))

    async def attach_namespace(self, controller: Controller, namespace: Namespace) -> None:
        params = {"ctrl": controller.handle, "bdev_type": "spdk", "bdev": namespace.bdev, "nsid": namespace.nsid}
        identity = {"uuid": namespace.uuid, "nguid": namespace.nguid, "eui64": namespace.eui64}
        params |= {key: value for key, value in identity.items() if value}
        await self._do("controller_nvme_namespace_attach", params)

    async def detach_namespace(self, controller: Controller, namespace: Namespace) -> None:
        await self._do("controller_nvme_namespace_detach", {"ctrl": controller.handle, "nsid": namespace.nsid})

    async def expose(self, controller: Controller) -> None:
        """The host sees a controller as soon as it is there."""

    async def hide(self, controller: Controller) -> None:
        """Its namespaces are off by now; nothing else can be taken away before the controller itself."""

    async def delete_controller(self, controller: Controller) -> bool:
        there = {one["name"] for one in await self._list()}
        if controller.handle not in there:
            return False
        await self._do("controller_nvme_delete", {"name": controller.handle})
        return True

    async def abandon(self, endpoint: Endpoint) -> None:
        """The card's firmware takes the functions of a dead process from the host."""

    async def limit_controller(self, controller: Controller, least: Qos, most: Qos) -> None:
        if least != Qos() or most != Qos():
            raise Unimplemented("this card limits volumes, not controllers: use a QosVolume")

    async def resized(self, nqn: str, namespace: Namespace) -> None:
        """SNAP tells the host by itself."""


def _slot(raw: Mapping[str, Any]) -> Slot:
    vf = raw.get("vf_id", raw.get("vf_index"))
    pf = raw.get("pf_id", raw.get("pf_index", 0))
    return Slot(0, pf, 0 if vf is None else vf + 1)


def _owner(nqn: str) -> Name:
    return Name((("snap3Subsystems", hashlib.blake2s(nqn.encode(), digest_size=8).hexdigest()),))
