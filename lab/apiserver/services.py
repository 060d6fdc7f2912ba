"""Defaults, checks and the allocation of addresses and node ports of services."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from lab.apiserver.status import Json, cause, invalid_value, not_supported, required

Networks = dict[str, ipaddress.IPv4Network | ipaddress.IPv6Network]
_TYPES = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]


class Allocator:
    """Gives out cluster addresses and node ports, lowest free one first, and knows who has which."""

    def __init__(self, networks: Iterable[str], ports: range) -> None:
        """`networks`: the service ranges, the cluster's first family first."""
        self.networks: Networks = {}
        for text in networks:
            network = ipaddress.ip_network(text)
            self.networks[f"IPv{network.version}"] = network
        self.ports = ports
        self._addresses: set[str] = set()
        self._taken: set[tuple[str, int]] = set()

    @property
    def families(self) -> list[str]:
        """The families of the cluster, the first one first."""
        return list(self.networks)

    def hold(self, service: Json) -> None:
        """Mark what a service has as taken."""
        self._addresses |= set(addresses(service))
        self._taken |= node_ports(service)

    def release(self, service: Json) -> None:
        """Free what a service had."""
        self._addresses -= set(addresses(service))
        self._taken -= node_ports(service)

    def has_address(self, address: str) -> bool:
        """Whether an address is taken."""
        return address in self._addresses

    def has_port(self, protocol: str, port: int) -> bool:
        """Whether a node port is taken for that protocol."""
        return (protocol, port) in self._taken

    def address(self, family: str) -> str:
        """The next free address of a family. Raises StopIteration if there is none."""
        network = self.networks[family]
        first = int(network.network_address) + 10  # the first ones are for well-known services
        last = int(network.network_address) + min(network.num_addresses - 2, 1 << 20)
        kind = ipaddress.IPv4Address if family == "IPv4" else ipaddress.IPv6Address
        found = next(str(kind(number)) for number in range(first, last) if str(kind(number)) not in self._addresses)
        self._addresses.add(found)
        return found

    def port(self, protocol: str) -> int:
        """The next free node port. Raises StopIteration if there is none."""
        found = next(port for port in self.ports if (protocol, port) not in self._taken)
        self._taken.add((protocol, found))
        return found


def addresses(service: Json) -> list[str]:
    """The cluster addresses of a service."""
    return [address for address in service["spec"].get("clusterIPs") or [] if address and address != "None"]


def node_ports(service: Json) -> set[tuple[str, int]]:
    """The node ports of a service, with their protocols."""
    spec = service["spec"]
    taken = {
        (port.get("protocol", "TCP"), port["nodePort"]) for port in spec.get("ports") or [] if port.get("nodePort")
    }
    return taken | ({("TCP", spec["healthCheckNodePort"])} if spec.get("healthCheckNodePort") else set())


def default(service: Json) -> None:
    """Fill in what a service does not say, in place."""
    spec = service.setdefault("spec", {})
    kind = spec.setdefault("type", "ClusterIP")
    spec.setdefault("sessionAffinity", "None")
    if spec["sessionAffinity"] == "ClientIP":
        spec.setdefault("sessionAffinityConfig", {}).setdefault("clientIP", {}).setdefault("timeoutSeconds", 10800)
    for port in spec.get("ports") or []:
        port.setdefault("protocol", "TCP")
        port.setdefault("targetPort", port.get("port"))
    if kind in ("NodePort", "LoadBalancer"):
        spec.setdefault("externalTrafficPolicy", "Cluster")
    if kind == "LoadBalancer":
        spec.setdefault("allocateLoadBalancerNodePorts", True)
    if kind != "ExternalName":
        spec.setdefault("internalTrafficPolicy", "Cluster")


