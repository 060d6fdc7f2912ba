"""World, engine and committer joined: objects go in by `take`, rows come out in the northbound database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from cni.controller import recovery
from cni.controller.addresses import plan as addresses
from cni.controller.addresses.pool import Assignment
from cni.controller.config import ClusterConfig
from cni.controller.engine import Engine
from cni.controller.errors import Refused
from cni.controller.model import admin_policy as admin_model
from cni.controller.model import endpoints as endpoints_model
from cni.controller.model import namespace as namespace_model
from cni.controller.model import network as network_model
from cni.controller.model import node as node_model
from cni.controller.model import pod as pod_model
from cni.controller.model import policy as policy_model
from cni.controller.model import service as service_model
from cni.controller.model import vm as vm_model
from cni.controller.model.addressing import interfaces
from cni.controller.retired import left_name
from cni.controller.rows import Owner
from cni.controller.rows.tables import identify
from cni.controller.translate.gateway import JOIN_PORT
from cni.controller.translate.names import CLUSTER, node_owner
from cni.controller.translate.node import ROUTER_PORT
from cni.controller.translators import Annotate, AnnotateNode, Keep, Translators
from cni.controller.vm_translator import KeepMachine
from cni.controller.world import World
from cni.controller.writer.committer import Committer
from foundation.kube.resources import (
    ADMIN_NETWORK_POLICIES,
    BASELINE_ADMIN_NETWORK_POLICIES,
    ENDPOINT_SLICES,
    IPAM_CLAIMS,
    MULTI_NETWORK_POLICIES,
    NAMESPACES,
    NETWORK_ATTACHMENT_DEFINITIONS,
    NETWORK_POLICIES,
    NODES,
    PODS,
    SERVICES,
    VIRTUAL_MACHINE_INSTANCE_MIGRATIONS,
    VIRTUAL_MACHINE_INSTANCES,
    VIRTUAL_MACHINES,
    Resource,
)
from foundation.ovsdb import OvsdbSession, TransactionFailed

Put = Callable[[str, Any], Iterable[Owner]]
Parse = Callable[[Any], Any]


class Core:
    """Knows no API server: whoever feeds it (watches, or a test) calls `take` in the event loop.

    `annotate(pod key, uid, text)` is called for each wired pod that was translated; `on_problem(owner, refused | None)`
    and `on_refused(owner, error)` tell of objects that cannot be served.
    """

    # The order in which first lists are taken in: what others refer to comes first.
    SOURCES: tuple[tuple[str, Resource[Any], Parse], ...] = (
        ("node", NODES, node_model.parse),
        ("namespace", NAMESPACES, namespace_model.parse),
        ("network", NETWORK_ATTACHMENT_DEFINITIONS, network_model.parse),
        ("ipamclaim", IPAM_CLAIMS, network_model.parse_claim),
        ("networkpolicy", NETWORK_POLICIES, policy_model.parse),
        ("multinetworkpolicy", MULTI_NETWORK_POLICIES, policy_model.parse_multi),
        ("adminnetworkpolicy", ADMIN_NETWORK_POLICIES, admin_model.parse),
        ("baselineadminnetworkpolicy", BASELINE_ADMIN_NETWORK_POLICIES, admin_model.parse),
        ("vm", VIRTUAL_MACHINES, vm_model.parse_machine),
        ("vmi", VIRTUAL_MACHINE_INSTANCES, vm_model.parse_instance),
        ("vmmigration", VIRTUAL_MACHINE_INSTANCE_MIGRATIONS, vm_model.parse_migration),
        ("pod", PODS, pod_model.parse),
        ("service", SERVICES, service_model.parse),
        ("endpointslice", ENDPOINT_SLICES, endpoints_model.parse),
    )

    def __init__(
        self,
        session: OvsdbSession,
        cluster: ClusterConfig,
        *,
        annotate: Annotate,
        annotate_node: AnnotateNode,
        keep: Keep,
        keep_machine: KeepMachine,
        on_problem: Callable[[Owner, Refused | None], None],
        on_refused: Callable[[Owner, TransactionFailed], None],
    ) -> None:
        self.committer = Committer(session, on_refused=on_refused)
        plan = addresses.make(cluster)
        self.world = World(
            plan,
            on_change=lambda token: self.engine.wake(token),
        )
        self._dns_service = cluster.dns.service
        translators = Translators(
            self.world,
            cluster,
            annotate=annotate,
            annotate_node=annotate_node,
            keep=keep,
            keep_machine=keep_machine,
            touch=lambda owners: self.engine.touch(owners),
        )
        self.engine = Engine(self.committer, translators.table(), on_problem=on_problem)
        self._puts: dict[str, Put] = {
            "node": self.world.put_node,
            "namespace": self.world.put_namespace,
            "network": self._put_network,
            "ipamclaim": self._put_claim,
            "networkpolicy": self.world.put_policy,
            "multinetworkpolicy": self.world.put_multi_policy,
            "adminnetworkpolicy": self.world.put_admin_policy,
            "baselineadminnetworkpolicy": self.world.put_baseline_policy,
            "pod": self.world.put_pod,
            "vm": self.world.machines.put_vm,
            "vmi": self.world.machines.put_instance,
            "vmmigration": self.world.machines.put_migration,
            "service": self._put_service,
            "endpointslice": self.world.put_slice,
        }
        self._parses = {kind: parse for kind, _, parse in self.SOURCES}

    def take(self, kind: str, key: str, obj: Any) -> None:
        """An object of a kind of `SOURCES` has come, changed, or gone (None)."""
        parsed: Any = None
        if obj is not None:
            try:
                parsed = self._parses[kind](obj)
            except Refused as problem:
                parsed = problem  # told of when its rows are asked for
        owners = self._puts[kind](key, parsed)
        if kind == "pod":
            self.engine.touch(owners)
            return
        pods = {owner: None for owner in owners if owner.kind == "pod"}
        self.engine.touch(owner for owner in owners if owner.kind != "pod")
        self.engine.touch(pods, later=True)

    def _put_service(self, key: str, service: Any) -> Iterable[Owner]:
        touched = self.world.put_service(key, service)
        return (*touched, *self.world.machines.owners()) if key == self._dns_service else touched

    def _put_network(self, key: str, network: Any) -> Iterable[Owner]:
        return self.world.networks.put_network(key, network)

    def _put_claim(self, key: str, claim: Any) -> Iterable[Owner]:
        return self.world.networks.put_claim(key, claim)

    def first_pass(self) -> None:
        """Once the session is connected and every first list is taken in: compares all that is wanted with all there.

        Addresses that ports have but annotations lack go back to their pods first.
        """
        routers = {
            port.key: frozenset(each.network for each in interfaces(sorted(row["networks"])))
            for row in self.committer.actual.rows("Logical_Router_Port").values()
            if (port := identify("Logical_Router_Port", row)) is not None
            and (port.kind, port.part) == ("node", ROUTER_PORT)
        }
        self.engine.touch(recovery.recover_nodes(self.world, routers))
        self._recover_nodes()
        self._recover_retired()
        ports = [
            (port, row)
            for row in self.committer.actual.rows("Logical_Switch_Port").values()
            if (port := identify("Logical_Switch_Port", row)) is not None
        ]
        recovery.recover_pods(self.world, ((port, row) for port, row in ports if port.kind == "pod"))
        for port, row in ports:
            if port.kind == "vm" and row["addresses"]:
                self.world.machines.recover(port.key, port.part, max(row["addresses"], key=len))
        self.world.machines.remember()
        for name in self.world.networks.nodes() - self.world.nodes.keys():
            self.engine.touch(self.world.networks.put_node(name, exists=False))
        self.world.retired.look_at_all()
        self.engine.touch((CLUSTER,))
        self.engine.translate_all()
        self.committer.compare_all()

    def _recover_retired(self) -> None:
        for row in self.committer.actual.rows("Logical_Router_Port").values():
            port = identify("Logical_Router_Port", row)
            if port is not None and port.kind == "node" and port.part == ROUTER_PORT:
                subnets = tuple(each.network for each in interfaces(sorted(row["networks"])))
                if all(map(self.world.subnets.is_free, subnets)):
                    known = port.key in self.world.nodes  # with others now
                    name = left_name(port.key, subnets) if known else port.key
                    self.world.retired.adopt(name, subnets)
                    self.engine.touch((node_owner(name),))

    def _recover_nodes(self) -> None:
        for row in self.committer.actual.rows("Logical_Router_Port").values():
            port = identify("Logical_Router_Port", row)
            if port is not None and port.kind == "network":
                subnets = tuple(each.network for each in interfaces(sorted(row["networks"])))
                self.world.networks.adopt(port.key, port.part.removeprefix("router."), subnets)
            if port is None or port.kind != "node" or port.key not in self.world.nodes:
                continue
            if port.part == ROUTER_PORT:
                self.world.give_subnets(port.key, tuple(each.network for each in interfaces(sorted(row["networks"]))))
            elif port.part == JOIN_PORT:
                self.world.join.claim(port.key, Assignment(tuple(sorted(row["networks"])), row["mac"]))

    async def run(self) -> None:
        """Translates and writes for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.committer.run(), name="committer")
            group.create_task(self.engine.run(), name="engine")

    async def idle(self) -> None:
        """Returns when everything taken in is committed (or refused)."""
        await self.engine.idle()
        await self.committer.idle()
