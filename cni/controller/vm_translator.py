"""Which rows a virtual machine has: those of the pod that has its guest, with what is different for a machine."""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from cni.controller.addresses.pool import Assignment
from cni.controller.config import ClusterConfig
from cni.controller.errors import MigrationBarred, Refused, together
from cni.controller.model.addressing import AddressRequest, Attachment, IPAddress
from cni.controller.model.network import Wish
from cni.controller.model.pod import Pod
from cni.controller.model.service import Service
from cni.controller.model.vm import DEFAULT, Machine, Nic
from cni.controller.rows import EMPTY, Owner, State
from cni.controller.translate import node as node_rows
from cni.controller.translate import pod as pod_rows
from cni.controller.translate import vm as vm_rows
from cni.controller.translate.names import node_owner, pod_port_name, vm_port_name
from cni.controller.translate.placement import Placement
from cni.controller.world import World

KeepMachine = Callable[[str, str], None]
"""(key of a machine, text of annotation vm-networks)."""
_POD = Nic(mac="", dhcp=False)


class PodRows(Protocol):
    """What is the same for a pod and for a machine (`Translators`)."""

    def default_rows(self, pod: Pod, assignment: Assignment, *, chosen: str, runs_on: str) -> State:
        """The port on the default network with all that depends on it. Raises Refused with `instead`."""

    def secondary(self, pod: Pod, wish: Wish, chassis: str, *, chosen: str) -> tuple[State, Attachment]:
        """One attachment to a secondary network."""


class VmTranslator:
    """Called with a machine's key."""

    def __init__(
        self,
        world: World,
        cluster: ClusterConfig,
        rows: PodRows,
        *,
        annotate: Callable[[str, str, str], None],
        keep: KeepMachine,
        touch: Callable[[Iterable[Owner]], None],
    ) -> None:
        self._world = world
        self._cluster = cluster
        self._rows = rows
        self._annotate = annotate
        self._keep = keep
        self._touch = touch
        self._advertised: dict[str, Mapping[str, str]] = {}

    def __call__(self, key: str) -> State:
        machines = self._world.machines
        placement = machines.placement(key)
        if placement is None:
            kept = machines.kept(key)
            if kept is not None:
                self._keep(key, vm_rows.annotation(kept))
            self._touch(self._world.networks.keep_only(key, kept or ()))
            self._look_at_router(machines.homes.of(key))
            return EMPTY
        machine = machines.get(key)
        work = _Work(self._world, self._cluster, self._rows, machine, placement)
        before = machines.homes.of(key)
        work.default()
        work.secondaries()
        self._look_at_router(machines.homes.of(key))
        if before not in ("", machines.homes.of(key)):
            self._touch((node_owner(before),))
        for pod in machines.pods_of(key).values():
            if pod.key == work.barred:
                continue
            given = {part: each for part, each in work.attachments.items() if part == DEFAULT or part in work.of(pod)}
            if given:
                self._annotate(pod.key, pod.uid, pod_rows.annotation(given))
        kept = work.kept()
        self._touch(self._world.networks.keep_only(key, kept.keys()))
        self._keep(key, vm_rows.annotation(kept))
        if work.problems:
            raise together(work.problems, instead=work.state)
        return work.state

    def advertise(self, node: str) -> Mapping[str, str]:
        """What the router of a node's switch shall tell guests."""
        told = self._advertised[node] = _advertisement(self._world, self._cluster, node)
        return told

    def _look_at_router(self, home: str) -> None:
        """A guest that came may need its router to tell of itself."""
        if home in self._world.pools:
            wanted = _advertisement(self._world, self._cluster, home)
            if self._advertised.get(home, {}) != wanted:
                self._touch((node_owner(home),))


