"""Cards whose process is SPDK's own NVMe-oF target with one more kind of listener for the PCI side.

What a card of this family adds is how a function is written as a listen address: `listen_address` and `slot_of`, and
what surrounds a listener on the host's side: `expose` and `hide`.

SPDK's nvmf methods answer "Invalid parameters" to nearly every mistake, so a refusal is understood by reading back.
"""

import asyncio
import ipaddress
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Final

from foundation.spdk.errors import SpdkError
from opi_bridge.cards.model import (
    Capabilities,
    CardState,
    Controller,
    Endpoint,
    Fabric,
    Function,
    Limits,
    Namespace,
    Qos,
    Slot,
    Subsystem,
)
from opi_bridge.errors import (
    AlreadyExists,
    CardRefused,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    Unimplemented,
)
from opi_bridge.session import Session

_DISCOVERY: Final = "Discovery"


class SpdkNvmfCard(ABC):
    """One SPDK process; `functions` are fixed by configuration."""

    def __init__(self, session: Session, functions: Sequence[Function]) -> None:
        self._session = session
        self._functions = {function.slot: function for function in functions}
        # Which subsystem listens on which function, as last read: spares a full read for each controller.
        self._users: dict[Slot, str] = {}
        # Functions on which a controller is being made, so that two calls cannot both find one free.
        self._reserved: dict[Slot, str] = {}

    # --- what differs by card

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities: ...

    @abstractmethod
    def listen_address(self, slot: Slot) -> dict[str, str]:
        """The listen address that puts a controller on this function."""

    @abstractmethod
    def slot_of(self, address: Mapping[str, str]) -> Slot | None:
        """The function behind a listen address; None when it is not one of this card's."""

    def listener_options(self, limits: Limits) -> dict[str, Any]:
        """More parameters of add_listener, for what a controller may use."""
        return {}

    async def before_listening(self, slot: Slot) -> None:
        """Make the place of the listener usable; nobody listens there."""
        return

    async def expose(self, controller: Controller) -> None:
        """The host sees a listener's controller as soon as it looks."""
        return

    async def hide(self, controller: Controller) -> None:
        """Nothing stands between the host and the listener."""
        return

    async def after_listening(self, slot: Slot) -> None:
        """Clear the place of a listener that is gone."""
        return

    async def abandon(self, endpoint: Endpoint) -> None:
        if isinstance(endpoint, Slot) and not self._users.get(endpoint) and endpoint in self._functions:
            await self.after_listening(endpoint)

    async def limit_controller(self, controller: Controller, least: Qos, most: Qos) -> None:
        if least != Qos() or most != Qos():
            raise Unimplemented("this card limits volumes, not controllers: use a QosVolume")

    # --- what is the same

    async def prepare(self) -> None:
        transport = self._pci_transport
        if transport:
            await self._ensure_transport(transport)
        await self._read()

    @property
    def _pci_transport(self) -> str:
        slot = next(iter(self._functions), None)
        return self.listen_address(slot)["trtype"].upper() if slot is not None else ""

    async def _ensure_transport(self, trtype: str) -> None:
        there = {t["trtype"].upper() for t in await self._session.raw("nvmf_get_transports")}
        if trtype.upper() in there:
            return
        try:
            await self._session.raw("nvmf_create_transport", {"trtype": trtype.upper()})
        except SpdkError as error:
            raise Unimplemented(f"SPDK cannot open the transport {trtype}: {error}") from error

    def check_endpoint(self, endpoint: Endpoint) -> None:
        if isinstance(endpoint, Slot):
            if endpoint not in self._functions:
                raise OutOfRange(f"the card has no function {endpoint}; it has {len(self._functions)} functions")
            return
        if endpoint.transport not in {"TCP", "RDMA"}:
            raise Unimplemented(f"no listener of transport {endpoint.transport} can be opened: use TCP or RDMA")
        try:
            ipaddress.ip_address(endpoint.address)
        except ValueError:
            raise InvalidArgument(f"{endpoint.address!r} is not an IP address to listen on") from None

    async def functions(self) -> tuple[Function, ...]:
        return tuple(
            Function(f.slot, f.vuid, f.pci_address, f.hotplug, self._users.get(slot, ""))
            for slot, f in self._functions.items()
        )

    async def state(self) -> CardState:
        self._session.require()
        subsystems = await self._read()
        return CardState(subsystems=subsystems, functions=await self.functions())

    async def _read(self) -> tuple[Subsystem, ...]:
        raw = await self._session.raw("nvmf_get_subsystems")
        result = tuple(self._subsystem(one) for one in raw if one["subtype"] != _DISCOVERY)
        self._users = {
            c.endpoint: c.nqn for subsystem in result for c in subsystem.controllers if isinstance(c.endpoint, Slot)
        }
        return result

    async def subsystem(self, nqn: str) -> Subsystem | None:
        try:
            raw = await self._session.call("nvmf_get_subsystems", {"nqn": nqn})
        except SpdkError as error:
            if error.missing:
                return None
            raise
        return self._subsystem(raw[0])

    def _subsystem(self, raw: Mapping[str, Any]) -> Subsystem:
        nqn = raw["nqn"]
        controllers = (self._controller(nqn, address) for address in reversed(raw.get("listen_addresses", ())))
        return Subsystem(
            nqn=nqn,
            serial=raw.get("serial_number", ""),
            model=raw.get("model_number", ""),
            max_namespaces=raw.get("max_namespaces", 0),
            hosts=tuple(host["nqn"] for host in raw.get("hosts", ())),
            namespaces=tuple(_namespace(ns) for ns in raw.get("namespaces", ())),
            controllers=tuple(controllers),
        )

    def _controller(self, nqn: str, address: Mapping[str, str]) -> Controller:
        slot = self.slot_of(address)
        if slot is not None:
            return Controller(nqn, slot, handle=str(slot))
        fabric = Fabric(
            address["trtype"].upper(), address.get("adrfam", ""), address["traddr"], address.get("trsvcid", "")
        )
        return Controller(nqn, fabric, handle=str(fabric))

    async def create_subsystem(self, subsystem: Subsystem, *, psk: str = "") -> None:
        params: dict[str, Any] = {"nqn": subsystem.nqn, "allow_any_host": False}
        if subsystem.serial:
            params["serial_number"] = subsystem.serial
        if subsystem.model:
            params["model_number"] = subsystem.model
        if subsystem.max_namespaces:
            params["max_namespaces"] = subsystem.max_namespaces
        try:
            await self._session.call("nvmf_create_subsystem", params)
        except SpdkError as error:
            if await self.subsystem(subsystem.nqn) is not None:
                raise AlreadyExists(f"a subsystem with NQN {subsystem.nqn} exists already") from error
            raise InvalidArgument(
                f"the card refuses a subsystem with NQN {subsystem.nqn!r}, serial number {subsystem.serial!r} and"
                f" model {subsystem.model!r}: {error.message}"
            ) from error
        try:
            for host in subsystem.hosts:
                more = {"psk": psk} if psk else {}
                await self._session.call("nvmf_subsystem_add_host", {"nqn": subsystem.nqn, "host": host, **more})
        except SpdkError as error:
            await self.delete_subsystem(subsystem.nqn)
            raise InvalidArgument(f"the card refuses host {subsystem.hosts}: {error.message}") from error

    async def delete_subsystem(self, nqn: str) -> bool:
        try:
            await self._session.call("nvmf_delete_subsystem", {"nqn": nqn})
        except SpdkError as error:
            if await self.subsystem(nqn) is not None:
                raise CardRefused(f"subsystem {nqn} cannot be deleted: {error.message}") from error
            return False
        self._users = {slot: user for slot, user in self._users.items() if user != nqn}
        return True

    async def create_namespace(self, nqn: str, namespace: Namespace) -> Namespace:
        described: dict[str, Any] = {"bdev_name": namespace.bdev}
        if namespace.nsid:
            described["nsid"] = namespace.nsid
        if namespace.uuid:
            described["uuid"] = namespace.uuid
        if namespace.nguid:
            described["nguid"] = namespace.nguid.upper()
        if namespace.eui64:
            described["eui64"] = namespace.eui64.upper()
        try:
            nsid = await self._session.call("nvmf_subsystem_add_ns", {"nqn": nqn, "namespace": described})
        except SpdkError as error:
            raise await self._why_no_namespace(nqn, namespace, error) from error
        return Namespace(nsid, namespace.bdev, namespace.uuid, namespace.nguid, namespace.eui64, str(nsid))

    async def _why_no_namespace(self, nqn: str, wanted: Namespace, error: SpdkError) -> Exception:
        subsystem = await self.subsystem(nqn)
        if subsystem is None:
            return NotFound(f"there is no subsystem {nqn}")
        if wanted.nsid and subsystem.namespace(wanted.nsid) is not None:
            return AlreadyExists(f"subsystem {nqn} has a namespace with NSID {wanted.nsid} already")
        if wanted.nsid > subsystem.max_namespaces:
            return InvalidArgument(f"NSID {wanted.nsid} is above the subsystem's {subsystem.max_namespaces} namespaces")
        if len(subsystem.namespaces) >= subsystem.max_namespaces:
            return FailedPrecondition(f"subsystem {nqn} has all its {subsystem.max_namespaces} namespaces")
        try:
            bdev = (await self._session.call("bdev_get_bdevs", {"name": wanted.bdev}))[0]
        except SpdkError:
            return NotFound(f"there is no volume {wanted.bdev}")
        if bdev.get("claimed"):
            return FailedPrecondition(f"volume {wanted.bdev} is in use: {bdev.get('claim_type', 'claimed')}")
        return InvalidArgument(f"the card refuses volume {wanted.bdev} as a namespace: {error.message}")

    async def delete_namespace(self, nqn: str, namespace: Namespace) -> bool:
        try:
            await self._session.call("nvmf_subsystem_remove_ns", {"nqn": nqn, "nsid": namespace.nsid})
        except SpdkError as error:
            subsystem = await self.subsystem(nqn)
            if subsystem is not None and subsystem.namespace(namespace.nsid) is not None:
                raise CardRefused(f"namespace {namespace.nsid} of {nqn} cannot be removed: {error.message}") from error
            return False
        return True

    async def create_controller(self, nqn: str, endpoint: Endpoint, limits: Limits) -> Controller:
        self.check_endpoint(endpoint)
        if isinstance(endpoint, Fabric):
            return await self._listen_on_fabric(nqn, endpoint)
        user = self._users.get(endpoint) or self._reserved.get(endpoint)
        if user is not None:
            raise AlreadyExists(f"function {endpoint} carries a controller of subsystem {user} already")
        self._reserved[endpoint] = nqn
        try:
            await self.before_listening(endpoint)
            await self._listen_on_function(nqn, endpoint, self.listener_options(limits))
            self._users[endpoint] = nqn
        finally:
            del self._reserved[endpoint]
        return Controller(nqn, endpoint, handle=str(endpoint))

    async def _listen_on_function(self, nqn: str, slot: Slot, options: Mapping[str, Any]) -> None:
        # A host on the PCI bus has no host NQN to be admitted by: the function itself is the admission. Both requests
        # go out in one write and are carried out in their order.
        answers = await asyncio.gather(
            self._session.call("nvmf_subsystem_allow_any_host", {"nqn": nqn, "allow_any_host": True}),
            self._session.call(
                "nvmf_subsystem_add_listener", {"nqn": nqn, "listen_address": self.listen_address(slot), **options}
            ),
            return_exceptions=True,
        )
        error = next((answer for answer in reversed(answers) if isinstance(answer, BaseException)), None)
        if error is None:
            return
        if not isinstance(error, SpdkError):
            raise error
        if await self.subsystem(nqn) is None:
            raise NotFound(f"there is no subsystem {nqn}") from error
        raise CardRefused(f"no controller could be put on function {slot}: {error.message}") from error

    async def _listen_on_fabric(self, nqn: str, endpoint: Fabric) -> Controller:
        subsystem = await self.subsystem(nqn)
        if subsystem is None:
            raise NotFound(f"there is no subsystem {nqn}")
        if subsystem.controller(endpoint) is not None:
            raise AlreadyExists(f"subsystem {nqn} listens on {endpoint} already")
        if any(isinstance(c.endpoint, Slot) for c in subsystem.controllers):
            raise FailedPrecondition(
                f"subsystem {nqn} is open to whoever holds its PCI function; a network listener would open it to all"
            )
        await self._ensure_transport(endpoint.transport)
        address = {
            "trtype": endpoint.transport,
            "adrfam": endpoint.family,
            "traddr": endpoint.address,
            "trsvcid": endpoint.service,
        }
        try:
            await self._session.call("nvmf_subsystem_add_listener", {"nqn": nqn, "listen_address": address})
        except SpdkError as error:
            raise FailedPrecondition(f"the card cannot listen on {endpoint}: {error.message}") from error
        return Controller(nqn, endpoint, handle=str(endpoint))

    async def attach_namespace(self, controller: Controller, namespace: Namespace) -> None:
        """Every controller of a subsystem has all of its namespaces."""
        return

    async def detach_namespace(self, controller: Controller, namespace: Namespace) -> None:
        """Goes with the namespace itself."""
        return

    async def delete_controller(self, controller: Controller) -> bool:
        endpoint = controller.endpoint
        if isinstance(endpoint, Slot):
            address = self.listen_address(endpoint)
        else:
            address = {
                "trtype": endpoint.transport,
                "adrfam": endpoint.family,
                "traddr": endpoint.address,
                "trsvcid": endpoint.service,
            }
        found = True
        try:
            await self._session.call(
                "nvmf_subsystem_remove_listener", {"nqn": controller.nqn, "listen_address": address}
            )
        except SpdkError as error:
            subsystem = await self.subsystem(controller.nqn)
            if subsystem is not None and subsystem.controller(endpoint) is not None:
                raise CardRefused(f"the controller on {endpoint} cannot be removed: {error.message}") from error
            found = False
        if isinstance(endpoint, Slot) and self._users.get(endpoint) == controller.nqn:
            del self._users[endpoint]
        if isinstance(endpoint, Slot) and not self._users.get(endpoint):
            await self.after_listening(endpoint)
        return found

    async def resized(self, nqn: str, namespace: Namespace) -> None:
        """SPDK tells connected hosts by itself."""
        return


def _namespace(raw: Mapping[str, Any]) -> Namespace:
    return Namespace(
        nsid=raw["nsid"],
        bdev=raw["bdev_name"],
        uuid=raw.get("uuid", "").lower(),
        nguid=raw.get("nguid", "").lower(),
        eui64=raw.get("eui64", "").lower(),
        handle=str(raw["nsid"]),
    )
