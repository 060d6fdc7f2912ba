"""The virtual machines, with their pods and the addresses that they hold, running or not; no I/O.

A machine's address on the default network is one of some node's subnet, its home: the machine stays on that node's
switch wherever it runs, because its address means nothing on another one.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from cni.controller.addresses.pool import Assignment, Pool
from cni.controller.errors import MachineUnknown, NodeNotReady, Refused
from cni.controller.model.addressing import AddressRequest, Attachment
from cni.controller.model.pod import Pod
from cni.controller.model.vm import DEFAULT, JOB, READY, Instance, Machine, Migration, Nic, Progress
from cni.controller.networks import Networks, machine_holder
from cni.controller.rows import Owner
from cni.controller.translate.names import node_owner, vm_owner
from cni.controller.translate.placement import Launcher, Placement, place


@dataclass(eq=False, slots=True)
class _Known:
    """All that is known of one machine. `latest`: what its interfaces are like, kept while any pod of it lives.

    `last`: what it had on the default network, `home` where that is from.
    """

    vm: Machine | None = None
    instance: Instance | None = None
    latest: Machine | None = None
    migrations: dict[str, Migration] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)
    home: str = ""
    last: Assignment | None = None

    @property
    def exists(self) -> bool:
        return self.vm is not None or self.instance is not None or bool(self.pods)


class Machines:
    """Every change returns the owners whose rows may now be others. `pools`: the default network's, by node."""

    def __init__(
        self,
        pools: Mapping[str, Pool],
        networks: Networks,
        *,
        on_change: Callable[[Hashable], None],
        on_left: Callable[[str], None],
    ) -> None:
        """`on_left(node)`: a machine whose home that is has ended, or has another home now."""
        self._pools = pools
        self._networks = networks
        self._on_change = on_change
        self._on_left = on_left
        self._known: dict[str, _Known] = {}
        self._of_migration: dict[str, Migration] = {}
        self._of_home: dict[str, set[str]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def owners(self) -> Iterable[Owner]:
        """All machines."""
        return map(vm_owner, self._known)

    # What comes from the API

    def put_vm(self, key: str, machine: Machine | None) -> Iterable[Owner]:
        """A VirtualMachine that came, changed (or went: None)."""
        known = self._of(key)
        known.vm = machine
        return self._changed(key, known, machine)

    def put_instance(self, key: str, instance: Instance | None) -> Iterable[Owner]:
        """An instance that came, changed (or went: None)."""
        known = self._of(key)
        known.instance = instance
        if instance is not None:
            self._on_change(("vmi", key))
        return self._changed(key, known, instance.machine if instance is not None else None)

    def put_migration(self, key: str, migration: Migration | None) -> Iterable[Owner]:
        """A migration that came, changed (or went: None)."""
        touched: list[Owner] = []
        old = self._of_migration.pop(key, None)
        if old is not None:
            known = self._of(old.machine)
            known.migrations.pop(old.uid, None)
            touched += self._changed(old.machine, known, None)
        if migration is not None:
            self._of_migration[key] = migration
            known = self._of(migration.machine)
            known.migrations[migration.uid] = migration
            touched += self._changed(migration.machine, known, None)
        return touched

    def put_pod(self, key: str, old: Pod | None, pod: Pod | None) -> Iterable[Owner]:
        """A pod that came, changed (or went: None); most are no machine's."""
        was, now = (each.machine if each is not None and each.wired else "" for each in (old, pod))
        touched: list[Owner] = []
        if was and was != now:
            known = self._of(was)
            known.pods.pop(key, None)
            if not known.pods and known.home:
                self._on_left(known.home)
                touched.append(node_owner(known.home))
            touched += self._changed(was, known, None)
        if now and pod is not None:
            known = self._of(now)
            known.pods[key] = pod
            touched += self._changed(now, known, None)
        return touched

    def _of(self, key: str) -> _Known:
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = _Known()
        return known

    def _changed(self, key: str, known: _Known, machine: Machine | None) -> list[Owner]:
        touched = [vm_owner(key)]
        # A running guest is as its instance says, whatever its author has in mind for the next one.
        if known.instance is not None:
            known.latest = known.instance.machine
        elif not known.pods or known.latest is None:
            known.latest = known.vm
        if machine is not None:
            self._claim(key, known, machine.written)
        elif not known.exists:
            home = known.home
            self._let_go(key, known)
            if not known.migrations:
                del self._known[key]
            if home:
                touched.append(node_owner(home))
        return touched

    # How a machine stands

    def get(self, key: str) -> Machine:
        """The newest word on a machine's interfaces. Raises MachineUnknown."""
        latest = self._known[key].latest if key in self._known else None
        if latest is None or not latest.complete:
            raise MachineUnknown(
                f"there is a virt-launcher pod of virtual machine {key}, but no such VirtualMachineInstance yet",
                waits_for=("vmi", key),
            )
        return latest

    def nics_of(self, key: str) -> Mapping[str, Nic]:
        """A machine's interfaces, as far as they are known."""
        latest = self._known[key].latest if key in self._known else None
        return latest.nics if latest is not None else {}

    def durable(self, key: str) -> Machine | None:
        """The object that keeps the machine's addresses: the VirtualMachine, without one the instance."""
        known = self._known.get(key)
        if known is None or (known.vm is None and known.instance is None):
            return None
        return known.vm or (known.instance.machine if known.instance is not None else None)

    def is_vm(self, key: str) -> bool:
        """Whether there is a VirtualMachine, so that `durable` is one."""
        return key in self._known and self._known[key].vm is not None

    def pods_of(self, key: str) -> Mapping[str, Pod]:
        """A machine's living pods."""
        return self._known[key].pods if key in self._known else {}

    def placement(self, key: str) -> Placement | None:
        """Which of its pods has the guest; None when none lives."""
        known = self._known.get(key)
        if known is None:
            return None
        launchers = (
            Launcher(
                key=pod.key,
                node=pod.node,
                created=pod.created,
                leaving=pod.leaving,
                job=pod.labels.get(JOB, ""),
                ready=bool(pod.annotations.get(READY)),
            )
            for pod in known.pods.values()
        )
        node, latest = (known.instance.node, known.instance.migration) if known.instance is not None else ("", "")
        return place(launchers, migrations=_progress(known), runs_on=node, latest=latest)

    # Addresses on the default network

    def home(self, key: str) -> str:
        """The node whose switch a machine is on; "" when it has no address."""
        return self._known[key].home if key in self._known else ""

    def at_home(self, node: str) -> Iterable[str]:
        """The machines with an address of a node's subnet."""
        return self._of_home.get(node, ())

    def away(self, node: str) -> bool:
        """Whether a machine of this home runs elsewhere."""
        pods = (pod for key in self.at_home(node) for pod in self._known[key].pods.values())
        return any(pod.node != node for pod in pods)

    def assign(self, key: str, pod: Pod, request: AddressRequest) -> Assignment:
        """A machine's address and MAC; new ones from the subnet of the node that it runs on.

        Raises InvalidAddressRequest, AddressConflict, AddressesExhausted, NodeNotReady.
        """
        known, holder = self._of(key), machine_holder(key, DEFAULT)
        held = self._held(key, known)
        if held is None:
            wanted = self._home_of(request.ips) or pod.node
            if wanted not in self._pools:
                raise NodeNotReady(f"node {wanted} has no subnet yet", waits_for=("node", wanted))
            held = self._pools[wanted].assign(holder, seed=key, request=request)
            self._settle(key, known, wanted, held)
            return held
        if self._has(held, request.ips):
            known.last = self._pools[known.home].with_mac(holder, request.mac) if request.mac else held
            return known.last
        # Another one is asked for since: the old one stays until the new one can be had.
        old = known.home
        wanted = self._home_of(request.ips) or old
        self._pools[old].release(holder)
        try:
            fresh = self._pools[wanted].assign(
                holder, seed=key, request=AddressRequest(request.ips, request.mac or held.mac)
            )
        except Refused:
            self._pools[old].claim(holder, held)
            raise
        self._settle(key, known, wanted, fresh)
        self._on_change(self._pools[old].token)
        return fresh

    def recover(self, key: str, part: str, addresses: str) -> None:
        """What a machine's port (`mac ip …`) has in the database: the annotation got lost, or was not written yet."""
        mac, *ips = addresses.split()
        known = self._known.get(key)
        if known is not None and known.exists:
            self._claim(key, known, {part: Attachment(tuple(ips), mac)})

    def claim_all(self, node: str) -> None:
        """A node's pool is new: machines take what is theirs, before anybody else may ask."""
        for key, known in self._known.items():
            if known.home not in ("", node):
                continue
            if known.last is not None:
                self._claim(key, known, {DEFAULT: Attachment(known.last.ips, known.last.mac)})
            elif (durable := self.durable(key)) is not None:
                self._claim(key, known, durable.written)

    def _held(self, key: str, known: _Known) -> Assignment | None:
        pool = self._pools.get(known.home)
        return pool.held(machine_holder(key, DEFAULT)) if pool is not None else None

    def _claim(self, key: str, known: _Known, written: Mapping[str, Attachment]) -> None:
        for part, each in written.items():
            if part != DEFAULT:
                self._networks.keep(key, part, Assignment(each.ips, each.mac))
            elif self._held(key, known) is None:
                node = self._home_of(each.ips)
                previous = Assignment(each.ips, each.mac)
                if node and self._pools[node].claim(machine_holder(key, DEFAULT), previous):
                    self._settle(key, known, node, previous)

    def _settle(self, key: str, known: _Known, node: str, held: Assignment) -> None:
        known.last = held
        old, known.home = known.home, node
        if old != node:
            self._of_home.get(old, set()).discard(key)
            self._of_home.setdefault(node, set()).add(key)
            self._on_left(old)

    def _let_go(self, key: str, known: _Known) -> None:
        pool = self._pools.get(known.home)
        if pool is not None and pool.release(machine_holder(key, DEFAULT)):
            self._on_change(pool.token)
        self._of_home.get(known.home, set()).discard(key)
        known.home, known.latest, known.last = "", None, None
        self._networks.keep_only(key, ())

    @staticmethod
    def _has(held: Assignment, ips: Iterable[str]) -> bool:
        """Whether the addresses asked for, if any, are among those held; a text that is none is not."""
        have = {ip.partition("/")[0] for ip in held.ips}
        try:
            return all(str(ipaddress.ip_interface(each).ip) in have for each in ips)
        except ValueError:
            return False

    def _home_of(self, ips: Iterable[str]) -> str:
        """The node whose subnet the first of some addresses is in."""
        for text in ips:
            try:
                address = ipaddress.ip_interface(text).ip
            except ValueError:
                return ""
            for node, pool in self._pools.items():
                if any(address.version == each.version and address in each for each in pool.subnets):
                    return node
            return ""
        return ""


def _progress(known: _Known) -> dict[str, Progress]:
    """Both the migration and the instance tell; a failure that either knows of counts."""
    found = {uid: each.progress for uid, each in known.migrations.items()}
    instance = known.instance
    if instance is not None and instance.migration:
        told = (found.get(instance.migration, Progress.RUNNING), instance.progress)
        found[instance.migration] = next(
            each for each in (Progress.FAILED, Progress.READY, Progress.RUNNING) if each in told
        )
    return found