class _Work:
    """One translation: what there is of it so far stays when a later part is refused."""

    def __init__(
        self, world: World, cluster: ClusterConfig, rows: PodRows, machine: Machine, placement: Placement
    ) -> None:
        self._world, self._cluster, self._rows = world, cluster, rows
        self._machine = machine
        self.name = machine.key.partition("/")[2]
        self.holder = world.pods[placement.holder.key]
        self.target = world.pods[placement.target.key] if placement.target is not None else None
        self.state = EMPTY
        self.attachments: dict[str, Attachment] = {}
        self.problems: list[Refused] = []
        self.barred = self._barred()
        chassis = world.chassis.of
        self._options = vm_rows.chassis(
            chassis(self.holder.node), chassis(self.target.node) if self.target is not None else ""
        )
        self._refused: set[str] = set()
        self._claimed: set[str] = set()
        self._unreadable = False

    def _barred(self) -> str:
        """The key of a target that cannot be had; its pod is told of no ports, so that the migration fails before the
        guest has left: a port can wait on two chassis only if both have names."""
        doubts = [self._world.chassis.doubt(each.node) for each in (self.holder, self.target) if each is not None]
        if self.target is None or not any(doubts):
            return ""
        barred, self.target = self.target.key, None
        why = next(filter(None, doubts))
        self.problems.append(MigrationBarred(f"the machine cannot move to pod {barred}: {why}; stop it and start it"))
        return barred

    def kept(self) -> dict[str, Attachment]:
        """What the machine keeps: what it has now, and what it had where it cannot be served at present; but what an
        IPAMClaim keeps for it is the claim's."""
        had = self._world.machines.kept(self._machine.key) or {}
        refused = had.keys() if self._unreadable else self._refused
        has = {part: each for part, each in self.attachments.items() if part not in self._claimed}
        return {**{part: had[part] for part in had if part in refused}, **has}

    def default(self) -> None:
        """The default network."""
        try:
            self._default()
        except Refused as problem:
            self.problems.append(problem)
            self._refused.add(DEFAULT)

    def _default(self) -> None:
        nic = self._nic(DEFAULT)
        asked = self.holder.request()
        request = AddressRequest(asked.ips, nic.mac or asked.mac)
        assignment = self._world.machines.homes.assign(self._machine.key, self.holder.node, request)
        home = self._world.machines.homes.of(self._machine.key)
        guest = self._guest(home)
        self.attachments[DEFAULT] = Attachment(
            ips=assignment.ips,
            mac=assignment.mac,
            gateways=self._world.subnets.gateways_of(home),
            mtu=self._cluster.mtu,
            port=pod_port_name(guest.namespace, guest.name),
            dhcp=nic.dhcp,
        )
        try:
            state = self._rows.default_rows(guest, assignment, chosen=self.holder.key, runs_on=self.holder.node)
        except Refused as problem:
            self.problems.append(problem)
            state = problem.instead
        self._add(state, DEFAULT)
        if self._world.policed and home != self.holder.node and self.holder.node in self._world.pools:
            addresses = [each[node_rows.MANAGEMENT] for each in self._world.pools[self.holder.node].subnets]
            port = pod_port_name(guest.namespace, guest.name)
            self._join(vm_rows.probes(self._machine.key, port, home=home, addresses=addresses))

    def secondaries(self) -> None:
        """The networks that the pod with the guest asks for; while it moves, also what only the target does."""
        wishes: dict[str, Wish] = {}
        for pod in (self.target, self.holder):
            try:
                wishes |= {wish.key: wish for wish in (self._wishes(pod) if pod is not None else ())}
            except Refused as problem:
                self.problems.append(problem)
                self._unreadable = True
        for key, wish in wishes.items():
            # One network that cannot be costs a guest none of its others.
            try:
                self._secondary(key, wish)
            except Refused as problem:
                self.problems.append(problem)
                self._refused.add(key)

    def _secondary(self, key: str, wish: Wish) -> None:
        if wish.claim:
            self._claimed.add(key)
        nic = self._nic(key)
        if nic.mac and not wish.request.mac:
            wish = dataclasses.replace(wish, request=AddressRequest(wish.request.ips, nic.mac))
        guest = self._guest(self.holder.node)
        guest = dataclasses.replace(guest, node=self._world.networks.home(guest, wish))
        state, attachment = self._rows.secondary(guest, wish, "", chosen=self.holder.key)
        self.attachments[key] = Attachment(
            attachment.ips,
            attachment.mac,
            attachment.gateways,
            attachment.routes,
            attachment.mtu,
            attachment.port,
            nic.dhcp and bool(attachment.ips),
        )
        self._add(state, key, node=guest.node, wish=wish)

    def of(self, pod: Pod) -> frozenset[str]:
        """The parts that one pod asks for itself."""
        try:
            return frozenset(wish.key for wish in self._wishes(pod))
        except Refused:
            return frozenset()

    def _wishes(self, pod: Pod) -> tuple[Wish, ...]:
        return self._world.networks.wishes_of(pod)

    def _nic(self, part: str) -> Nic:
        return self._machine.nics.get(part, _POD)

    def _guest(self, node: str) -> Pod:
        """The pod with the guest as if it were the machine: all names and ids are then the machine's."""
        return dataclasses.replace(self.holder, key=self._machine.key, name=vm_port_name(self.name), node=node)

    def _add(self, state: State, part: str, *, node: str = "", wish: Wish | None = None) -> None:
        state = vm_rows.owned(state, self._machine.key, self._machine.key, options=self._options, name=self.name)
        attachment = self.attachments[part]
        if attachment.dhcp:
            routed, routes = True, attachment.routes
            if wish is None:
                subnets = self._world.pools[self._world.machines.homes.of(self._machine.key)].subnets
            else:
                network = self._world.networks.network_of(wish)
                routed = False
                if network.topology == "layer3":
                    subnets = self._world.networks.subnets_of(network.key)[node]
                else:
                    subnets = network.subnets
            state = vm_rows.dhcp(
                state,
                self._machine.key,
                part,
                subnets=subnets,
                mtu=attachment.mtu,
                names=self._names(),
                told=self._nic(part).told,
                routed=routed,
                routes=routes,
            )
        self._join(state)

    def _join(self, state: State) -> None:
        self.state = State((*self.state.rows, *state.rows), (*self.state.members, *state.members))

    def _names(self) -> vm_rows.Names:
        return names(self._world, self._cluster, self._machine)


