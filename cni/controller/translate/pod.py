"""A pod into its ports, with what its annotation says of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from cni.controller.addresses.pool import Assignment
from cni.controller.model.addressing import Attachment
from cni.controller.model.pod import Pod
from cni.controller.rows import Member, Row, State
from cni.controller.selection import Selection
from cni.controller.translate import selector as groups
from cni.controller.translate.names import node_switch, pod_port, pod_port_name

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


def annotation(attachments: Mapping[str, Attachment]) -> str:
    """The text of annotation pod-networks; equal attachments give equal texts."""
    return _ENCODER.encode(attachments).decode()
