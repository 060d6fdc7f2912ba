"""What cni-controller has assigned to a pod, from the pod's annotation. Pure."""

import ipaddress
from collections.abc import Mapping

import msgspec

from cni.node.errors import BadConfiguration
from cni.node.request import DEFAULT_NETWORK
from cni.selection import secondary_port_name

ANNOTATION = "dpu-offload.io/pod-networks"


class AssignedRoute(msgspec.Struct, frozen=True, rename="camel"):
    dest: str
    next_hop: str = ""


class Assignment(msgspec.Struct, frozen=True):
    """One network of one pod: `ips` with prefix length, `mac` lower case, `mtu` in bytes (0: leave).

    `port` is the logical switch port where that is not a function of the names: a VM's port outlives its pods.
    `dhcp`: the addresses are those of a guest behind the pod's interface, which asks for them itself.
    """

    ips: tuple[str, ...] = ()
    mac: str = ""
    gateways: tuple[str, ...] = ()
    routes: tuple[AssignedRoute, ...] = ()
    mtu: int = 0
    port: str = ""
    dhcp: bool = False

    def of_interface(self) -> "Assignment":
        """What the pod's own interface gets of it: none of the addresses of a guest behind it."""
        return msgspec.structs.replace(self, ips=(), gateways=(), routes=()) if self.dhcp else self

    def all_routes(self) -> tuple[AssignedRoute, ...]:
        """The routes with each gateway's default route, unless the routes name a default of that family themselves."""
        defaults = {ipaddress.ip_network(route.dest).version for route in self.routes if route.dest.endswith("/0")}
        missing = (gateway for gateway in self.gateways if ipaddress.ip_address(gateway).version not in defaults)
        return (
            *(AssignedRoute("0.0.0.0/0" if "." in gateway else "::/0", gateway) for gateway in missing),
            *self.routes,
        )


_DECODER = msgspec.json.Decoder(dict[str, Assignment])


def parse(annotations: Mapping[str, str] | None, network: str) -> Assignment | None:
    """None when the controller has not assigned anything yet. Raises BadConfiguration for what cannot be used."""
    text = (annotations or {}).get(ANNOTATION)
    if text is None:
        return None
    try:
        assignment = _DECODER.decode(text).get(network)
        if assignment is not None:
            _check(assignment)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadConfiguration(f"the pod's annotation {ANNOTATION} is malformed: {error}") from None
    return assignment


def parse_one(text: str, *, where: str) -> Assignment:
    """An assignment that stands alone. Raises BadConfiguration; `where` says of which text."""
    try:
        assignment = msgspec.json.decode(text, type=Assignment)
        _check(assignment)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadConfiguration(f"{where} is malformed: {error}") from None
    return assignment


def port_name(assignment: Assignment, *, network: str, namespace: str, pod: str) -> str:
    """The logical switch port of a pod; `network` is a key of the annotation."""
    if assignment.port:
        return assignment.port
    if network == DEFAULT_NETWORK:
        return f"{namespace}_{pod}"
    return secondary_port_name(namespace, pod, network)


def _check(assignment: Assignment) -> None:
    for address in assignment.ips:
        ipaddress.ip_interface(address)
    for gateway in assignment.gateways:
        ipaddress.ip_address(gateway)
    for route in assignment.routes:
        ipaddress.ip_network(route.dest)
        if route.next_hop:
            ipaddress.ip_address(route.next_hop)
