"""Which translator serves which kind of owner, with what it needs of the world."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping

from cni.controller.addresses import plan as addresses
from cni.controller.addresses.pool import Assignment
from cni.controller.addresses.subnets import pick
from cni.controller.config import ClusterConfig
from cni.controller.engine import Translate
from cni.controller.errors import (
    AddressesExhausted,
    InvalidNamespaceAnnotation,
    InvalidPolicy,
    NodeNotReady,
    Refused,
    together,
)
from cni.controller.model.addressing import Attachment, IPNetwork, Route
from cni.controller.model.admin_policy import AdminPolicy
from cni.controller.model.annotations import HEALTH_CHECKS, MANAGEMENT, NODE_SUBNETS
from cni.controller.model.network import Network, Wish
from cni.controller.model.pod import Pod
from cni.controller.model.selector import PodSelector
from cni.controller.rows import EMPTY, Owner, State
from cni.controller.selection import Selection
from cni.controller.translate import admin_policy as admin_rows
from cni.controller.translate import egress as egress_rows
from cni.controller.translate import gateway as gateway_rows
from cni.controller.translate import namespace as namespace_rows
from cni.controller.translate import network as network_rows
from cni.controller.translate import node as node_rows
from cni.controller.translate import pod as pod_rows
from cni.controller.translate import policy as policy_rows
from cni.controller.translate import selector as selector_rows
from cni.controller.translate import service as service_rows
from cni.controller.translate.egress import gateway_for
from cni.controller.translate.names import vm_owner
from cni.controller.vm_translator import KeepMachine, VmTranslator
from cni.controller.world import World
from cni.selection import secondary_port_name

PHYSICAL_MTU = 1500
AnnotateNode = Callable[[str, Mapping[str, str]], None]
"""(node, texts of its annotations by name)."""
Keep = Callable[[str, tuple[str, ...]], None]
"""(key of an IPAMClaim, the addresses its status shall have)."""
Annotate = Callable[[str, str, str], None]
"""(pod key, uid, text of annotation pod-networks)."""


class Translators:
    """One method a kind; `table()` is what the engine takes."""

    def __init__(
        self,
        world: World,
        cluster: ClusterConfig,
        *,
        annotate: Annotate,
        annotate_node: AnnotateNode,
        keep: Keep,
        keep_machine: KeepMachine,
        touch: Callable[[Iterable[Owner]], None],
    ) -> None:
        """`touch` has owners translated anew when translating one has changed something for others."""
        self._world = world
        self._cluster = cluster
        self._mtu = cluster.mtu
        plan = addresses.make(cluster)
        self._ranges, self._beyond = plan.pods, plan.taken
        self._host_prefixes = cluster.host_prefixes
        self._annotate_node = annotate_node
        self._keep = keep
        self._touch = touch
        self._annotate = annotate
        self._vm = VmTranslator(world, cluster, self, annotate=annotate, keep=keep_machine, touch=touch)

    def table(self) -> dict[str, Translate]:
        """Owner kind to translator."""
        return {
            "cluster": self.cluster,
            "node": self.node,
            "namespace": self.namespace,
            "pod": self.pod,
            "vm": self._vm,
            "selector": self.selector,
            "networkpolicy": self.networkpolicy,
            "multinetworkpolicy": self.multinetworkpolicy,
            "adminnetworkpolicy": self.adminnetworkpolicy,
            "baselineadminnetworkpolicy": self.baselineadminnetworkpolicy,
            "service": self.service,
            "network": self.network,
        }

    def cluster(self, key: str) -> State:
        state, join = node_rows.cluster(), gateway_rows.cluster(self._world.join.subnets)
        return State((*state.rows, *join.rows), (*state.members, *join.members))

    def node(self, name: str) -> State:
        if name in self._world.retired:
            subnets = self._world.pools[name].subnets
            return node_rows.translate(name, subnets=subnets, chassis="", advertised=self._advertised(name))
        if name not in self._world.nodes:
            self._touch(self._world.pods_on(name))  # which had its switch as long as that was kept for machines
            return EMPTY
        node = self._world.nodes[name]
        if not node.subnets and self._ranges:
            self._give_subnets(name)
        self._touch(self._world.retry_subnets(name))
        subnets, chassis = self._world.subnets_of(name), self._world.chassis.of(name)
        texts = {MANAGEMENT: node_rows.management(name, subnets=subnets, inside=self._beyond, mtu=self._mtu)}
        checks = self._world.health.of_node(name)
        if checks or HEALTH_CHECKS in node.annotations:
            texts[HEALTH_CHECKS] = node_rows.health(checks)
        self._annotate_node(name, texts)
        state = node_rows.translate(
            name,
            subnets=subnets,
            chassis=chassis,
            addresses=node.addresses,
            policed=self._world.policed,
            advertised=self._advertised(name),
        )
        if node.gateway is None:
            return state
        if isinstance(node.gateway, Refused):
            raise node.gateway.with_instead(state)
        try:
            join_addresses = self._world.join_of(name)
        except AddressesExhausted as problem:
            message = f"node {name}: no address is left for its gateway: widen cluster.join_ranges"
            raise AddressesExhausted(message, waits_for=problem.waits_for, instead=state) from None
        gateway = gateway_rows.translate(
            name,
            node.gateway,
            chassis=chassis,
            subnets=subnets,
            join=self._world.join.subnets,
            join_addresses=join_addresses,
            inside=self._world.subnets.inside(),
        )
        return State((*state.rows, *gateway.rows), (*state.members, *gateway.members))

    def _advertised(self, name: str) -> Mapping[str, str]:
        return self._vm.advertise(name)

    def service(self, key: str) -> State:
        service = self._world.services.get(key)
        if service is None:
            return EMPTY
        if isinstance(service, Refused):
            raise service
        return service_rows.translate(service, self._world.slices_of(key), self._world.service_nodes)

    def _give_subnets(self, name: str) -> None:
        pool = self._world.pools.get(name)
        if pool is None:
            subnets = self._pick(name)
            self._touch(self._world.give_subnets(name, subnets))
        else:
            subnets = pool.subnets
        self._annotate_node(name, {NODE_SUBNETS: node_rows.annotation(subnets)})

    def _pick(self, name: str) -> tuple[IPNetwork, ...]:
        try:
            return pick(name, self._ranges, self._host_prefixes, self._world.subnets.is_free)
        except AddressesExhausted:
            # A new node is worth more than the addresses of machines that do not run.
            if not self._world.retired.make_room():
                raise
            return pick(name, self._ranges, self._host_prefixes, self._world.subnets.is_free)

    def namespace(self, name: str) -> State:
        namespace = self._world.namespaces.get(name)
        if namespace is None:
            return EMPTY
        state = namespace_rows.translate(namespace)
        gateways = self._world.ways_out()
        lost = [each for each in namespace.egress if gateway_for(ipaddress.ip_address(each), gateways) is None]
        if namespace.fault or lost:
            fault = namespace.fault or f"no gateway is in the network of egress address {', '.join(lost)}"
            raise InvalidNamespaceAnnotation(fault, instead=state)
        return state

    def _egress(self, pod: Pod, assignment: Assignment, runs_on: str) -> State:
        """`runs_on`: not the pod's node for a machine away from home, which leaves where it is."""
        namespace = self._world.namespaces.get(pod.namespace)
        state = EMPTY
        gateways = self._world.ways_out()
        wanted = [ipaddress.ip_address(each) for each in namespace.egress] if namespace is not None else []
        if not wanted and runs_on != pod.node and runs_on in gateways:
            gateways = {runs_on: gateways[runs_on]}
            wanted = [each.ip for each in gateways[runs_on].ips]
        for outside in egress_rows.choose(pod.key, wanted):
            node = gateway_for(outside, gateways)
            ip = next((each for each in _bare(assignment.ips) if (":" in each) == (outside.version == 6)), None)
            if node is None or ip is None:
                continue
            hop = next(each for each in self._world.join_of(node) if each.version == outside.version)
            more = egress_rows.translate(pod.key, ip, outside, node=node, hop=hop, inside=self._world.subnets.inside())
            state = _joined(state, more)
        return state

    def selector(self, selector_id: str) -> State:
        selection = self._world.selections.by_id(selector_id)
        return selector_rows.translate(selection) if selection is not None else EMPTY

    def networkpolicy(self, key: str) -> State:
        policy = self._world.policies.get(key)
        if policy is None:
            return EMPTY
        if isinstance(policy, Refused):
            raise policy
        return policy_rows.translate(policy, numbers=self._numbers, logging=self._world.logging_of(policy.namespace))

    def multinetworkpolicy(self, key: str) -> State:
        policies = self._world.multi_policies.get(key)
        if policies is None:
            return EMPTY
        if isinstance(policies, Refused):
            raise policies
        state = EMPTY
        for each in policies:
            logging = self._world.logging_of(each.namespace)
            state = _joined(state, policy_rows.translate(each, numbers=self._numbers, logging=logging))
        return state

    def adminnetworkpolicy(self, name: str) -> State:
        refused = self._world.admin_refused.get(name)
        if refused is not None:
            raise refused
        policy = self._world.admin_policies.get(name)
        if policy is None:
            return EMPTY
        nodes = self._world.node_addresses
        ordered = admin_rows.order(self._world.admin_policies)
        priority, passed = admin_rows.before(policy, ordered, numbers=self._numbers, nodes=nodes)
        if priority - policy.levels < admin_rows.LOWEST_PRIORITY:
            raise InvalidPolicy("all admin policies together have too many rules: 28,000 are possible")
        state = admin_rows.translate(policy, priority=priority, passed=passed, numbers=self._numbers, nodes=nodes)
        return _unless(policy, state)

    def baselineadminnetworkpolicy(self, name: str) -> State:
        policy = self._world.baseline_policies.get(name)
        if policy is None:
            return EMPTY
        if isinstance(policy, Refused):
            raise policy
        state = admin_rows.translate(
            policy,
            priority=admin_rows.BASELINE_PRIORITY,
            passed={},
            numbers=self._numbers,
            nodes=self._world.node_addresses,
        )
        return _unless(policy, state)

    def _numbers(self, selector: PodSelector, port_name: str, protocol: str) -> list[int]:
        selection = self._world.selections.get(selector)
        return selection.numbers_of(port_name, protocol) if selection is not None else []

    def network(self, key: str) -> State:
        network = self._world.networks.get(key)
        if network is None:
            return EMPTY
        if isinstance(network, Refused):
            raise network
        subnets = self._world.networks.subnets_of(key)
        return network_rows.translate(network, subnets=subnets, mtu=self._network_mtu(network))

    def _network_mtu(self, network: Network) -> int:
        return network.mtu or (PHYSICAL_MTU if network.topology == "localnet" else self._mtu)

    def pod(self, key: str) -> State:
        pod = self._world.pods.get(key)
        if pod is None or not pod.wired:
            return EMPTY
        if pod.machine:
            self._touch((vm_owner(pod.machine),))
            return EMPTY
        assignment = self._assign(pod)
        chassis = self._world.chassis.of(pod.node)
        state = EMPTY
        attachments = {
            pod_rows.DEFAULT: Attachment(
                ips=assignment.ips,
                mac=assignment.mac,
                gateways=_of_families(self._world.subnets.gateways_of(pod.node), assignment.ips),
                mtu=self._mtu,
            )
        }
        problems: list[Refused] = []
        try:
            state = self.default_rows(pod, assignment, chosen=key, runs_on=pod.node)
        except Refused as found:
            problems.append(found)
            state = found.instead
        try:
            wishes = self._world.networks.wishes_of(pod)
        except Refused as found:
            problems.append(found)
            wishes = ()
        for wish in wishes:
            # One network that cannot be costs a pod none of its others.
            try:
                more, attachments[wish.key] = self.secondary(pod, wish, chassis, chosen=key)
            except Refused as found:
                problems.append(found)
            else:
                state = _joined(state, more)
        self._annotate(key, pod.uid, pod_rows.annotation(attachments))
        if problems:
            raise together(problems, instead=state)
        return state

    def default_rows(self, pod: Pod, assignment: Assignment, *, chosen: str, runs_on: str) -> State:
        """The port on the default network with all that depends on it; `chosen`: the pod that selectors choose.

        Raises Refused with the rows that can be made all the same.
        """
        chassis = self._world.chassis.of(pod.node)
        selections = self._selections(chosen, "")
        state = pod_rows.translate(pod, assignment=assignment, chassis=chassis, selections=selections)
        try:
            state = _joined(state, self._egress(pod, assignment, runs_on))
            return _joined(state, pod_rows.limits(pod, pod.bandwidth()))
        except Refused as problem:
            raise problem.with_instead(state) from None

    def _selections(self, key: str, network: str) -> list[Selection]:
        return [each for each in self._world.selections.of_pod(key) if each.selector.network == network]

    def secondary(self, pod: Pod, wish: Wish, chassis: str, *, chosen: str) -> tuple[State, Attachment]:
        """One attachment to a secondary network. Raises Refused."""
        networks = self._world.networks
        network = networks.network_of(wish)
        assignment, touched = networks.assign(pod, wish)
        self._touch(touched)
        if wish.claim and assignment.ips and networks.claimed(wish.claim) not in (None, assignment.ips):
            self._keep(wish.claim, assignment.ips)
        gateways: tuple[str, ...] = ()
        routes: tuple[Route, ...] = ()
        if network.topology == "layer3":
            gateways = node_rows.gateways(networks.subnets_of(network.key)[pod.node])
            # The default route stays with the default network; the rest of this one is behind its router.
            hops = {ipaddress.ip_address(each).version: each for each in gateways}
            routes = tuple(Route(str(whole), hops[whole.version]) for whole in network.subnets)
            gateways = ()
        state = pod_rows.secondary(
            pod,
            wish,
            network,
            assignment=assignment,
            chassis=chassis,
            selections=self._selections(chosen, wish.network),
        )
        name = secondary_port_name(pod.namespace, pod.name, wish.key)
        mtu = self._network_mtu(network)
        return state, Attachment(assignment.ips, assignment.mac, gateways, routes, mtu, name)

    def _assign(self, pod: Pod) -> Assignment:
        pool = self._world.pools.get(pod.node)
        if pool is None:
            self._world.subnets_of(pod.node)  # says what is wrong with the node
            raise NodeNotReady(f"node {pod.node} has no subnet yet", waits_for=("node", pod.node))
        held = pool.held(pod.uid)
        return held or pool.assign(pod.uid, seed=pod.key, request=pod.request())


def _unless(policy: AdminPolicy, state: State) -> State:
    """The state of a policy; raises InvalidPolicy with it when some part cannot be served."""
    if policy.fault:
        raise InvalidPolicy(policy.fault, instead=state)
    return state


def _joined(first: State, second: State) -> State:
    return State((*first.rows, *second.rows), (*first.members, *second.members))


def _of_families(addresses: Iterable[str], ips: Iterable[str]) -> tuple[str, ...]:
    """Those of the families that a pod has: one that was there before its node got a family has not."""
    families = {":" in ip for ip in ips}
    return tuple(each for each in addresses if (":" in each) in families)


def _bare(ips: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(ip.partition("/")[0] for ip in ips)
