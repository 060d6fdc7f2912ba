"""Which node has which subnets, with the pools of their addresses; no I/O."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Hashable

from cni.controller.addresses.pool import Pool
from cni.controller.addresses.subnets import checked
from cni.controller.errors import InvalidNode
from cni.controller.model.addressing import IPAddress, IPNetwork
from cni.controller.model.node import Node
from cni.controller.translate.node import RESERVED, gateways


class NodeSubnets:
    """`ranges`: what all subnets lie in; without, it is found from the subnets themselves.

    `on_change` is told ("ranges",) when a subnet becomes free.
    """

    def __init__(self, ranges: tuple[IPNetwork, ...], *, on_change: Callable[[Hashable], None]) -> None:
        self._ranges = ranges
        self._on_change = on_change
        self._inside: tuple[IPNetwork, ...] | None = None
        self._given: dict[str, tuple[IPNetwork, ...]] = {}
        self._gateways: dict[str, tuple[str, ...]] = {}
        self._where: dict[tuple[int, int], dict[int, str]] = {}
        self.pools: dict[str, Pool] = {}

    def renew(self, name: str, node: Node | None) -> Pool | None:
        """Looks anew at what a node has; its pool, if it has usable subnets: a new one if they are others."""
        old = self._drop(name)
        if old is not None:
            self._on_change(("ranges",))
        if node is None:
            self._given.pop(name, None)
            return None
        try:
            subnets = self.own(node) if node.subnets else self._given.get(name, ())
        except InvalidNode:
            return None
        if not subnets:
            return None
        # Who got an address a moment ago may have nothing to claim it by yet.
        pool = (
            old
            if old is not None and old.subnets == subnets
            else Pool(subnets, token=("pool", name), reserved=RESERVED)
        )
        self._add(name, pool)
        return pool

    def retain(self, name: str) -> None:
        """A node that has come back without subnets keeps those that it had."""
        self._given[name] = self.pools[name].subnets

    def rename(self, old: str, new: str) -> None:
        """What `old` has is another's now, with all addresses in it."""
        pool = self._drop(old)
        self._given.pop(old, None)
        if pool is not None:
            self._add(new, pool)

    def _add(self, name: str, pool: Pool) -> None:
        self.pools[name], self._gateways[name] = pool, gateways(pool.subnets)
        self._inside = None
        for each in pool.subnets:
            shift = each.max_prefixlen - each.prefixlen
            self._where.setdefault((each.version, shift), {})[int(each.network_address) >> shift] = name

    def _drop(self, name: str) -> Pool | None:
        pool = self.pools.pop(name, None)
        self._gateways.pop(name, None)
        self._inside = None
        for each in pool.subnets if pool is not None else ():
            shift = each.max_prefixlen - each.prefixlen
            del self._where[each.version, shift][int(each.network_address) >> shift]
        return pool

    def node_of(self, address: IPAddress) -> str:
        """The node whose subnet an address is of; "" for none."""
        for (version, shift), names in self._where.items():
            if version == address.version:
                name = names.get(int(address) >> shift)
                if name is not None:
                    return name
        return ""

    def give(self, name: str, subnets: tuple[IPNetwork, ...]) -> bool:
        """Keeps subnets of ours for a node, for the next `renew`; False if they are not free."""
        if not all(map(self.is_free, subnets)):
            return False
        self._given[name] = subnets
        return True

    def own(self, node: Node) -> tuple[IPNetwork, ...]:
        """The subnets that the cluster gives a node. Raises InvalidNode when they cannot be used."""
        others = {name: pool.subnets for name, pool in self.pools.items() if name != node.name}
        return checked(node.name, node.subnets, others)

    def is_free(self, subnet: IPNetwork) -> bool:
        """Whether no node has any part of a subnet."""
        taken = (each for pool in self.pools.values() for each in pool.subnets)
        return not any(each.version == subnet.version and each.overlaps(subnet) for each in taken)

    def gateways_of(self, name: str) -> tuple[str, ...]:
        """The router's addresses on a node's switch."""
        return self._gateways.get(name, ())

    def inside(self) -> tuple[IPNetwork, ...]:
        """The ranges that all pods' addresses lie in: as configured, or as few prefixes as hold the nodes' subnets."""
        if self._ranges:
            return self._ranges
        if self._inside is None:
            subnets = [each for pool in self.pools.values() for each in pool.subnets]
            self._inside = (
                *ipaddress.collapse_addresses(each for each in subnets if isinstance(each, ipaddress.IPv4Network)),
                *ipaddress.collapse_addresses(each for each in subnets if isinstance(each, ipaddress.IPv6Network)),
            )
        return self._inside

    @property
    def inside_known(self) -> bool:
        """Whether `inside` is as it was when last asked for."""
        return bool(self._ranges) or self._inside is not None
