"""The plug point of a card: the steps of an emulated NVMe controller, as narrow as all known cards allow.

A card keeps nothing of its own beyond one connection to its process: what it answers is read from there. A step that a
card lacks does nothing. Calls for one subsystem come one after another, calls for different ones side by side.

Order, which differs by card, is the caller's: `create_controller`, then `attach_namespace` for each namespace there is,
then `expose`. A namespace added later is attached right after `create_namespace`.

Every create raises AlreadyExists when something is in its place, without comparing; every removal accepts that the
object is gone, and says whether it was there. All raise NotFound for a missing subsystem, Unavailable when the process
does not answer.
"""

from typing import Protocol

from opi_bridge.cards.model import (
    Capabilities,
    CardState,
    Controller,
    Endpoint,
    Function,
    Limits,
    Namespace,
    Qos,
    Subsystem,
)


class Card(Protocol):
    @property
    def capabilities(self) -> Capabilities: ...

    async def prepare(self) -> None:
        """Bring a process that was just started to where the calls below work; harmless on one that ran on."""

    async def functions(self) -> tuple[Function, ...]: ...

    def check_endpoint(self, endpoint: Endpoint) -> None:
        """Raise OutOfRange for a function the card does not have, Unimplemented for a listener it cannot open."""

    async def state(self) -> CardState: ...

    async def subsystem(self, nqn: str) -> Subsystem | None: ...

    async def create_subsystem(self, subsystem: Subsystem, *, psk: str = "") -> None:
        """`psk` names a key of the process's keyring, for the one host of `subsystem.hosts`."""

    async def delete_subsystem(self, nqn: str) -> bool: ...

    async def create_namespace(self, nqn: str, namespace: Namespace) -> Namespace:
        """nsid 0: the lowest free one. Returns the namespace as it is, with nsid and handle."""

    async def delete_namespace(self, nqn: str, namespace: Namespace) -> bool: ...

    async def create_controller(self, nqn: str, endpoint: Endpoint, limits: Limits) -> Controller:
        """Not yet visible to the host where the card can suspend. Raises FailedPrecondition for a used function."""

    async def attach_namespace(self, controller: Controller, namespace: Namespace) -> None: ...

    async def detach_namespace(self, controller: Controller, namespace: Namespace) -> None: ...

    async def expose(self, controller: Controller) -> None:
        """Let the host see the controller: resume, hot-plug."""

    async def hide(self, controller: Controller) -> None:
        """Take the controller away from the host, and return when the host has let go or the card gave up waiting."""

    async def delete_controller(self, controller: Controller) -> bool: ...

    async def abandon(self, endpoint: Endpoint) -> None:
        """Take from the host what is left of a controller that died with the process; nothing is there of it now."""

    async def limit_controller(self, controller: Controller, least: Qos, most: Qos) -> None: ...

    async def resized(self, nqn: str, namespace: Namespace) -> None:
        """Tell the host about a new size, where that does not happen by itself."""
