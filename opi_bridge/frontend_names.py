"""Which subsystem, controller or namespace of the card a resource name means, and the other way round."""

import hashlib
import re
from typing import Final

from opi_bridge.cards.model import Controller, Endpoint, Fabric, Namespace, Slot, Subsystem
from opi_bridge.ledger import Ledger
from opi_bridge.names import Name

SUBSYSTEMS: Final = "nvmeSubsystems"
CONTROLLERS: Final = "nvmeControllers"
NAMESPACES: Final = "nvmeNamespaces"
_NAMESPACE_ID: Final = re.compile(r"ns([1-9]\d{0,9})")
_SLOT_ID: Final = re.compile(r"port(\d+)-pf(\d+)-vf(\d+)")


def foreign_id(nqn: str) -> str:
    """The id of a subsystem that this bridge did not make: readable, and different for every NQN."""
    readable = re.sub(r"[^a-z0-9]+", "-", nqn.lower()).strip("-")[:100].rstrip("-")
    return f"{readable}-{hashlib.blake2s(nqn.encode(), digest_size=4).hexdigest()}"


def namespace_id(nsid: int) -> str:
    """The id of a namespace that was not given another one."""
    return f"ns{nsid}"


def subsystem_name(identifier: str) -> Name:
    return Name(((SUBSYSTEMS, identifier),))


class FrontendNames:
    """Ids are the ledger's where it has one, else derived from what the card says."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def ids(self) -> dict[str, str]:
        """Subsystem ids by NQN, of all that were given one."""
        root = Name(())
        return {values["nqn"]: name.id for name, values in self._ledger.under(root, SUBSYSTEMS)}

    def nqn(self, subsystem: Name) -> str | None:
        """The NQN behind a subsystem's name; None when only a look at the card can tell."""
        values = self._ledger.get(subsystem)
        return values["nqn"] if values else None

    def nsid(self, name: Name) -> int | None:
        values = self._ledger.get(name)
        if values:
            return int(values["nsid"])
        match = _NAMESPACE_ID.fullmatch(name.id)
        return int(match[1]) if match else None

    def namespaces(self, parent: Name, subsystem: Subsystem) -> list[tuple[Name, Namespace]]:
        known = {int(values["nsid"]): name for name, values in self._ledger.under(parent, NAMESPACES)}
        return [
            (known.get(ns.nsid) or parent.child(NAMESPACES, namespace_id(ns.nsid)), ns) for ns in subsystem.namespaces
        ]

    def controllers(self, parent: Name, subsystem: Subsystem) -> list[tuple[Name, Controller]]:
        known = {values["at"]: name for name, values in self._ledger.under(parent, CONTROLLERS)}
        return [
            (known.get(at(c.endpoint)) or parent.child(CONTROLLERS, c.endpoint.id), c) for c in subsystem.controllers
        ]

    def endpoint(self, name: Name) -> Endpoint | None:
        """The endpoint that a controller's name alone tells; None when only a look at the card can."""
        values = self._ledger.get(name)
        if values:
            return endpoint(values["at"])
        match = _SLOT_ID.fullmatch(name.id)
        return Slot(int(match[1]), int(match[2]), int(match[3])) if match else None


def at(where: Endpoint) -> str:
    """An endpoint in one word, for the ledger."""
    if isinstance(where, Slot):
        return f"pci,{where.port},{where.pf},{where.vf}"
    return ",".join((where.transport, where.family, where.address, where.service))


def endpoint(word: str) -> Endpoint:
    parts = word.split(",")
    if parts[0] == "pci":
        return Slot(int(parts[1]), int(parts[2]), int(parts[3]))
    return Fabric(parts[0], parts[1], parts[2], parts[3])
