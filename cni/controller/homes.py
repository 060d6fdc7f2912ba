"""What virtual machines hold on the default network, running or not; no I/O.

A machine's address is one of some node's subnet. That node is its home: the machine is on that node's switch wherever
it runs, because its address means nothing on another one.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Hashable, Iterable

from cni.controller.addresses.pool import Assignment
from cni.controller.errors import AddressConflict, NodeNotReady, Refused
from cni.controller.model.addressing import AddressRequest, parse_mac
from cni.controller.model.vm import DEFAULT
from cni.controller.networks import machine_holder
from cni.controller.node_subnets import NodeSubnets


class Homes:
    """Machines by key, nodes by name; a home may also be what a node has left (`Retired`)."""

    def __init__(
        self, subnets: NodeSubnets, *, on_change: Callable[[Hashable], None], on_left: Callable[[str], None]
    ) -> None:
        """`on_left(node)`: a machine has this home no more."""
        self._subnets = subnets
        self._pools = subnets.pools
        self._on_change = on_change
        self._on_left = on_left
        self._home: dict[str, str] = {}
        self._has: dict[str, Assignment] = {}
        self._at: dict[str, dict[str, None]] = {}
        self._of_mac: dict[str, dict[str, None]] = {}
        self._waiting: dict[str, Assignment] = {}
        """What machines have had of subnets that no node has now."""

    def of(self, key: str) -> str:
        """The node whose switch a machine is on; "" when it has no address."""
        return self._home.get(key, "")

    def at(self, node: str) -> Collection[str]:
        """The machines with this home."""
        return self._at.get(node, {}).keys()

    def held(self, key: str) -> Assignment | None:
        """What a machine has."""
        pool = self._pools.get(self.of(key))
        return pool.held(_holder(key)) if pool is not None else None

    def assign(self, key: str, node: str, request: AddressRequest) -> Assignment:
        """A machine's address and MAC; new ones from the subnet of `node`, where it runs, if it asks for none.

        Raises InvalidAddressRequest, AddressConflict, AddressesExhausted, NodeNotReady.
        """
        held = self.held(key)
        self._check_mac(key, request.mac, held)
        if held is None:
            wanted = self._home_of(request.ips) or node
            if wanted not in self._pools:
                raise NodeNotReady(f"node {wanted} has no subnet yet", waits_for=("node", wanted))
            held = self._pools[wanted].assign(_holder(key), seed=key, request=request)
            self._settle(key, wanted, held)
            return held
        if _includes(held, request.ips):
            return self._completed(key, held, request.mac)
        # Another one is asked for since: the old one stays until the new one can be had.
        old = self.of(key)
        wanted = self._home_of(request.ips) or old
        self._pools[old].release(_holder(key))
        try:
            fresh = self._pools[wanted].assign(
                _holder(key), seed=key, request=AddressRequest(request.ips, request.mac or held.mac)
            )
        except Refused:
            self._pools[old].claim(_holder(key), held, partly=True)
            raise
        self._settle(key, wanted, fresh)
        self._on_change(self._pools[old].token)
        return fresh

    def _completed(self, key: str, held: Assignment, mac: str) -> Assignment:
        """With the MAC that is asked for, and an address of each family that its home has got meanwhile."""
        pool = self._pools[self.of(key)]
        found = pool.with_mac(_holder(key), mac) if mac else held
        found = pool.extended(_holder(key), seed=key)
        if found != held:
            self._settle(key, self.of(key), found)
            self._on_change(pool.token)
        return found

    def _check_mac(self, key: str, text: str, held: Assignment | None) -> None:
        """A switch knows only its own MACs, but whether a machine may start must not depend on where."""
        try:
            mac = parse_mac(text) if text else ""
        except ValueError:
            return  # the pool says what is wrong with it
        others = [each for each in self._of_mac.get(mac, ()) if each != key]
        if others and (held is None or held.mac != mac):
            raise AddressConflict(
                f"MAC address {mac} is in use by virtual machine {others[0]}: choose another", waits_for=("mac", mac)
            )

    def claim(self, key: str, previous: Assignment) -> None:
        """A machine has had this: it has it again if nobody else does."""
        if self.held(key) is not None:
            return
        node = self._home_of(previous.ips)
        if not node:
            self._waiting[key] = previous
        elif self._pools[node].claim(_holder(key), previous, partly=True):
            held = self._pools[node].held(_holder(key))
            self._settle(key, node, held or previous)

    def lost(self, key: str, previous: Assignment) -> bool:
        """Whether somebody else has what a machine has had."""
        node = self._home_of(previous.ips)
        return bool(node) and self.held(key) is None and self._pools[node].taken(previous)

    def renewed(self, node: str) -> None:
        """A node's pool is new: its machines take what is theirs, before anybody else may ask."""
        for key in tuple(self.at(node)):
            previous = self._has[key]
            if self._pools[node].claim(_holder(key), previous, partly=True):
                self._settle(key, node, self._pools[node].held(_holder(key)) or previous)
            else:
                self._forget(key)
                self._waiting[key] = previous
        for key, previous in tuple(self._waiting.items()):
            if self._home_of(previous.ips) == node:
                self.claim(key, previous)

    def move(self, old: str, new: str) -> tuple[str, ...]:
        """All machines with home `old` have home `new` now; which ones. The pool is the caller's affair."""
        keys = tuple(self.at(old))
        for key in keys:
            self._home[key] = new
        self._at.setdefault(new, {}).update(self._at.pop(old, {}))
        return keys

    def lend(self, key: str) -> None:
        """What a machine has is free for others; who has none yet when its subnet comes back, has it again."""
        had = self._has[key]
        self.release(key)
        self._waiting[key] = had

    def release(self, key: str) -> None:
        """A machine is no more: what it had is free."""
        self._waiting.pop(key, None)
        home = self.of(key)
        pool = self._pools.get(home)
        freed = pool is not None and pool.release(_holder(key))
        self._forget(key)
        if pool is not None and freed:
            self._on_change(pool.token)
        if home:
            self._on_left(home)

    def _settle(self, key: str, node: str, held: Assignment) -> None:
        old = self.of(key)
        self._forget(key)
        self._waiting.pop(key, None)
        self._home[key], self._has[key] = node, held
        self._at.setdefault(node, {})[key] = None
        self._of_mac.setdefault(held.mac, {})[key] = None
        if old not in ("", node):
            self._on_left(old)

    def _forget(self, key: str) -> None:
        home, had = self._home.pop(key, ""), self._has.pop(key, None)
        if had is None:
            return
        for index, name in ((self._at, home), (self._of_mac, had.mac)):
            index[name].pop(key)
            if not index[name]:
                del index[name]
        self._on_change(("mac", had.mac))

    def _home_of(self, ips: Iterable[str]) -> str:
        """The node whose subnet the first of some addresses is in."""
        for text in ips:
            try:
                return self._subnets.node_of(ipaddress.ip_interface(text).ip)
            except ValueError:
                return ""
        return ""


def _holder(key: str) -> str:
    return machine_holder(key, DEFAULT)


def _includes(held: Assignment, ips: Iterable[str]) -> bool:
    """Whether the addresses asked for, if any, are among those held; a text that is none is not."""
    have = {ip.partition("/")[0] for ip in held.ips}
    try:
        return all(str(ipaddress.ip_interface(each).ip) in have for each in ips)
    except ValueError:
        return False
