"""The virtual machines, with their pods and what they keep while they exist, running or not; no I/O."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from cni.controller.addresses.pool import Assignment
from cni.controller.errors import MachineUnknown
from cni.controller.homes import Homes
from cni.controller.model.addressing import Attachment
from cni.controller.model.annotations import VM_NETWORKS
from cni.controller.model.pod import Pod
from cni.controller.model.vm import DEFAULT, JOB, READY, Instance, Machine, Migration, Nic, Progress
from cni.controller.networks import Networks
from cni.controller.rows import Owner
from cni.controller.translate.names import node_owner, vm_owner
from cni.controller.translate.placement import Launcher, Placement, place


@dataclass(eq=False, slots=True)
class _Known:
    """All that is known of one machine. `latest`: what its interfaces are like, kept while any pod of it lives."""

    vm: Machine | None = None
    instance: Instance | None = None
    latest: Machine | None = None
    migrations: dict[str, Migration] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)

    @property
    def exists(self) -> bool:
        return self.vm is not None or self.instance is not None or bool(self.pods)


class Machines:
    """Every change returns the owners whose rows may now be others."""

    def __init__(
        self,
        homes: Homes,
        networks: Networks,
        *,
        on_change: Callable[[Hashable], None],
        on_left: Callable[[str], None],
    ) -> None:
        """`on_left(node)`: a machine whose home that is has ended."""
        self.homes = homes
        self._networks = networks
        self._on_change = on_change
        self._on_left = on_left
        self._known: dict[str, _Known] = {}
        self._of_migration: dict[str, Migration] = {}
        self._remembering = False

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
            home = self.homes.of(was)
            if not known.pods and home:
                self._on_left(home)
                touched.append(node_owner(home))
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
        if machine is not None and self._remembering:
            self._claim(key, machine.written)
        elif not known.exists:
            home = self.homes.of(key)
            self.homes.release(key)
            touched += self._networks.keep_only(key, ())
            known.latest = None
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

    # What a machine keeps

    def recover(self, key: str, part: str, addresses: str) -> None:
        """What a machine's port (`mac ip …`) has in the database: the annotation got lost, or was not written yet."""
        mac, *ips = addresses.split()
        known = self._known.get(key)
        if known is not None and known.exists:
            self._claim(key, {part: Attachment(tuple(ips), mac)})

    def remember(self) -> None:
        """All first lists are taken in: machines get back what their annotations say, as they do from now on.

        Two may say the same, since an annotation is copied with its object (a clone, a backup that is put back): who
        runs comes first, then who is older. Pods have had theirs before.
        """
        self._remembering = True

        def rank(key: str) -> tuple[bool, str, str]:
            durable = self.durable(key)
            return not self._known[key].pods, durable.created if durable is not None else "", key

        for key in sorted(self._known, key=rank):
            durable = self.durable(key)
            if durable is not None:
                self._claim(key, durable.written)

    def kept(self, key: str) -> Mapping[str, Attachment] | None:
        """What a machine's annotation shall say of what it does not use at present; None if nothing need be said.

        What somebody else has is no longer the machine's. What cannot be had now (no such node, no such network) may be
        later.
        """
        durable = self.durable(key)
        if durable is None:
            return None
        found = dict(durable.written)
        for part, each in durable.written.items():
            previous = Assignment(each.ips, each.mac)
            lost = self.homes.lost(key, previous) if part == DEFAULT else self._networks.lost(key, part, previous)
            if lost:
                del found[part]
        held = {DEFAULT: self.homes.held(key), **self._networks.kept(key)}
        found |= {part: Attachment(each.ips, each.mac) for part, each in held.items() if each is not None}
        return found if found or VM_NETWORKS in durable.annotations else None

    def _claim(self, key: str, written: Mapping[str, Attachment]) -> None:
        for part, each in written.items():
            if part == DEFAULT:
                self.homes.claim(key, Assignment(each.ips, each.mac))
            else:
                self._networks.keep(key, part, Assignment(each.ips, each.mac))

    def running_at(self, node: str) -> bool:
        """Whether a machine of this home has a pod, wherever."""
        return any(self._known[key].pods for key in self.homes.at(node))

    def away(self, pods: Iterable[Pod] | None = None) -> dict[Owner, None]:
        """The machines with one of these pods (None: with any) on a node that is not their home."""
        if pods is None:
            pods = (pod for known in self._known.values() for pod in known.pods.values())
        return {vm_owner(pod.machine): None for pod in pods if pod.machine and self.homes.of(pod.machine) != pod.node}


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
