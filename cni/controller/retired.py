"""What is left of nodes that are gone while virtual machines have addresses of their subnets.

Their switches stay, under their names, until the last of those machines is no more, or until another node gets the
subnet: then that node's switch is the machines' home.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from cni.controller.addresses.subnets import overlap
from cni.controller.machines import Machines
from cni.controller.model.addressing import IPNetwork, networks
from cni.controller.model.node import Node
from cni.controller.node_subnets import NodeSubnets
from cni.controller.rows import Owner
from cni.controller.translate.names import node_owner, vm_owner

Renew = Callable[[str, Node | None], None]
"""(node's name, what it is now): looks anew at its subnets."""


class Retired:
    """`in` tells whether a name is of such a switch."""

    def __init__(
        self, machines: Machines, subnets: NodeSubnets, renew: Renew, *, on_change: Callable[[Hashable], None]
    ) -> None:
        self._machines = machines
        self._subnets = subnets
        self._renew = renew
        self._on_change = on_change
        self._names: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def take(self, name: str, node: Node | None) -> dict[Owner, None]:
        """A node came, got other subnets, or went (None): it is among these afterwards if what it has must stay.

        A node that wants subnets which retired ones have gets them, with the machines that are there; unless guests run
        with addresses of subnets that it does not have just so.
        """
        if node is None:
            if self._machines.homes.at(name):
                self._names.add(name)
            return {}
        pool = self._subnets.pools.get(name)
        try:
            wanted = networks(node.subnets)
        except ValueError:
            wanted = ()
        touched: dict[Owner, None] = {}
        if pool is not None and self._machines.homes.at(name):
            if not wanted:
                self._subnets.retain(name)
            elif not overlap(wanted, pool.subnets):
                touched |= self._move(name, left_name(name, pool.subnets))
        self._names.discard(name)
        for each in tuple(self._names):
            subnets = self._subnets.pools[each].subnets
            if set(subnets) == set(wanted) or (overlap(wanted, subnets) and not self._machines.running_at(each)):
                touched |= self._move(each, name)
        return touched

    def _move(self, old: str, new: str) -> dict[Owner, None]:
        """`new`: a node, whose pool comes next, or what is left of one."""
        keys = self._machines.homes.move(old, new)
        self._names.discard(old)
        if "__" in new:
            self._names.add(new)
            self._subnets.rename(old, new)
        else:
            self._renew(old, None)
        return {node_owner(old): None, node_owner(new): None, **dict.fromkeys(map(vm_owner, keys))}

    def make_room(self) -> bool:
        """The subnets of those whose machines are all stopped can be given to others; False if there are none."""
        idle = [each for each in self._names if not self._machines.running_at(each)]
        for each in idle:
            for key in tuple(self._machines.homes.at(each)):
                self._machines.homes.lend(key)
        return bool(idle)

    def adopt(self, name: str, subnets: tuple[IPNetwork, ...]) -> None:
        """A switch of an unknown node is in the database: whoever has an address of it may claim that."""
        self._names.add(name)
        self._renew(name, Node(name, "default", "", {}, {}, tuple(map(str, subnets)), ()))

    def look(self, name: str) -> None:
        """A guest has ended, or has another home: the last one lets the node go."""
        if name not in self._names:
            return
        if not self._machines.homes.at(name):
            self._names.discard(name)
            self._renew(name, None)
        elif not self._machines.running_at(name):
            self._on_change(("ranges",))

    def look_at_all(self) -> None:
        """Lets go all that nobody needs."""
        for name in tuple(self._names):
            self.look(name)


def left_name(node: str, subnets: tuple[IPNetwork, ...]) -> str:
    """The name of what is left of a node whose name another one has; no node's and no pod's name has underscores."""
    return f"{node}__{subnets[0].network_address}"
