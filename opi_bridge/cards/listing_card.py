"""Cards with RPCs of their own: what they have in common is that they list before they act.

Their errors do not say why, so that everything which can be wrong is looked for first. What a card of this family adds
is `state` and the steps that its process knows, each called when it can be carried out.
"""

from abc import ABC, abstractmethod

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
from opi_bridge.errors import AlreadyExists, NotFound, OutOfRange, Unimplemented


class ListingCard(ABC):
    def __init__(self) -> None:
        self._functions: dict[Slot, Function] = {}
        """As last listed."""

    # --- what differs by card

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities: ...

    @abstractmethod
    async def prepare(self) -> None: ...

    @abstractmethod
    async def state(self) -> CardState: ...

    @abstractmethod
    async def make_subsystem(self, subsystem: Subsystem) -> None:
        """There is none of this NQN."""

    @abstractmethod
    async def remove_subsystem(self, nqn: str) -> None: ...

    @abstractmethod
    async def make_namespace(self, nqn: str, namespace: Namespace) -> Namespace:
        """There is none of this NSID."""

    @abstractmethod
    async def remove_namespace(self, nqn: str, namespace: Namespace) -> None: ...

    @abstractmethod
    async def make_controller(self, nqn: str, function: Function, limits: Limits) -> Controller:
        """The function is free."""

    @abstractmethod
    async def remove_controller(self, controller: Controller) -> None: ...

    @abstractmethod
    async def attach_namespace(self, controller: Controller, namespace: Namespace) -> None: ...

    @abstractmethod
    async def detach_namespace(self, controller: Controller, namespace: Namespace) -> None: ...

    # --- what a card may have

    async def expose(self, controller: Controller) -> None:
        """The host sees a controller as soon as it is there."""
        return

    async def hide(self, controller: Controller) -> None:
        """Its namespaces are off by now; nothing else can be taken away before the controller itself."""
        return

    async def abandon(self, endpoint: Endpoint) -> None:
        """The card's firmware takes the functions of a dead process from the host."""
        return

    async def limit_controller(self, controller: Controller, least: Qos, most: Qos) -> None:
        if least != Qos() or most != Qos():
            raise Unimplemented("this card limits volumes, not controllers: use a QosVolume")

    async def resized(self, nqn: str, namespace: Namespace) -> None:
        """The card tells the host by itself."""
        return

    # --- what is the same

    async def functions(self) -> tuple[Function, ...]:
        return (await self.state()).functions

    def check_endpoint(self, endpoint: Endpoint) -> None:
        if not isinstance(endpoint, Slot):
            raise Unimplemented("this card shows volumes on its PCI functions only")
        if endpoint not in self._functions:
            raise OutOfRange(f"the card has no function {endpoint}; it has {len(self._functions)} functions")

    async def subsystem(self, nqn: str) -> Subsystem | None:
        return next((one for one in (await self.state()).subsystems if one.nqn == nqn), None)

    async def create_subsystem(self, subsystem: Subsystem, *, psk: str = "") -> None:
        if subsystem.hosts or psk:
            raise Unimplemented("a PCI function has no host NQN: leave hostnqn empty")
        if await self.subsystem(subsystem.nqn) is not None:
            raise AlreadyExists(f"a subsystem with NQN {subsystem.nqn} exists already")
        await self.make_subsystem(subsystem)

    async def delete_subsystem(self, nqn: str) -> bool:
        if await self.subsystem(nqn) is None:
            return False
        await self.remove_subsystem(nqn)
        return True

    async def create_namespace(self, nqn: str, namespace: Namespace) -> Namespace:
        subsystem = await self.subsystem(nqn)
        if subsystem is None:
            raise NotFound(f"there is no subsystem {nqn}")
        if subsystem.namespace(namespace.nsid) is not None:
            raise AlreadyExists(f"subsystem {nqn} has a namespace with NSID {namespace.nsid} already")
        return await self.make_namespace(nqn, namespace)

    async def delete_namespace(self, nqn: str, namespace: Namespace) -> bool:
        subsystem = await self.subsystem(nqn)
        if subsystem is None or subsystem.namespace(namespace.nsid) is None:
            return False
        await self.remove_namespace(nqn, namespace)
        return True

    async def create_controller(self, nqn: str, endpoint: Endpoint, limits: Limits) -> Controller:
        self.check_endpoint(endpoint)
        state = await self.state()
        if all(one.nqn != nqn for one in state.subsystems):
            raise NotFound(f"there is no subsystem {nqn}")
        function = next(f for f in state.functions if f.slot == endpoint)
        if function.nqn:
            raise AlreadyExists(f"function {endpoint} carries a controller of subsystem {function.nqn} already")
        return await self.make_controller(nqn, function, limits)

    async def delete_controller(self, controller: Controller) -> bool:
        subsystem = await self.subsystem(controller.nqn)
        if subsystem is None or subsystem.controller(controller.endpoint) is None:
            return False
        await self.remove_controller(controller)
        return True
