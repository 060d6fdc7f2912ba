"""A node: its mode, its partner, its subnets."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from cni.controller.errors import Refused
from cni.controller.model import gateway as gateways
from cni.controller.model.annotations import GATEWAY, HOST_NODE, MODE, NODE_SUBNETS
from cni.controller.model.gateway import Gateway
from foundation.kube.models import core

_SUBNETS = msgspec.json.Decoder(tuple[str, ...])


@dataclass(frozen=True, slots=True)
class Node:
    """`subnets` are texts as given: the cluster's podCIDRs, else those of our own annotation.

    `gateway`: None without the annotation, Refused when it cannot be used. `ready`: nobody has said that it is not.
    """

    name: str
    mode: str
    host_node: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    subnets: tuple[str, ...]
    addresses: tuple[str, ...]
    gateway: Gateway | Refused | None = None
    ready: bool = True

    @property
    def has_switch(self) -> bool:
        """A host's pods are on its DPU's."""
        return self.mode != "host"


def _gateway(text: str | None) -> Gateway | Refused | None:
    if text is None:
        return None
    try:
        return gateways.parse(text)
    except Refused as problem:
        return problem  # the node's switch does not depend on it


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def parse(node: core.Node) -> Node:
    """From the API's object."""
    labels, annotations = node.metadata.labels, node.metadata.annotations
    subnets = node.spec.pod_cidrs or ((node.spec.pod_cidr,) if node.spec.pod_cidr else ())
    if not subnets and NODE_SUBNETS in annotations:
        try:
            subnets = _SUBNETS.decode(annotations[NODE_SUBNETS])
        except (msgspec.DecodeError, RecursionError):
            subnets = ()  # ours, and unreadable: given anew
    return Node(
        name=node.metadata.name,
        mode=labels.get(MODE, "default"),
        host_node=labels.get(HOST_NODE, ""),
        labels=labels,
        annotations=annotations,
        subnets=subnets,
        addresses=tuple(
            each.address
            for each in node.status.addresses or ()
            if each.type == "InternalIP" and _is_address(each.address)
        ),
        gateway=_gateway(annotations.get(GATEWAY)),
        ready=all(each.status == "True" for each in node.status.conditions or () if each.type == "Ready"),
    )
