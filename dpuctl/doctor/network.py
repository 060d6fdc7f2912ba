"""Checks of the network: OVS and OVN on each node, the card's switch, ports, addresses, MTU."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterator
from typing import Final

from cni.selection import NETWORKS, selected
from dpuctl.doctor.check import Check, Finding, View
from dpuctl.inspection.facts import PortFacts, SwitchFacts
from dpuctl.rows import port_name
from dpuctl.snapshot import Snapshot, host_of, mode_of, networks_of
from dpuctl.suite import GivenNetwork
from foundation.kube.models.core import Node, Pod

GENEVE_BYTES: Final = {4: 58, 6: 78}
_DONE: Final = ("Succeeded", "Failed")
_RESERVED: Final = 2


def _switches(view: View) -> Iterator[Finding]:
    for switch in view.switches():
        where = f"node {switch.node}"
        if switch.problem:
            yield Finding(
                where=where,
                problem=f"OVS does not answer: {switch.problem}",
                cure="start openvswitch-switch on it, and see that cni-node's `ovsdb` names its socket",
            )
        elif not switch.bridge:
            yield Finding(
                where=where,
                problem="OVS has no integration bridge",
                cure="start ovn-controller on it: it makes the bridge",
            )


def _ovn(view: View) -> Iterator[Finding]:
    for switch in view.switches():
        if switch.controller_problem:
            yield Finding(
                where=f"node {switch.node}",
                problem=switch.controller_problem,
                cure=f"see ovn-controller's log; it must reach {switch.southbound or 'the southbound database'} "
                "(external_ids:ovn-remote, port 6642, certificate)",
            )
        elif switch.southbound_problem and not switch.problem:
            yield Finding(
                where=f"node {switch.node}",
                problem=f"OVN's southbound database does not answer: {switch.southbound_problem}",
                cure=f"see that ovn-central runs and {switch.southbound or 'external_ids:ovn-remote'} is right: "
                "ovs-vsctl set Open_vSwitch . external_ids:ovn-remote=ssl:<host>:6642",
            )


def _chassis(view: View) -> Iterator[Finding]:
    for switch in view.switches():
        if switch.chassis_known is False:
            yield Finding(
                where=f"node {switch.node}",
                problem=f"OVN has no chassis {switch.chassis!r}: no port of the node will ever get flows",
                cure="set external_ids system-id, ovn-encap-type and ovn-encap-ip of Open_vSwitch, then restart "
                "ovn-controller; see that no other node has the same system-id or encap-ip",
            )


def _northbound(view: View) -> Iterator[Finding]:
    for machine in view.machines:
        for one in machine.northbounds:
            if one.problem:
                yield Finding(
                    where=f"cni-controller on {machine.name}",
                    problem=f"OVN's northbound database does not answer at {one.remotes}: {one.problem}",
                    cure="start ovn-central, or correct cni-controller's northbound.remotes",
                )


def _hardware(view: View) -> Iterator[Finding]:
    cards = {card.node: card for machine in view.machines for card in machine.cards}
    for switch in view.switches():
        card = cards.get(switch.node)
        carded = card is not None and (card.serves_host or card.representors > 0)
        if carded and not switch.problem and not switch.userspace and not switch.hw_offload:
            yield Finding(
                where=f"node {switch.node}",
                problem="OVS has hardware offload off: every packet goes through the DPU's processors",
                cure="ovs-vsctl set Open_vSwitch . other_config:hw-offload=true, then restart ovs-vswitchd "
                "(it reads the setting only when it starts)",
            )


def _switchdev(view: View) -> Iterator[Finding]:
    for machine in view.machines:
        for card in machine.cards:
            for address in card.legacy:
                yield Finding(
                    where=f"node {card.node}",
                    problem=f"physical function {address} is not in switchdev mode: its VFs have no representors",
                    cure=f"devlink dev eswitch set pci/{address} mode switchdev, or declare it in "
                    "sriov-device-plugin's physical_functions",
                )
            if card.serves_host and not card.representors and not card.legacy:
                yield Finding(
                    where=f"node {card.node}",
                    problem="a DPU without any representor: the card is not in switchdev mode, or the host has no VFs",
                    cure="on BlueField: DPU mode (mlxconfig INTERNAL_CPU_OFFLOAD_ENGINE=0), which is switchdev; host: "
                    "set sriov_numvfs (sriov-device-plugin does it with physical_functions)",
                )


def _representors(view: View) -> Iterator[Finding]:
    for machine in view.machines:
        for card in machine.cards:
            for one in card.missing:
                yield Finding(
                    where=f"node {card.node}",
                    problem=f"function {one.function} of pod {one.pod} has no representor: the pod has no network",
                    cure="see dmesg for the card's driver; when the host's VFs were made anew, delete the pod so that "
                    "it gets another function",
                )


def stale_ports(view: View) -> Iterator[tuple[SwitchFacts, PortFacts]]:
    """Ports of ours on a bridge whose pod is gone, or is another one of that name."""
    wanted = _wanted_ports(view.cluster)
    for switch, port in view.ports():
        owners = wanted.get(port.port, ())
        if not owners or (port.pod_uid and port.pod_uid not in owners):
            yield switch, port


def _ports(view: View) -> Iterator[Finding]:
    stale = list(stale_ports(view))
    for switch, port in view.ports():
        where = f"node {switch.node}, interface {port.interface}"
        if (switch, port) in stale:
            yield Finding(
                where=where,
                problem=f"stale: it is port {port.port} of a pod that is gone",
                cure=f"dpuctl gc (shows it), then dpuctl gc --yes; cni-node on {switch.node} should have done it: "
                "see its log",
                severity="warning",
            )
        elif port.problem:
            yield Finding(
                where=where,
                problem=f"OVS cannot use it: {port.problem}",
                cure="the network device is gone or taken; delete the pod so that it is wired anew",
            )
        elif not port.installed:
            yield Finding(
                where=where,
                problem=f"OVN has not installed the flows of port {port.port}",
                cure="see that cni-controller leads (dpuctl doctor: leader) and ovn-controller is connected",
            )


def _wanted_ports(seen: Snapshot) -> dict[str, set[str]]:
    """{logical switch port: uids of the pods that have it}; a VM that moves has two."""
    found: dict[str, set[str]] = {}
    for pod in seen.pods:
        if pod.status.phase in _DONE:
            continue
        for network, given in networks_of(pod).items():
            found.setdefault(port_name(pod, network, given), set()).add(pod.metadata.uid)
    return found


def _mtu(view: View) -> Iterator[Finding]:
    largest = max((daemon.pod_mtu for _, daemon in view.daemons()), default=0)
    for switch in view.switches():
        if not switch.encap_mtu or not largest:
            continue
        needed = largest + GENEVE_BYTES[6 if ":" in switch.encap_ip else 4]
        if switch.encap_mtu < needed:
            yield Finding(
                where=f"node {switch.node}",
                problem=f"MTU of the underlay ({switch.encap_ip}) is {switch.encap_mtu}, but pods' {largest} needs "
                f"{needed}: large packets between nodes are lost",
                cure=f"raise the device's MTU to {needed}, or lower cni-controller's cluster.mtu to "
                f"{switch.encap_mtu - needed + largest} and re-create the pods",
            )
    given = _given_mtu(view.cluster)
    for switch, port in view.ports():
        wanted = given.get(port.port, 0)
        if wanted and port.mtu and port.mtu < wanted:
            yield Finding(
                where=f"node {switch.node}, interface {port.interface}",
                problem=f"its MTU is {port.mtu}, the pod's is {wanted}: the pod's large packets are lost",
                cure=f"ip link set {port.interface} mtu {wanted} on {switch.node}; who changed it?",
            )


def _given_mtu(seen: Snapshot) -> dict[str, int]:
    return {
        port_name(pod, network, given): given.mtu for pod in seen.pods for network, given in networks_of(pod).items()
    }


def _assigned(view: View) -> Iterator[Finding]:
    served = {node.metadata.name for node in view.cluster.members() if mode_of(node) != "dpu"}
    full = {name for name, _, free in _ranges(view.cluster) if not free}
    for pod in view.cluster.pods:
        if pod.spec.host_network or pod.spec.node_name not in served or pod.status.phase != "Pending":
            continue
        if pod.spec.node_name in full or networks_of(pod):
            continue
        yield Finding(
            where=f"pod {pod.metadata.key}",
            problem=f"scheduled to {pod.spec.node_name}, but cni-controller has given it no address",
            cure=f"kubectl describe pod -n {pod.metadata.namespace} {pod.metadata.name}: an Event of cni-controller "
            "says why; without one, no cni-controller leads",
        )


def _addresses(view: View) -> Iterator[Finding]:
    for name, network, free in _ranges(view.cluster):
        if not free:
            yield Finding(
                where=f"node {name}",
                problem=f"its pod range {network} has no free address: further pods stay Pending",
                cure="give the node a larger podCIDR (it takes a new node), add nodes, or lower kubelet's maxPods",
            )


def _ranges(seen: Snapshot) -> Iterator[tuple[str, str, int]]:
    """(node, range, free addresses) of each range of each node."""
    for node in seen.members():
        if host_of(node):
            continue
        held = [pod for pod in seen.pods if pod.spec.node_name == node.metadata.name and _holds(pod)]
        for network in _networks(node):
            if network.num_addresses > 1 << 20:
                continue
            used = sum(_within(pod, network) for pod in held)
            yield node.metadata.name, str(network), max(0, _capacity(network) - used)


def _capacity(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> int:
    """Less the subnet's own name, the broadcast, and what cni-controller keeps for the node itself."""
    return network.num_addresses - 2 - _RESERVED + (network.version == 6)


