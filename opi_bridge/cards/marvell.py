"""Marvell OCTEON: subsystems, namespace instances and controllers by RPCs of its own; errors come as a `status`."""

from collections.abc import Mapping, Sequence
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
from opi_bridge.errors import AlreadyExists, CardRefused, FailedPrecondition, NotFound, OutOfRange, Unimplemented
from opi_bridge.session import Session

_PREFIX: Final = "mrvl_nvm_"


class MarvellCard:
    """Functions are fixed by configuration; a port is Marvell's PCIe domain."""

    def __init__(self, session: Session, functions: Sequence[Function]) -> None:
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

    def check_endpoint(self, endpoint: Endpoint) -> None:
        if not isinstance(endpoint, Slot):
            raise Unimplemented("this card shows volumes on its PCI functions only")
        if endpoint not in self._functions:
            raise OutOfRange(f"the card has no function {endpoint}; it has {len(self._functions)} functions")

    async def functions(self) -> tuple[Function, ...]:
        return (await self.state()).functions

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

    async def create_subsystem(self, subsystem: Subsystem, *, psk: str = "") -> None:
        if subsystem.hosts or psk:
            raise Unimplemented("a PCI function has no host NQN: leave hostnqn empty")
        if await self.subsystem(subsystem.nqn) is not None:
            raise AlreadyExists(f"a subsystem with NQN {subsystem.nqn} exists already")
        params: dict[str, Any] = {"subnqn": subsystem.nqn, "mn": subsystem.model, "sn": subsystem.serial}
        if subsystem.max_namespaces:
            params["max_namespaces"] = subsystem.max_namespaces
        await self._do("create_subsystem", params)

    async def delete_subsystem(self, nqn: str) -> bool:
        if await self.subsystem(nqn) is None:
            return False
        await self._do("delete_subsystem", {"subnqn": nqn})
        return True

    async def create_namespace(self, nqn: str, namespace: Namespace) -> Namespace:
        subsystem = await self.subsystem(nqn)
        if subsystem is None:
            raise NotFound(f"there is no subsystem {nqn}")
        if subsystem.namespace(namespace.nsid) is not None:
            raise AlreadyExists(f"subsystem {nqn} has a namespace with NSID {namespace.nsid} already")
        params: dict[str, Any] = {"subnqn": nqn, "bdev": namespace.bdev, "share_enable": 0}
        identity = {"uuid": namespace.uuid, "nguid": namespace.nguid, "eui64": namespace.eui64}
        params |= {key: value for key, value in identity.items() if value}
        instance = (await self._do("subsys_alloc_ns", params))["ns_instance_id"]
        made = Namespace(
            instance, namespace.bdev, namespace.uuid, namespace.nguid, namespace.eui64, handle=str(instance)
        )
        if namespace.nsid and instance != namespace.nsid:
            await self.delete_namespace(nqn, made)
            raise FailedPrecondition(
                f"the card numbers the namespaces of {nqn} itself: the next one is {instance}, not {namespace.nsid}"
            )
        return made

    async def delete_namespace(self, nqn: str, namespace: Namespace) -> bool:
        subsystem = await self.subsystem(nqn)
        if subsystem is None or subsystem.namespace(namespace.nsid) is None:
            return False
        await self._do("subsys_unalloc_ns", {"subnqn": nqn, "ns_instance_id": namespace.nsid})
        return True

    async def create_controller(self, nqn: str, endpoint: Endpoint, limits: Limits) -> Controller:
        self.check_endpoint(endpoint)
        state = await self.state()
        if all(one.nqn != nqn for one in state.subsystems):
            raise NotFound(f"there is no subsystem {nqn}")
        function = next(f for f in state.functions if f.slot == endpoint)
        if function.nqn:
            raise AlreadyExists(f"function {endpoint} carries a controller of subsystem {function.nqn} already")
        slot = function.slot
        params: dict[str, Any] = {"subnqn": nqn, "pcie_domain_id": slot.port, "pf_id": slot.pf, "vf_id": slot.vf}
        if limits.controller_id is not None:
            params["ctrlr_id"] = limits.controller_id
        if limits.queues:
            params |= {"max_nsq": limits.queues, "max_ncq": limits.queues}
        made = (await self._do("subsys_create_ctrlr", params))["ctrlr_id"]
        return Controller(nqn, endpoint, handle=str(made), controller_id=made)

    async def attach_namespace(self, controller: Controller, namespace: Namespace) -> None:
        await self._do("ctrlr_attach_ns", _both(controller, namespace))

    async def detach_namespace(self, controller: Controller, namespace: Namespace) -> None:
        await self._do("ctrlr_detach_ns", _both(controller, namespace))

    async def expose(self, controller: Controller) -> None:
        """The host sees a controller as soon as it is there."""

    async def hide(self, controller: Controller) -> None:
        """Its namespaces are off by now; nothing else can be taken away before the controller itself."""

    async def delete_controller(self, controller: Controller) -> bool:
        subsystem = await self.subsystem(controller.nqn)
        if subsystem is None or subsystem.controller(controller.endpoint) is None:
            return False
        params = {"subnqn": controller.nqn, "ctrlr_id": int(controller.handle), "force": 1}
        await self._do("subsys_remove_ctrlr", params)
        return True

    async def abandon(self, endpoint: Endpoint) -> None:
        """The card's firmware takes the functions of a dead process from the host."""

    async def limit_controller(self, controller: Controller, least: Qos, most: Qos) -> None:
        if least != Qos() or most != Qos():
            raise Unimplemented("this card limits volumes, not controllers: use a QosVolume")

    async def resized(self, nqn: str, namespace: Namespace) -> None:
        """The card tells the host by itself."""


def _both(controller: Controller, namespace: Namespace) -> dict[str, Any]:
    return {
        "subnqn": controller.nqn,
        "ctrlr_id": int(controller.handle),
        "ns_instance_id": int(namespace.handle or namespace.nsid),
    }
