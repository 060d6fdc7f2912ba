"""The secondary networks with their address pools, and which pods ask for them; no I/O."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence

from cni.controller.addresses.pool import Assignment, Pool
from cni.controller.addresses.subnets import pick
from cni.controller.errors import AddressConflict, InvalidNetwork, NetworkMissing, Refused
from cni.controller.model.addressing import IPNetwork, mac_of
from cni.controller.model.network import Claim, Network, Wish, wishes
from cni.controller.model.pod import Pod
from cni.controller.rows import Owner
from cni.controller.translate import network as rows
from cni.controller.translate.names import pod_owner
from cni.selection import NETWORKS

RESERVED = {"layer2": 0, "localnet": 0, "layer3": 1}
"""Addresses kept from the start of each subnet: the router's."""


class Networks:
    """Every change returns the owners whose rows may now be others."""

    def __init__(self, *, taken: Sequence[IPNetwork], on_change: Callable[[Hashable], None]) -> None:
        """`taken`: the cluster's own ranges, of which no network may have a part."""
        self._taken = taken
        self._on_change = on_change
        self._networks: dict[str, Network | Refused] = {}
        self._pools: dict[tuple[str, str], Pool] = {}
        self._wishes: dict[str, tuple[Wish, ...] | Refused] = {}
        self._pods: dict[str, Pod] = {}
        self._pods_of: dict[str, set[str]] = {}
        self._claims: dict[str, Claim] = {}
        self._users: dict[str, dict[str, str]] = {}
        """Of each claim: the pods that refer to it, with the machine (or pod) that they are for."""
        self._claimants: dict[str, str] = {}
        self._gone: set[str] = set()
        """Nodes that are no more, of whose parts of layer3 networks somebody has something."""
        self._of_machine: dict[str, dict[str, Assignment]] = {}

    def put_network(self, key: str, network: Network | Refused | None) -> dict[Owner, None]:
        """A network that came, changed (or went: None), or one that cannot be (Refused)."""
        old = self._networks.pop(key, None)
        if isinstance(network, Network):
            network = self._checked(network)
        if network is not None:
            self._networks[key] = network
        # Who got an address a moment ago may have nothing to claim it by yet, nor has a node its part of a layer3 one.
        if not (isinstance(old, Network) and isinstance(network, Network) and old.addressing == network.addressing):
            for each in [each for each in self._pools if each[0] == key]:
                del self._pools[each]
            if isinstance(network, Network) and network.topology != "layer3":
                self._renew(network, "", network.subnets)
        touched = {rows.owner(key): None}
        touched.update((pod_owner(pod), None) for pod in self._pods_of.get(key, ()))
        return touched

    def _checked(self, network: Network) -> Network | Refused:
        for subnet in network.subnets:
            for each in self._taken:
                if each.version == subnet.version and each.overlaps(subnet):
                    return InvalidNetwork(
                        f"network {network.key}: subnet {subnet} overlaps with the cluster's own {each}: a pod on both "
                        "could not tell them apart; choose another"
                    )
        return network

    def put_claim(self, key: str, claim: Claim | None) -> dict[Owner, None]:
        """An IPAMClaim that came, changed (or went: None). It holds its addresses while no pod uses them, too."""
        self._claims.pop(key, None)
        if claim is not None:
            self._claims[key] = claim
            for (network, _), pool in self._pools.items():
                self._keep_claim(key, claim, self._networks[network], pool)
        elif key not in self._users:
            self._release_claim(key)
        self._on_change(("claim", key))
        return {**dict.fromkeys(map(pod_owner, self._users.get(key, ()))), **self._drop_unused()}

    def _release_claim(self, key: str) -> None:
        for pool in self._pools.values():
            if pool.release(_claim_holder(key)):
                self._on_change(pool.token)

    def _use(self, pod: Pod, wish: Wish) -> None:
        self._users.setdefault(wish.claim, {})[pod.key] = _user(pod)

    def _leave(self, pod: Pod, wish: Wish) -> None:
        """A pod does not refer to a claim any more. One that was deleted meanwhile is over with its last pod."""
        users = self._users.get(wish.claim, {})
        users.pop(pod.key, None)
        if self._claimants.get(wish.claim) not in users.values():
            self._claimants.pop(wish.claim, None)
            self._on_change(("claim", wish.claim))
        if not users:
            self._users.pop(wish.claim, None)
            if wish.claim not in self._claims:
                self._release_claim(wish.claim)

    @staticmethod
    def _keep_claim(key: str, claim: Claim, network: Network | Refused, pool: Pool) -> None:
        if isinstance(network, Network) and network.title == claim.network and claim.ips:
            try:
                mac = mac_of(ipaddress.ip_interface(claim.ips[0]).ip)
            except ValueError:
                return  # its next use writes what is right
            pool.claim(_claim_holder(key), Assignment(claim.ips, mac))

    def keep(self, machine: str, part: str, previous: Assignment) -> None:
        """What a virtual machine has had on a network (`part` as Wish.key): its own as long as the machine exists."""
        self._of_machine.setdefault(machine, {}).setdefault(part, previous)
        for pool in self._pools_of(_network(part)):
            pool.claim(machine_holder(machine, part), previous)

    def keep_only(self, machine: str, parts: Collection[str]) -> dict[Owner, None]:
        """A virtual machine is on these networks (and gone: on none); what it had on others is free."""
        had = self._of_machine.get(machine, {})
        for part in [each for each in had if each not in parts]:
            del had[part]
            for pool in self._pools_of(_network(part)):
                if pool.release(machine_holder(machine, part)):
                    self._on_change(pool.token)
        if not had:
            self._of_machine.pop(machine, None)
        return self._drop_unused()

    def kept(self, machine: str) -> dict[str, Assignment]:
        """What a virtual machine has on its networks by `Wish.key`, as far as it holds it."""
        found: dict[str, Assignment] = {}
        for part in self._of_machine.get(machine, ()):
            for pool in self._pools_of(_network(part)):
                held = pool.held(machine_holder(machine, part))
                if held is not None:
                    found[part] = held
        return found

    def lost(self, machine: str, part: str, previous: Assignment) -> bool:
        """Whether somebody else has what a machine has had on a network."""
        pools = self._pools_of(_network(part))
        mine = any(pool.held(machine_holder(machine, part)) is not None for pool in pools)
        return not mine and any(pool.taken(previous) for pool in pools)

    def _pools_of(self, network: str) -> list[Pool]:
        return [pool for (key, _), pool in self._pools.items() if key == network]

    def home(self, pod: Pod, wish: Wish) -> str:
        """The node whose part of a layer3 network a pod's address is of: its own, but a machine keeps what it has."""
        # What a machine has itself goes over to a claim that has nothing yet.
        for holder in (_holder(pod, wish), machine_holder(pod.machine, wish.key)):
            for (network, node), pool in self._pools.items():
                if network == wish.network and node and pool.held(holder) is not None:
                    return node
        return pod.node

    def claimed(self, key: str) -> tuple[str, ...] | None:
        """The addresses that a claim names; None when there is no such claim."""
        found = self._claims.get(key)
        return found.ips if found is not None else None

    def _take(self, pod: Pod, wish: Wish, network: Network, pool: Pool) -> None:
        """Makes a pod, or its machine, the one that uses a claim. Raises NetworkMissing, AddressConflict."""
        claim, holder = self._claims.get(wish.claim), _claim_holder(wish.claim)
        token = ("claim", wish.claim)
        if claim is None and pool.held(holder) is None:
            raise NetworkMissing(f"there is no IPAMClaim {wish.claim}: create it", waits_for=token)
        if claim is not None and claim.network != network.title:
            raise NetworkMissing(
                f"IPAMClaim {wish.claim} is for network {claim.network!r}, not for {network.title!r}: refer to another",
                waits_for=token,
            )
        claimant = self._claimants.setdefault(wish.claim, _user(pod))
        if claimant != _user(pod):
            raise AddressConflict(f"IPAMClaim {wish.claim} is in use by {claimant}: refer to another", waits_for=token)
        if pod.machine and pool.held(holder) is None:
            # What the machine had itself goes over to the claim.
            own = machine_holder(pod.machine, wish.key)
            held = pool.held(own)
            if held is not None:
                pool.release(own)
                pool.claim(holder, held, partly=True)

    def get(self, key: str) -> Network | Refused | None:
        """A network as it was put."""
        return self._networks.get(key)

    def subnets_of(self, key: str) -> dict[str, tuple[IPNetwork, ...]]:
        """For layer3: each node's part, as far as any pod has needed one."""
        return {node: pool.subnets for (network, node), pool in self._pools.items() if network == key and node}

    def put_pod(self, key: str, pod: Pod | None) -> dict[Owner, None]:
        """A pod that needs ports came or changed (or went, or needs none any more: None)."""
        old = self._pods.pop(key, None)
        before = self._wishes.pop(key, ())
        wanted: tuple[Wish, ...] | Refused = ()
        if pod is not None:
            try:
                wanted = wishes(pod.annotations.get(NETWORKS), pod.namespace)
            except Refused as problem:
                wanted = problem
            if wanted:
                self._pods[key], self._wishes[key] = pod, wanted
        keys = {each.network for each in wanted} if isinstance(wanted, tuple) else set()
        parts = {each.key for each in wanted} if isinstance(wanted, tuple) else set()
        if old is not None and isinstance(before, tuple):
            claims = {each.claim for each in wanted} if isinstance(wanted, tuple) else set()
            for wish in before:
                if wish.claim and wish.claim not in claims:
                    self._leave(old, wish)
                if pod is None or pod.uid != old.uid or wish.key not in parts:
                    self._release(old, wish)
                self._pods_of.get(wish.network, set()).discard(key)
        for each in keys:
            self._pods_of.setdefault(each, set()).add(key)
        if pod is not None and isinstance(wanted, tuple):
            for wish in wanted:
                if wish.claim:
                    self._use(pod, wish)
                self._claim(pod, wish)
        return self._drop_unused()

    def nodes(self) -> set[str]:
        """The nodes with parts of layer3 networks."""
        return {node for _, node in self._pools if node}

    def put_node(self, node: str, *, exists: bool) -> dict[Owner, None]:
        """A node has come, or is gone: then with its parts of layer3 networks, once nobody has anything of them."""
        if exists:
            self._gone.discard(node)
            return {}
        self._gone.add(node)
        return self._drop_unused()

    def _drop_unused(self) -> dict[Owner, None]:
        parts = [(each, pool) for each, pool in self._pools.items() if each[1] in self._gone] if self._gone else []
        unused = [each for each, pool in parts if not len(pool)]
        for each in unused:
            del self._pools[each]
        self._gone &= self.nodes() if self._gone else set()
        return {rows.owner(key): None for key, _ in unused}

    def adopt(self, key: str, node: str, subnets: tuple[IPNetwork, ...]) -> None:
        """A node's part of a layer3 network, as its router's port in the database has it."""
        network = self._networks.get(key)
        if isinstance(network, Network) and network.topology == "layer3" and (key, node) not in self._pools:
            self._renew(network, node, subnets)

    def wishes_of(self, pod: Pod) -> tuple[Wish, ...]:
        """The attachments a pod asks for. Raises InvalidAnnotation."""
        found = self._wishes.get(pod.key, ())
        if isinstance(found, Refused):
            raise found
        return found

    def network_of(self, wish: Wish) -> Network:
        """Raises NetworkMissing, or what is wrong with the network."""
        network = self._networks.get(wish.network)
        if network is None:
            raise NetworkMissing(
                f"there is no NetworkAttachmentDefinition {wish.network} of this suite's type: create it, or "
                "ask for another one"
            )
        if isinstance(network, Refused):
            raise NetworkMissing(f"network {wish.network} cannot be used: {network}")
        return network

    def assign(self, pod: Pod, wish: Wish) -> tuple[Assignment, tuple[Owner, ...]]:
        """A pod's addresses on a network, with owners to be translated anew.

        Raises NetworkMissing, InvalidAddressRequest, AddressConflict, AddressesExhausted.
        """
        network = self.network_of(wish)
        touched: tuple[Owner, ...] = ()
        node = pod.node if network.topology == "layer3" else ""
        pool = self._pools.get((network.key, node))
        if pool is None:
            seed = f"{network.key} {node}"
            given = [
                pick(seed, [whole], (length, length), self._is_free(network.key))[0]
                for whole, length in zip(network.subnets, network.host_prefixes, strict=True)
            ]
            pool = self._renew(network, node, tuple(given))
            touched = (rows.owner(network.key),)
        if wish.claim:
            self._take(pod, wish, network, pool)
        holder = _holder(pod, wish)
        assignment = pool.assign(holder, seed=f"{pod.key} {wish.key}", request=wish.request)
        if wish.request.mac:
            before, assignment = assignment, pool.with_mac(holder, wish.request.mac)
            if assignment != before:
                self._on_change(pool.token)
        if pod.machine and not wish.claim:
            self._of_machine.setdefault(pod.machine, {})[wish.key] = assignment
        return assignment, touched

    def _is_free(self, key: str) -> Callable[[IPNetwork], bool]:
        taken = [subnet for subnets in self.subnets_of(key).values() for subnet in subnets]
        return lambda subnet: subnet not in taken

    def _renew(self, network: Network, node: str, subnets: Iterable[IPNetwork]) -> Pool:
        reserved = 1 if network.advertise else RESERVED[network.topology]
        token = ("pool", network.key, node)
        macs = () if node else (rows.DHCP_SERVER[1],)
        pool = Pool(tuple(subnets), token=token, reserved=reserved, excluded=network.excluded, macs=macs)
        self._pools[network.key, node] = pool
        for claim_key, claim in self._claims.items():
            self._keep_claim(claim_key, claim, network, pool)
        for machine, parts in self._of_machine.items():
            for part, previous in parts.items():
                if _network(part) == network.key:
                    pool.claim(machine_holder(machine, part), previous)
        for key in self._pods_of.get(network.key, ()):
            pod, wanted = self._pods[key], self._wishes[key]
            for wish in wanted if isinstance(wanted, tuple) else ():
                if wish.network == network.key:
                    self._claim(pod, wish)
        return pool

    def place(self, pod: Pod, part: str) -> tuple[Pool | None, str]:
        """Where a pod's own addresses (not a claim's) on a network are from, and as whose. `part`: as Wish.key."""
        wanted = self._wishes.get(pod.key, ())
        for wish in wanted if isinstance(wanted, tuple) else ():
            if wish.key == part and not wish.claim:
                return self._pool(pod, wish), _holder(pod, wish)
        return None, ""

    def _pool(self, pod: Pod, wish: Wish) -> Pool | None:
        whole = self._pools.get((wish.network, ""))
        return whole if whole is not None else self._pools.get((wish.network, pod.node))

    def _claim(self, pod: Pod, wish: Wish) -> None:
        written, pool = pod.written().get(wish.key), self._pool(pod, wish)
        if written is None or pool is None:
            return
        if wish.claim and self._claimants.setdefault(wish.claim, _user(pod)) != _user(pod):
            return
        pool.claim(_holder(pod, wish), Assignment(written.ips, written.mac), partly=True)

    def _release(self, pod: Pod, wish: Wish) -> None:
        pool = self._pool(pod, wish)
        if pool is None or wish.claim or pod.machine:
            return  # what a claim or a machine has, it keeps
        if pool.release(_holder(pod, wish)):
            self._on_change(pool.token)


def _network(part: str) -> str:
    """The network of a part: `namespace/name`, or with a number behind it."""
    return "/".join(part.split("/")[:2])


def machine_holder(machine: str, part: str) -> str:
    """Who holds a virtual machine's addresses on a network, whichever pod runs it."""
    return f"vm {machine} {part}"


def _holder(pod: Pod, wish: Wish) -> str:
    if wish.claim:
        return _claim_holder(wish.claim)
    return machine_holder(pod.machine, wish.key) if pod.machine else f"{pod.uid} {wish.key}"


def _user(pod: Pod) -> str:
    """Who uses a pod's claim, as people say it."""
    return f"virtual machine {pod.machine}" if pod.machine else f"pod {pod.key}"


def _claim_holder(key: str) -> str:
    return f"claim {key}"
