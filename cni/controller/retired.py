"""Nodes that are gone while guests with addresses of their subnets run elsewhere: their switches stay as long."""

from __future__ import annotations

from collections.abc import Callable

from cni.controller.machines import Machines
from cni.controller.model.addressing import IPNetwork
from cni.controller.model.node import Node

Renew = Callable[[str, Node | None], None]
"""(node's name, what it is now): looks anew at its subnets."""


class Retired:
    """`in` tells whether a node is one of them."""

    def __init__(self, machines: Machines, renew: Renew) -> None:
        self._machines = machines
        self._renew = renew
        self._names: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def take(self, name: str, node: Node | None) -> bool:
        """A node came, changed, or went (None); True if what it has must stay, because it has just retired."""
        self._names.discard(name)
        if node is None and self._machines.away(name):
            self._names.add(name)
        return name in self._names

    def adopt(self, name: str, subnets: tuple[IPNetwork, ...]) -> None:
        """A switch of an unknown node is in the database: whoever has an address of it may claim that."""
        self._names.add(name)
        self._renew(name, Node(name, "default", "", {}, {}, tuple(map(str, subnets)), ()))

    def look(self, name: str) -> None:
        """A guest has ended, or has another home: the last one lets the node go."""
        if name in self._names and not self._machines.away(name):
            self._names.discard(name)
            self._renew(name, None)

    def look_at_all(self) -> None:
        """Lets go all that nobody needs."""
        for name in tuple(self._names):
            self.look(name)