def names(world: World, cluster: ClusterConfig, machine: Machine) -> vm_rows.Names:
    """What a guest is told of names, as a pod of its namespace has it (Kubernetes, "DNS for Services and Pods")."""
    namespace, domain = machine.key.partition("/")[0], cluster.dns.domain
    search = [f"{namespace}.svc.{domain}", f"svc.{domain}", domain]
    if machine.subdomain:
        search.insert(0, f"{machine.subdomain}.{namespace}.svc.{domain}")
    return vm_rows.Names(machine.hostname, dns_servers(world, cluster), search)


def dns_servers(world: World, cluster: ClusterConfig) -> tuple[IPAddress, ...]:
    """The addresses of the cluster's DNS: as configured, else those of its service."""
    if cluster.dns.servers:
        return tuple(map(ipaddress.ip_address, cluster.dns.servers))
    service = world.services.get(cluster.dns.service)
    return tuple(map(ipaddress.ip_address, service.cluster_ips)) if isinstance(service, Service) else ()


def _advertisement(world: World, cluster: ClusterConfig, node: str) -> Mapping[str, str]:
    """The router advertisements of a node's switch; none where no guest of it waits for any."""
    machines = world.machines
    waiting = (machines.nics_of(key).get(DEFAULT, _POD).dhcp for key in machines.homes.at(node))
    if not any(each.version == 6 for each in world.pools[node].subnets) or not any(waiting):
        return {}
    return vm_rows.router_advertisement(
        mtu=cluster.mtu, servers=dns_servers(world, cluster), search=(f"svc.{cluster.dns.domain}", cluster.dns.domain)
    )