def problems(service: Json, old: Json | None, allocator: Allocator) -> list[Json]:
    """What is wrong with a service, as causes of a 422."""
    spec = service["spec"]
    found: list[Json] = []
    if spec["type"] not in _TYPES:
        found.append(not_supported("spec.type", spec["type"], _TYPES))
    ports = spec.get("ports") or []
    headless = spec.get("clusterIP") == "None"
    if not ports and not headless and spec["type"] != "ExternalName":
        found.append(required("spec.ports"))
    names: set[str] = set()
    mine = node_ports(old) if old else set()
    for index, port in enumerate(ports):
        field = f"spec.ports[{index}]"
        number = port.get("port", 0)
        if not 0 < number < 65536:
            found.append(invalid_value(f"{field}.port", number, "must be between 1 and 65535, inclusive"))
        if port["protocol"] not in ("TCP", "UDP", "SCTP"):
            found.append(not_supported(f"{field}.protocol", port["protocol"], ["SCTP", "TCP", "UDP"]))
        if len(ports) > 1 and not port.get("name"):
            found.append(required(f"{field}.name"))
        elif port.get("name") in names:
            found.append(cause(f"{field}.name", "FieldValueDuplicate", f'Duplicate value: "{port["name"]}"'))
        names.add(port.get("name", ""))
        node_port = port.get("nodePort")
        if node_port and node_port not in allocator.ports:
            last = allocator.ports[-1]
            why = f"provided port is not in the valid range. The range of valid ports is {allocator.ports[0]}-{last}"
            found.append(invalid_value(f"{field}.nodePort", node_port, why))
        elif (
            node_port and (port["protocol"], node_port) not in mine and allocator.has_port(port["protocol"], node_port)
        ):
            found.append(invalid_value(f"{field}.nodePort", node_port, "provided port is already allocated"))
    found += _address_problems(spec, old, allocator)
    return found


def _address_problems(spec: Json, old: Json | None, allocator: Allocator) -> list[Json]:
    before = addresses(old) if old else []
    asked = spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else [])
    found: list[Json] = []
    for index, address in enumerate(asked):
        if address in ("None", "") or address in before:
            continue
        field = f"spec.clusterIPs[{index}]"
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            found.append(invalid_value(field, address, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"))
            continue
        network = allocator.networks.get(f"IPv{parsed.version}")
        if network is None or parsed not in network:
            why = f"failed to allocate IP {address}: the provided network does not match the current range"
            found.append(invalid_value("spec.clusterIPs", [address], why))
        elif allocator.has_address(address):
            why = f"failed to allocate IP {address}: provided IP is already allocated"
            found.append(invalid_value("spec.clusterIPs", [address], why))
    if before and asked and spec["type"] != "ExternalName" and asked[0] != before[0] and old:
        found.append(invalid_value("spec.clusterIPs[0]", asked, "may not change once set"))
    return found


def allocate(service: Json, old: Json | None, allocator: Allocator) -> None:
    """Give a service its addresses and ports, in place; what an update no longer needs is freed."""
    if old:
        allocator.release(old)
    spec = service["spec"]
    if spec["type"] == "ExternalName":
        for name in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
            spec.pop(name, None)
    else:
        _families(spec, allocator)
    allocator.hold(service)
    if spec["type"] != "ExternalName" and spec.get("clusterIP") != "None":
        have = spec.get("clusterIPs") or []
        spec["clusterIPs"] = [*have, *(allocator.address(family) for family in spec["ipFamilies"][len(have) :])]
        spec["clusterIP"] = spec["clusterIPs"][0]
    exposed = spec["type"] == "NodePort" or (
        spec["type"] == "LoadBalancer" and spec.get("allocateLoadBalancerNodePorts", True)
    )
    for port in spec.get("ports") or []:
        if exposed and not port.get("nodePort"):
            port["nodePort"] = allocator.port(port["protocol"])
        elif spec["type"] == "ClusterIP":
            port.pop("nodePort", None)
    if spec["type"] == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local":
        if not spec.get("healthCheckNodePort"):
            spec["healthCheckNodePort"] = allocator.port("TCP")
    else:
        spec.pop("healthCheckNodePort", None)


def _families(spec: Json, allocator: Allocator) -> None:
    asked = spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else [])
    if asked:
        spec["clusterIPs"], spec["clusterIP"] = asked, asked[0]
    policy = spec.setdefault("ipFamilyPolicy", "SingleStack" if len(asked) < 2 else "PreferDualStack")
    if asked and asked[0] != "None":
        families = [f"IPv{ipaddress.ip_address(address).version}" for address in asked]
    else:
        families = list(spec.get("ipFamilies") or [])
    families = families or allocator.families[:1]
    if policy != "SingleStack":
        families += [family for family in allocator.families if family not in families]
    spec["ipFamilies"] = families[: 1 if policy == "SingleStack" else 2]
    if policy == "SingleStack" and "clusterIPs" in spec:
        spec["clusterIPs"] = spec["clusterIPs"][:1]
