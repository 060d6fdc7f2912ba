"""CNI results in each version's form. Pure.

CNI specification 1.1.0 section 5; before 1.0.0 each address also carries its IP version.
"""

import ipaddress
from collections.abc import Sequence
from typing import Any

import msgspec

from cni.node.assignment import Assignment

_WITH_IP_VERSION = ("0.3.0", "0.3.1", "0.4.0")
_WITH_DETAILS = "1.1.0"


class Interface(msgspec.Struct, frozen=True, kw_only=True):
    """`sandbox` is the netns path, "" for an interface of the node. `pci` is the function's address."""

    name: str
    mac: str = ""
    sandbox: str = ""
    mtu: int = 0
    pci: str = ""


def build(
    *,
    version: str,
    interfaces: Sequence[Interface],
    assignment: Assignment,
    previous: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The result of ADD; addresses belong to the last of `interfaces`. After other plugins, theirs come first."""
    before = previous or {}
    first = list(before.get("interfaces") or ())
    position = len(first) + len(interfaces) - 1
    return {
        "cniVersion": version,
        "interfaces": [*first, *(_interface(interface, version) for interface in interfaces)],
        "ips": [*(before.get("ips") or ()), *(_address(ip, assignment, position, version) for ip in assignment.ips)],
        "routes": [
            *(before.get("routes") or ()),
            *(
                {"dst": route.dest, "gw": route.next_hop} if route.next_hop else {"dst": route.dest}
                for route in assignment.all_routes()
            ),
        ],
        "dns": before.get("dns") or {},
    }


def failure(*, version: str, code: int, message: str, details: str) -> dict[str, Any]:
    error: dict[str, Any] = {"cniVersion": version, "code": code, "msg": message}
    return error | {"details": details} if details else error


def _interface(interface: Interface, version: str) -> dict[str, Any]:
    found: dict[str, Any] = {"name": interface.name}
    if interface.mac:
        found["mac"] = interface.mac
    if interface.sandbox:
        found["sandbox"] = interface.sandbox
    if version == _WITH_DETAILS:
        if interface.mtu:
            found["mtu"] = interface.mtu
        if interface.pci:
            found["pciID"] = interface.pci
    return found


def _address(ip: str, assignment: Assignment, interface: int, version: str) -> dict[str, Any]:
    family = ipaddress.ip_interface(ip).version
    found: dict[str, Any] = {"address": ip, "interface": interface}
    gateway = next((one for one in assignment.gateways if ipaddress.ip_address(one).version == family), "")
    if gateway:
        found["gateway"] = gateway
    if version in _WITH_IP_VERSION:
        found["version"] = str(family)
    return found
