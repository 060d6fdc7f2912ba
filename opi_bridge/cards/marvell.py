"""Marvell OCTEON: subsystems, namespace instances and controllers by RPCs of its own; errors come as a `status`."""

from collections.abc import Mapping, Sequence
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
from opi_bridge.errors import CardRefused, FailedPrecondition
from opi_bridge.session import Session

_PREFIX: Final = "mrvl_nvm_"


class MarvellCard(ListingCard):
    """Functions are fixed by configuration; a port is Marvell's PCIe domain."""

    def __init__(self, session: Session, functions: Sequence[Function]) -> None:
        super().__init__()
        self._session = session
        self._functions = {function.slot: function for function in functions}

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(card="marvell", explicit_attach=True, encryption=False)

    async def prepare(self) -> None:
        await self._raw("get_subsys_list")

    async def _raw(self, method: str, params: Mapping[str, Any] | None = None) -> Any:
        try:
            answer = await self._session.raw(_PREFIX + method, params)
        except SpdkError as error:
            raise CardRefused(f"the card refuses {_PREFIX}{method}: {error.message}") from error
        # An error comes inside an answer that JSON-RPC calls a success.
        if answer.get("status", 0) != 0:
            raise CardRefused(f"the card answers {_PREFIX}{method} with status {answer['status']}")
        return answer

    async def _do(self, method: str, params: Mapping[str, Any]) -> Any:
        self._session.require()
        return await self._raw(method, params)

    async def state(self) -> CardState:
        self._session.require()
        listed = (await self._raw("get_subsys_list")).get("subsys_list", ())
        subsystems = [await self._subsystem(one["subnqn"]) for one in listed]
        users = {c.endpoint: s.nqn for s in subsystems for c in s.controllers}
        functions = tuple(
            Function(f.slot, f.vuid, f.pci_address, f.hotplug, users.get(slot, ""))
            for slot, f in self._functions.items()
        )
        return CardState(subsystems=tuple(subsystems), functions=functions)

    async def _subsystem(self, nqn: str) -> Subsystem:
        about = {"subnqn": nqn}
        info = (await self._raw("subsys_get_info", about)).get("subsys_list", [{}])[0]
        namespaces = []
        for one in (await self._raw("subsys_get_ns_list", about)).get("ns_list", ()):
            instance = one["ns_instance_id"]
            ns = await self._raw("ns_get_info", {**about, "ns_instance_id": instance})
            namespaces.append(
                Namespace(
                    instance,
                    ns.get("bdev", ""),
                    ns.get("uuid", "").lower(),
                    ns.get("nguid", "").lower(),
                    ns.get("eui64", "").lower(),
                    str(instance),
                )
            )
        controllers = []
        for one in (await self._raw("subsys_get_ctrlr_list", about)).get("ctrlr_id_list", ()):
            info_c = await self._raw("ctrlr_get_info", {**about, "ctrlr_id": one["ctrlr_id"]})
            slot = Slot(info_c.get("pcie_domain_id", 0), info_c.get("pf_id", 0), info_c.get("vf_id", 0))
            controllers.append(Controller(nqn, slot, handle=str(one["ctrlr_id"]), controller_id=one["ctrlr_id"]))
        return Subsystem(
            nqn=nqn,
            serial=info.get("sn", ""),
            model=info.get("mn", ""),
            max_namespaces=info.get("max_namespaces", 0),
            namespaces=tuple(namespaces),
            controllers=tuple(controllers),
        )

    async def subsystem(self, nqn: str) -> Subsystem | None:
        self._session.require()
        listed = (await self._raw("get_subsys_list")).get("subsys_list", ())
        return await self._subsystem(nqn) if any(one["subnqn"] == nqn for one in listed) else None

    async def make_subsystem(self, subsystem: Subsystem) -> None:
        params: dict[str, Any] = {"subnqn": subsystem.nqn, "mn": subsystem.model, "sn": subsystem.serial}
        if subsystem.max_namespaces:
            params["max_namespaces"] = subsystem.max_namespaces
        await self._do("create_subsystem", params)

    async def remove_subsystem(self, nqn: str) -> None:
        await self._do("delete_subsystem", {"subnqn": nqn})

    async def make_namespace(self, nqn: str, namespace: Namespace) -> Namespace:
        params = {"subnqn": nqn, "bdev": namespace.bdev, "share_enable": 0, **namespace.identity}
        instance = (await self._do("subsys_alloc_ns", params))["ns_instance_id"]
        made = replace(namespace, nsid=instance, handle=str(instance))
        if namespace.nsid and instance != namespace.nsid:
            await self.remove_namespace(nqn, made)
            raise FailedPrecondition(
                f"the card numbers the namespaces of {nqn} itself: the next one is {instance}, not {namespace.nsid}"
            )
        return made

    async def remove_namespace(self, nqn: str, namespace: Namespace) -> None:
        await self._do("subsys_unalloc_ns", {"subnqn": nqn, "ns_instance_id": namespace.nsid})

    async def make_controller(self, nqn: str, function: Function, limits: Limits) -> Controller:
        slot = function.slot
        params: dict[str, Any] = {"subnqn": nqn, "pcie_domain_id": slot.port, "pf_id": slot.pf, "vf_id": slot.vf}
        if limits.controller_id is not None:
            params["ctrlr_id"] = limits.controller_id
        if limits.queues:
            params |= {"max_nsq": limits.queues, "max_ncq": limits.queues}
        made = (await self._do("subsys_create_ctrlr", params))["ctrlr_id"]
        return Controller(nqn, slot, handle=str(made), controller_id=made)

    async def remove_controller(self, controller: Controller) -> None:
        params = {"subnqn": controller.nqn, "ctrlr_id": int(controller.handle), "force": 1}
        await self._do("subsys_remove_ctrlr", params)

    async def attach_namespace(self, controller: Controller, namespace: Namespace) -> None:
        await self._do("ctrlr_attach_ns", _both(controller, namespace))

    async def detach_namespace(self, controller: Controller, namespace: Namespace) -> None:
        await self._do("ctrlr_detach_ns", _both(controller, namespace))


def _both(controller: Controller, namespace: Namespace) -> dict[str, Any]:
    return {
        "subnqn": controller.nqn,
        "ctrlr_id": int(controller.handle),
        "ns_instance_id": int(namespace.handle or namespace.nsid),
    }
