"""All the controller knows of the cluster, with the address pools; no I/O.

Objects are put in as they come; each `put_…` returns the owners whose rows may now be others.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Hashable, Iterable, Mapping

from cni.controller.addresses.plan import Plan
from cni.controller.addresses.pool import Assignment, Pool
from cni.controller.chassis import Chassis
from cni.controller.errors import NodeNotReady, Refused
from cni.controller.health import HealthChecks
from cni.controller.homes import Homes
from cni.controller.machines import Machines
from cni.controller.model.addressing import AddressRequest, IPAddress, IPNetwork
from cni.controller.model.admin_policy import AdminPolicy
from cni.controller.model.endpoints import Slice
from cni.controller.model.gateway import Gateway
from cni.controller.model.namespace import NOT_LOGGED, Logging, Namespace
from cni.controller.model.node import Node
from cni.controller.model.pod import Pod
from cni.controller.model.policy import NodePeer, Policy
from cni.controller.model.selector import PodSelector
from cni.controller.model.service import Service
from cni.controller.networks import Networks
from cni.controller.node_subnets import NodeSubnets
from cni.controller.retired import Retired
from cni.controller.rows import Owner
from cni.controller.selection import Role, Selections
from cni.controller.translate import match
from cni.controller.translate import namespace as namespace_rows
from cni.controller.translate.names import (
    admin_policy_owner,
    baseline_policy_owner,
    multi_policy_owner,
    namespace_owner,
    node_owner,
    pod_owner,
    policy_owner,
    service_owner,
)
from cni.controller.translate.pod import DEFAULT
from cni.controller.translate.service import Node as ServiceNode
from foundation.kube.selectors import matches

Touched = Iterable[Owner]


class World:
    """Objects by key, with the indexes that translating one of them needs, so that none looks at all of them."""

    def __init__(self, plan: Plan, *, on_change: Callable[[Hashable], None]) -> None:
        """`plan`: without ranges of pods, what is inside is found from the nodes' subnets. `on_change` is told of
        things that refused objects may wait for: ("pool", node), ("node", name)."""
        self._on_change = on_change
        self.pods: dict[str, Pod] = {}
        self.nodes: dict[str, Node] = {}
        self.subnets = NodeSubnets(plan.pods, on_change=on_change)
        self.pools = self.subnets.pools
        self.namespaces: dict[str, Namespace] = {}
        self.policies: dict[str, Policy | Refused] = {}
        self.admin_policies: dict[str, AdminPolicy] = {}
        self.admin_refused: dict[str, Refused] = {}
        self.baseline_policies: dict[str, AdminPolicy | Refused] = {}
        self.multi_policies: dict[str, tuple[Policy, ...] | Refused] = {}
        self.selections = Selections()
        self.networks = Networks(taken=plan.taken, on_change=on_change)
        homes = Homes(self.subnets, on_change=on_change, on_left=lambda name: self.retired.look(name))
        self.machines = Machines(
            homes, self.networks, on_change=on_change, on_left=lambda name: self.retired.look(name)
        )
        self.retired = Retired(self.machines, self.subnets, self._renew_pool, on_change=on_change)
        self.services: dict[str, Service | Refused] = {}
        self.service_nodes: dict[str, ServiceNode] = {}
        self.health = HealthChecks()
        self.join = Pool(plan.join, token=("join",), reserved=1)
        self._slices: dict[str, Slice] = {}
        self._slices_of: dict[str, dict[str, Slice]] = {}
        self.policed = False
        self._policies_of: dict[str, set[str]] = {}
        self._pods_of_node: dict[str, dict[str, None]] = {}
        self.chassis = Chassis(self.nodes)

    def put_node(self, name: str, node: Node | None) -> Touched:
        """A node that came, changed (or went: None)."""
        old = self.nodes.get(name)
        hosts = {name, *(each.host_node for each in (old, node) if each is not None and each.host_node)}
        bound = {host: self.chassis.of(host) for host in hosts}
        self.nodes.pop(name, None)
        if node is not None:
            self.nodes[name] = node
        self.chassis.put_node(name, old, node)
        touched = {node_owner(name): None}
        if old is None or node is None or old.subnets != node.subnets:
            touched |= self.retired.take(name, node)
            if name not in self.retired:
                self._renew_pool(name, node)
                self._on_change(("node", name))
                touched.update(dict.fromkeys(self.pods_on(name)))
        touched.update(dict.fromkeys(self._renew_service_node(name, node)))
        touched.update(self.networks.put_node(name, exists=node is not None))
        if old is None or node is None or (old.gateway, old.ready) != (node.gateway, node.ready):
            touched.update(self._egress_touched())
            touched.update(self.machines.away(self.pods[key] for key in self._pods_of_node.get(name, ())))
        touched.update(self._inside_touched())
        if old is None or node is None or old.labels != node.labels or old.addresses != node.addresses:
            touched.update(dict.fromkeys(map(admin_policy_owner, self.admin_policies)))
            touched.update(dict.fromkeys(map(baseline_policy_owner, self.baseline_policies)))
        for host, before in bound.items():
            if self.chassis.of(host) != before:
                touched[node_owner(host)] = None
                touched.update(dict.fromkeys(self.pods_on(host)))
        return touched

    def _renew_service_node(self, name: str, node: Node | None) -> Touched:
        old = self.service_nodes.pop(name, None)
        new = None
        if node is not None and name in self.pools:
            gateway = node.gateway if isinstance(node.gateway, Gateway) else None
            outer = tuple(str(each.ip) for each in gateway.ips) if gateway is not None else ()
            new = ServiceNode(name, node.addresses, outer)
            self.service_nodes[name] = new
        if (node is None or node.gateway is None) and self.join.release(name):
            self._on_change(self.join.token)
        if old == new:
            return ()
        return [
            service_owner(key) for key, each in self.services.items() if isinstance(each, Service) and each.per_node
        ]

    def retry_subnets(self, name: str) -> Touched:
        """Looks again at a node's own subnets, if they could not be used: what stood against them may have gone."""
        node = self.nodes[name]
        if name in self.pools or not node.subnets:
            return ()
        touched = self.retired.take(name, node)
        self._renew_pool(name, node)
        return (*touched, *self._subnets_came(name, node)) if name in self.pools else touched

    def give_subnets(self, name: str, subnets: tuple[IPNetwork, ...]) -> Touched:
        """Subnets of our own for a node that the cluster gives none; nothing if it has some already."""
        node = self.nodes.get(name)
        if node is None or node.subnets or name in self.pools or not self.subnets.give(name, subnets):
            return ()
        self._renew_pool(name, node)
        return self._subnets_came(name, node)

    def _subnets_came(self, name: str, node: Node) -> Touched:
        touched = {node_owner(name): None, **dict.fromkeys(self.pods_on(name))}
        touched.update(dict.fromkeys(self._renew_service_node(name, node)))
        touched.update(self._inside_touched())
        self._on_change(("node", name))
        return touched

    def gateways(self) -> dict[str, Gateway]:
        """The nodes with a usable gateway."""
        return {name: each.gateway for name, each in self.nodes.items() if isinstance(each.gateway, Gateway)}

    def ways_out(self) -> dict[str, Gateway]:
        """The gateways that may have namespaces' addresses: of nodes that are ready, if there are any."""
        found = self.gateways()
        return {name: each for name, each in found.items() if self.nodes[name].ready} or found

    def _inside_touched(self) -> dict[Owner, None]:
        """Who depends on what is inside, if that may have changed."""
        if self.subnets.inside_known:
            return {}
        return {**dict.fromkeys(map(node_owner, self.gateways())), **self._egress_touched()}

    def _egress_touched(self) -> dict[Owner, None]:
        """When gateways come or go, others may have to take over namespaces' addresses."""
        touched: dict[Owner, None] = {}
        for name, each in self.namespaces.items():
            if each.egress:
                touched[namespace_owner(name)] = None
                touched |= dict.fromkeys(map(pod_owner, self.selections.pods_of(name)))
        return touched

    def join_of(self, name: str) -> tuple[IPAddress, ...]:
        """The inner addresses of a node's gateway router."""
        assignment = self.join.assign(name, seed=name, request=AddressRequest())
        return tuple(ipaddress.ip_interface(ip).ip for ip in assignment.ips)

    def _renew_pool(self, name: str, node: Node | None) -> None:
        pool = self.subnets.renew(name, node)
        if pool is not None:
            self.machines.homes.renewed(name)
            # Addresses given before go to those who have them, before anybody new may ask.
            for key in self._pods_of_node.get(name, ()):
                self._claim(pool, self.pods[key])

    def subnets_of(self, name: str) -> tuple[IPNetwork, ...]:
        """The subnets of a node. Raises NodeNotReady when it has none yet, InvalidNode when they cannot be used."""
        pool = self.pools.get(name)
        if pool is not None:
            return pool.subnets
        node = self.nodes.get(name)
        if node is not None and node.subnets:
            return self.subnets.own(node)
        why = "is unknown" if node is None else "has neither podCIDRs nor a subnet of ours"
        raise NodeNotReady(f"node {name} {why}", waits_for=("node", name))

    def put_pod(self, key: str, pod: Pod | None) -> Touched:
        """A pod that came, changed (or went: None). Its addresses are freed, or claimed as its annotation says."""
        old = self.pods.get(key)
        if old is not None and (pod is None or pod.uid != old.uid or pod.node != old.node):
            self._forget(old)
        elif old is not None and old.wired and pod is not None and not pod.wired:
            self.release(old)
        if pod is not None:
            self.pods[key] = pod
            if pod.node:
                self._pods_of_node.setdefault(pod.node, {})[key] = None
                pool = self.pools.get(pod.node)
                if pool is not None and pod.wired:
                    self._claim(pool, pod)
        wired = pod if pod is not None and pod.wired else None
        owners = (pod_owner(key), *self.networks.put_pod(key, wired), *self.machines.put_pod(key, old, pod))
        return {**self._with_later(self.selections.put_pod(key, wired)), **dict.fromkeys(owners)}

    def _forget(self, pod: Pod) -> None:
        del self.pods[pod.key]
        on_node = self._pods_of_node.get(pod.node)
        if on_node is not None:
            on_node.pop(pod.key, None)
            if not on_node:
                del self._pods_of_node[pod.node]
        self.release(pod)

    def release(self, pod: Pod) -> bool:
        """Frees what this very pod holds; True if it held anything."""
        pool = self.pools.get(pod.node)
        freed = pool is not None and pool.release(pod.uid)
        if pool is not None and freed:
            self._on_change(pool.token)
        return freed

    def _claim(self, pool: Pool, pod: Pod) -> None:
        if not pod.wired or pod.machine:
            return
        written = pod.written().get(DEFAULT)
        if written is not None:
            pool.claim(pod.uid, Assignment(written.ips, written.mac), partly=True)

    def pods_on(self, node: str) -> list[Owner]:
        """The pods that are scheduled to a node."""
        return [pod_owner(key) for key in self._pods_of_node.get(node, ())]

    def put_namespace(self, name: str, namespace: Namespace | None) -> Touched:
        """A namespace that came, changed (or went: None)."""
        old = self.namespaces.pop(name, None)
        if namespace is not None:
            self.namespaces[name] = namespace
        owner = namespace_owner(name)
        labels = None if namespace is None else namespace.labels
        touched = self._with_later(self.selections.put_namespace(name, labels))
        touched |= self.selections.use(owner, namespace_rows.uses(namespace) if namespace is not None else {})
        touched[owner] = None
        if (old.egress if old else ()) != (namespace.egress if namespace else ()):
            touched |= dict.fromkeys(map(pod_owner, self.selections.pods_of(name)))
        if self._logging(old) != self._logging(namespace):
            touched |= dict.fromkeys(map(policy_owner, self._policies_of.get(name, ())))
            multi = (key for key in self.multi_policies if key.startswith(f"{name}/"))
            touched |= dict.fromkeys(map(multi_policy_owner, multi))
        return touched | self._policing()

    @staticmethod
    def _logging(namespace: Namespace | None) -> Logging:
        return namespace.logging if namespace is not None else NOT_LOGGED

    def logging_of(self, namespace: str) -> Logging:
        """How verdicts of a namespace's policies are logged."""
        return self._logging(self.namespaces.get(namespace))

    def put_policy(self, key: str, policy: Policy | Refused | None) -> Touched:
        """A NetworkPolicy that came, changed (or went: None), or one that cannot be (Refused)."""
        namespace = key.partition("/")[0]
        self.policies.pop(key, None)
        self._policies_of.setdefault(namespace, set()).discard(key)
        if policy is not None:
            self.policies[key] = policy
            self._policies_of[namespace].add(key)
        owner = policy_owner(key)
        uses = match.uses(policy.rules(), policy.subject) if isinstance(policy, Policy) else {}
        return {**self.selections.use(owner, uses), owner: None, **self._policing()}

    def put_service(self, key: str, service: Service | Refused | None) -> Touched:
        """A service that came, changed (or went: None), or one that cannot be (Refused)."""
        self.services.pop(key, None)
        if service is not None:
            self.services[key] = service
        return {service_owner(key): None, **self._health_touched(key)}

    def _health_touched(self, key: str) -> dict[Owner, None]:
        service = self.services.get(key)
        nodes = self.health.put(key, service if isinstance(service, Service) else None, self.slices_of(key))
        return dict.fromkeys(map(node_owner, self.nodes if nodes is None else nodes & self.nodes.keys()))

    def put_slice(self, key: str, piece: Slice | None) -> Touched:
        """An endpoint slice that came, changed (or went: None)."""
        touched: dict[Owner, None] = {}
        old = self._slices.pop(key, None)
        if old is not None:
            touched[service_owner(old.service)] = None
            of_service = self._slices_of[old.service]
            del of_service[key]
            if not of_service:
                del self._slices_of[old.service]
        if piece is not None and piece.service:
            self._slices[key] = piece
            self._slices_of.setdefault(piece.service, {})[key] = piece
            touched[service_owner(piece.service)] = None
        for each in {each.service for each in (old, piece) if each is not None and each.service}:
            touched.update(self._health_touched(each))
        return touched

    def slices_of(self, service: str) -> Iterable[Slice]:
        """The endpoint slices of a service."""
        return self._slices_of.get(service, {}).values()

    def put_multi_policy(self, key: str, policies: tuple[Policy, ...] | Refused | None) -> Touched:
        """A MultiNetworkPolicy (one policy a network) that came, changed (or went: None), or one that cannot be."""
        self.multi_policies.pop(key, None)
        if policies is not None:
            self.multi_policies[key] = policies
        uses: dict[PodSelector, frozenset[Role]] = {}
        for each in policies if isinstance(policies, tuple) else ():
            uses |= match.uses(each.rules(), each.subject)
        owner = multi_policy_owner(key)
        return {**self.selections.use(owner, uses), owner: None}

    def put_admin_policy(self, name: str, policy: AdminPolicy | Refused | None) -> Touched:
        """An AdminNetworkPolicy that came, changed (or went: None), or one that cannot be (Refused)."""
        self.admin_policies.pop(name, None)
        self.admin_refused.pop(name, None)
        if isinstance(policy, Refused):
            self.admin_refused[name] = policy
        elif policy is not None:
            self.admin_policies[name] = policy
        # Where one stands in the order, and what it passes on, matters to all behind it.
        touched = dict.fromkeys(map(admin_policy_owner, self.admin_policies))
        return self._use_admin(admin_policy_owner(name), policy) | touched

    def put_baseline_policy(self, name: str, policy: AdminPolicy | Refused | None) -> Touched:
        """The BaselineAdminNetworkPolicy that came, changed (or went: None), or one that cannot be (Refused)."""
        self.baseline_policies.pop(name, None)
        if policy is not None:
            self.baseline_policies[name] = policy
        return self._use_admin(baseline_policy_owner(name), policy)

    def _use_admin(self, owner: Owner, policy: AdminPolicy | Refused | None) -> dict[Owner, None]:
        uses = {}
        if isinstance(policy, AdminPolicy):
            uses = match.uses(policy.rules(), policy.subject, negated=policy.passes)
        return {**self.selections.use(owner, uses), owner: None, **self._policing()}

    def _with_later(self, touched: dict[Owner, None]) -> dict[Owner, None]:
        """What an admin policy's Pass rules take out stands in the rows of all that are behind it."""
        passing = (self.admin_policies.get(each.key) for each in touched if each.kind == "adminnetworkpolicy")
        if any(each is not None and each.passes for each in passing):
            touched |= dict.fromkeys(map(admin_policy_owner, self.admin_policies))
        return touched

    def node_addresses(self, peer: NodePeer) -> tuple[str, ...]:
        """All addresses of the nodes that a policy's peer chooses, sorted."""
        chosen = (node for node in self.nodes.values() if matches(peer.nodes, node.labels))
        return tuple(sorted({address for node in chosen for address in node.addresses}))

    def _policing(self) -> dict[Owner, None]:
        """Whether there are policies at all matters to every node."""
        policed = bool(self.policies or self.admin_policies or self.baseline_policies) or any(
            each.isolated for each in self.namespaces.values()
        )
        if policed == self.policed:
            return {}
        self.policed = policed
        return dict.fromkeys((*map(node_owner, self.nodes), *self.machines.away()))

    def snapshot(self) -> Mapping[str, int]:
        """How many objects of each kind are known."""
        return {
            "node": len(self.nodes),
            "namespace": len(self.namespaces),
            "pod": len(self.pods),
            "vm": len(self.machines),
            "networkpolicy": len(self.policies),
            "service": len(self.services),
            "endpointslice": len(self._slices),
        }