def _networks(node: Node) -> Iterator[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    for text in node.spec.pod_cidrs or ([node.spec.pod_cidr] if node.spec.pod_cidr else []):
        try:
            yield ipaddress.ip_network(text, strict=False)
        except ValueError:
            continue


def _holds(pod: Pod) -> bool:
    return not pod.spec.host_network and pod.status.phase not in _DONE


def _within(pod: Pod, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    for text in networks_of(pod).get("default", GivenNetwork()).ips:
        try:
            address = ipaddress.ip_interface(text).ip
        except ValueError:
            continue
        if address.version == network.version and address in network:
            return True
    return False


def _selected(view: View) -> Iterator[Finding]:
    known = {one.metadata.key for one in view.cluster.networks}
    for pod in view.cluster.pods:
        if pod.status.phase in _DONE:
            continue
        for name in _selections(pod):
            if name not in known:
                yield Finding(
                    where=f"pod {pod.metadata.key}",
                    problem=f"selects network {name}, but there is no such NetworkAttachmentDefinition",
                    cure=f"create it (kubectl get network-attachment-definitions -A lists those there are), or correct "
                    f"the annotation {NETWORKS}",
                )


def _selections(pod: Pod) -> Iterator[str]:
    """None of a selection that cannot be read: of that cni-controller tells by an Event."""
    with contextlib.suppress(ValueError):
        for each in selected(pod.metadata.annotations.get(NETWORKS, ""), pod.metadata.namespace):
            yield each.network


CHECKS = (
    Check("switches", "OVS answers and has the integration bridge", _switches),
    Check("ovn-controllers", "each node follows OVN's southbound database", _ovn),
    Check("chassis", "OVN knows each node", _chassis),
    Check("northbound", "cni-controller reaches OVN's northbound database", _northbound),
    Check("hardware-offload", "OVS offloads flows where there is a card", _hardware),
    Check("switchdev", "cards are in switchdev mode", _switchdev),
    Check("representors", "each attached function has its representor", _representors),
    Check("ports", "each port on the bridge belongs to a pod and has its flows", _ports),
    Check("mtu", "the underlay carries pods' packets with their tunnel header", _mtu),
    Check("addresses", "each node has an address for the next pod", _addresses),
    Check("assignments", "scheduled pods have got their addresses", _assigned),
    Check("networks", "the networks that pods select exist", _selected),
)
