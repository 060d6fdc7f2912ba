"""A pod into its ports, with what its annotation says of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from cni.controller.addresses.pool import Assignment
from cni.controller.model.addressing import Attachment
from cni.controller.model.network import Network, Wish
from cni.controller.model.pod import Pod
from cni.controller.rows import Member, Row, RowId, State
from cni.controller.selection import Selection
from cni.controller.translate import network as network_rows
from cni.controller.translate import selector as groups
from cni.controller.translate.names import node_switch, pod_port, pod_port_name
from cni.selection import secondary_port_name

DEFAULT = "default"

_ENCODER = msgspec.json.Encoder(order="deterministic")


def translate(pod: Pod, *, assignment: Assignment, chassis: str, selections: Iterable[Selection] = ()) -> State:
    """Rows of a wired pod on the default network, with its membership in `selections` that have chosen it.

    Port security holds the pod to its own addresses. `chassis` (may be empty) is the only one that may bind the port,
    and `iface-id-ver` the only pod of this name: a port left by an earlier one of the same name is not taken for it.
    """
    port = pod_port(pod.key)
    ips = tuple(ip.partition("/")[0] for ip in assignment.ips)
    addresses = " ".join((assignment.mac, *ips))
    options = {"iface-id-ver": pod.uid}
    if chassis:
        options["requested-chassis"] = chassis
    row = Row(
        port,
        {
            "name": pod_port_name(pod.namespace, pod.name),
            "addresses": addresses,
            "port_security": addresses,
            "options": options,
            "external_ids": {"namespace": pod.namespace, "pod": pod.name},
        },
    )
    members = groups.memberships(selections, pod, port, ips)
    return State((row,), (Member(node_switch(pod.node), "ports", port), *members))


def secondary(
    pod: Pod,
    wish: Wish,
    network: Network,
    *,
    assignment: Assignment,
    chassis: str,
    selections: Iterable[Selection] = (),
) -> State:
    """Rows of one attachment to a secondary network. Without addresses the port takes any, from its MAC only."""
    port = pod_port(pod.key, wish.key)
    ips = tuple(ip.partition("/")[0] for ip in assignment.ips)
    addresses = " ".join((assignment.mac, *ips))
    options = {"iface-id-ver": pod.uid}
    if chassis:
        options["requested-chassis"] = chassis
    columns: dict[str, object] = {
        "name": secondary_port_name(pod.namespace, pod.name, wish.key),
        "addresses": addresses if ips else (addresses, "unknown"),
        "port_security": addresses,
        "options": options,
        "external_ids": {"namespace": pod.namespace, "pod": pod.name, "network": wish.network},
    }
    if network.topology != "layer3":
        families = {each.version for each in network.subnets}
        columns |= {f"dhcpv{family}_options": network_rows.dhcp(network.key, family) for family in families}
    members = groups.memberships(selections, pod, port, ips)
    return State((Row(port, columns),), (Member(network_rows.switch(network, pod.node), "ports", port), *members))


def limits(pod: Pod, rates: Mapping[str, int]) -> State:
    """The pod's bandwidth on the default network; `rates` in kbit/s by direction (ovn-nb(5), table QoS)."""
    name = pod_port_name(pod.namespace, pod.name)
    rows = []
    for direction, rate in sorted(rates.items()):
        side, match = ("to-lport", "outport") if direction == "ingress" else ("from-lport", "inport")
        columns = {"priority": 100, "direction": side, "match": f'{match} == "{name}"', "bandwidth": {"rate": rate}}
        rows.append(Row(RowId("QoS", "pod", pod.key, direction), columns))
    switch = node_switch(pod.node)
    return State(tuple(rows), tuple(Member(switch, "qos_rules", row.id) for row in rows))


def annotation(attachments: Mapping[str, Attachment]) -> str:
    """The text of annotation pod-networks; equal attachments give equal texts."""
    return _ENCODER.encode(attachments).decode()
