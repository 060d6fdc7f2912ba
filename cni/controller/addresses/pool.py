"""The addresses of one switch: who holds which."""

from __future__ import annotations

import ipaddress
import zlib
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass

from cni.controller.errors import AddressConflict, AddressesExhausted, InvalidAddressRequest
from cni.controller.model.addressing import (
    AddressRequest,
    IPAddress,
    IPNetwork,
    mac_of,
    mac_without_address,
    parse_mac,
    prefix,
)

LARGEST = 1 << 24
"""Addresses of one subnet that are given out by choice; an IPv6 /64 has more than anybody needs."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """One holder's addresses (with prefix lengths) and MAC."""

    ips: tuple[str, ...]
    mac: str


class _Subnet:
    def __init__(self, network: IPNetwork, reserved: int, excluded: tuple[IPNetwork, ...]) -> None:
        self.excluded = [each for each in excluded if each.version == network.version]
        self.network = network
        self.base = int(network.network_address)
        # The first address names the subnet, the last of IPv4 is its broadcast.
        self.first = 1 + reserved
        self.top = network.num_addresses - (2 if network.version == 4 else 1)
        self.parts = _without(range(self.first, self.top + 1), self.base, self.excluded)
        self.count = min(sum(map(len, self.parts)), LARGEST - reserved)
        self.holders: dict[int, str] = {}
        self.used = 0
        """How many of those that are given out by choice have a holder."""

    def take(self, offset: int, holder: str) -> None:
        self.holders[offset] = holder
        self.used += self._may_pick(offset)

    def free(self, offset: int) -> None:
        del self.holders[offset]
        self.used -= self._may_pick(offset)

    def _may_pick(self, offset: int) -> bool:
        return any(offset in part for part in self.parts)

    def offset(self, address: IPAddress) -> int:
        return int(address) - self.base

    def address(self, offset: int) -> IPAddress:
        return (
            ipaddress.IPv4Address(self.base + offset)
            if self.network.version == 4
            else ipaddress.IPv6Address(self.base + offset)
        )

    def may_have(self, address: IPAddress) -> bool:
        """Whether an address of the subnet is neither reserved nor its broadcast."""
        return self.first <= self.offset(address) <= self.top

    def excludes(self, address: IPAddress) -> bool:
        return any(address in each for each in self.excluded)

    def pick(self, seed: str) -> int | None:
        """A free offset; where the search begins is a function of the seed, so that an address is not soon reused,
        and the same name finds the same address again while it is free."""
        if self.used >= self.count:
            return None
        start = zlib.crc32(seed.encode()) % self.count
        # Of one more than there are holders, one is free.
        for step in range(min(self.count, len(self.holders) + 1)):
            offset = self._nth((start + step) % self.count)
            if offset not in self.holders:
                return offset
        return None

    def _nth(self, index: int) -> int:
        for part in self.parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)


def _without(offsets: range, base: int, excluded: Sequence[IPNetwork]) -> list[range]:
    """What is left of a subnet's offsets: so that a search need not walk through millions that nobody gets."""
    left = []
    at = offsets.start
    for network in sorted(excluded, key=lambda each: int(each.network_address)):
        begin = int(network.network_address) - base
        if begin > at:
            left.append(range(at, min(begin, offsets.stop, at + LARGEST)))
        at = max(at, begin + network.num_addresses)
    left.append(range(at, min(offsets.stop, at + LARGEST)))
    return [each for each in left if each]


class Pool:
    """The addresses of one switch: at most one subnet a family, or none, then only MACs. `reserved`: addresses kept
    from the start of each.

    A holder (a pod's uid with the network) has one Assignment; asking again returns it. `token` is what those wait for
    who did not get an address.
    """

    def __init__(
        self,
        subnets: tuple[IPNetwork, ...],
        *,
        token: Hashable,
        reserved: int = 2,
        excluded: tuple[IPNetwork, ...] = (),
        macs: Collection[str] = (),
    ) -> None:
        """`macs`: nobody gets these, nor those of the reserved addresses."""
        self.subnets = subnets
        self.token = token
        self._subnets = {network.version: _Subnet(network, reserved, excluded) for network in subnets}
        self._held: dict[str, Assignment] = {}
        self._macs: dict[str, str] = {}
        self._reserved_macs = {*macs, *(mac_of(each[index + 1]) for each in subnets for index in range(reserved))}

    def held(self, holder: str) -> Assignment | None:
        """What a holder has."""
        return self._held.get(holder)

    def holder(self, text: str) -> str:
        """Who has an address (with or without prefix length) or a MAC; "" for nobody."""
        try:
            address = ipaddress.ip_interface(text).ip
        except ValueError:
            return self._macs.get(text, "")
        subnet = self._subnets.get(address.version)
        return subnet.holders.get(subnet.offset(address), "") if subnet is not None else ""

    def __len__(self) -> int:
        return len(self._held)

    def __bool__(self) -> bool:
        return True  # also one of which nobody has an address

    def claim(self, holder: str, previous: Assignment, *, partly: bool = False) -> bool:
        """Takes over what was given before (by an annotation or a row); False if it does not fit here or is held.

        `partly`: what fits is enough. So a pod that runs keeps its address when its node gets or loses a family.
        """
        if holder in self._held:
            return self._held[holder] == previous
        found: dict[int, tuple[_Subnet, int]] = {}
        try:
            mac = parse_mac(previous.mac)
            addresses = [ipaddress.ip_interface(text).ip for text in previous.ips]
        except ValueError:
            return False
        for address in addresses:
            subnet = self._subnets.get(address.version)
            if subnet is None or address not in subnet.network:
                continue
            if address.version in found or not subnet.may_have(address) or subnet.offset(address) in subnet.holders:
                return False
            found[address.version] = (subnet, subnet.offset(address))
        whole = len(found) == len(self._subnets) == len(previous.ips)
        if not (whole or (partly and found)) or mac in self._macs or mac in self._reserved_macs:
            return False
        self._take(holder, list(found.values()), mac)
        return True

    def taken(self, previous: Assignment) -> bool:
        """Whether somebody has one of these addresses, or the MAC."""
        try:
            addresses = [ipaddress.ip_interface(text).ip for text in previous.ips]
        except ValueError:
            return False
        subnets = ((address, self._subnets.get(address.version)) for address in addresses)
        return previous.mac in self._macs or any(
            subnet is not None and address in subnet.network and subnet.offset(address) in subnet.holders
            for address, subnet in subnets
        )

    def extended(self, holder: str, *, seed: str) -> Assignment:
        """What a holder has, with an address of each family that it has none of yet, as far as there are free ones."""
        held = self._held[holder]
        has = {ipaddress.ip_interface(text).version for text in held.ips}
        more = [(subnet, subnet.pick(seed)) for version, subnet in self._subnets.items() if version not in has]
        found = {subnet.network.version: offset for subnet, offset in more if offset is not None}
        if not found:
            return held
        ips = {ipaddress.ip_interface(text).version: text for text in held.ips}
        for version, offset in found.items():
            subnet = self._subnets[version]
            subnet.take(offset, holder)
            ips[version] = prefix(subnet.network, subnet.address(offset))
        whole = self._held[holder] = Assignment(tuple(ips[version] for version in self._subnets), held.mac)
        return whole

    def assign(self, holder: str, *, seed: str, request: AddressRequest) -> Assignment:
        """Addresses for a holder, all or none.

        Raises InvalidAddressRequest, AddressConflict or AddressesExhausted.
        """
        held = self._held.get(holder)
        if held is not None:
            return held
        wanted = self._wanted(request)
        offsets: list[tuple[_Subnet, int]] = []
        for version, subnet in self._subnets.items():
            offset = wanted.get(version)
            if offset is None:
                offset = subnet.pick(seed)
                if offset is None:
                    raise AddressesExhausted(
                        f"subnet {subnet.network} has no free address ({len(subnet.holders)} in use): "
                        "delete pods, or give the node a larger range",
                        waits_for=self.token,
                    )
            elif offset in subnet.holders:
                raise AddressConflict(
                    f"address {subnet.address(offset)} is in use by another pod: ask for another, or delete that pod",
                    waits_for=self.token,
                )
            offsets.append((subnet, offset))
        mac = self._mac(request, offsets, holder)
        return self._take(holder, offsets, mac)

    def _wanted(self, request: AddressRequest) -> dict[int, int]:
        wanted: dict[int, int] = {}
        for text in request.ips:
            try:
                address = ipaddress.ip_interface(text).ip
            except ValueError:
                raise InvalidAddressRequest(f"{text!r} is no IP address") from None
            subnet = self._subnets.get(address.version)
            if subnet is None or address not in subnet.network:
                raise InvalidAddressRequest(
                    f"address {address} is outside of {', '.join(map(str, self.subnets)) or 'this network'}: "
                    "ask for one inside, or for none"
                )
            if address.version in wanted:
                raise InvalidAddressRequest(f"two addresses of IPv{address.version} are asked for; one can be given")
            if not subnet.may_have(address) or subnet.excludes(address):
                raise InvalidAddressRequest(
                    f"address {address} is reserved in {subnet.network} "
                    "(gateway, management port, broadcast or excluded)"
                )
            wanted[address.version] = subnet.offset(address)
        return wanted

    def _mac(self, request: AddressRequest, offsets: list[tuple[_Subnet, int]], holder: str) -> str:
        if request.mac:
            return self._free_mac(request.mac)
        if offsets:
            subnet, offset = offsets[0]
            mac = mac_of(subnet.address(offset))
        else:
            mac = mac_without_address(holder)
        while mac in self._macs or mac in self._reserved_macs:  # somebody asked for just this one
            mac = f"{mac[:2]}:{(int(mac[3:5], 16) + 2) % 256:02x}{mac[5:]}"
        return mac

    def _free_mac(self, text: str) -> str:
        try:
            mac = parse_mac(text)
        except ValueError as error:
            raise InvalidAddressRequest(str(error)) from None
        if mac in self._reserved_macs:
            raise InvalidAddressRequest(f"MAC address {mac} is the network's own (router, management port or DHCP)")
        if mac in self._macs:
            raise AddressConflict(f"MAC address {mac} is in use by another pod or machine", waits_for=self.token)
        return mac

    def with_mac(self, holder: str, text: str) -> Assignment:
        """What a holder has, with the MAC that it asks for. Raises InvalidAddressRequest, AddressConflict."""
        held = self._held[holder]
        if text.lower().replace("-", ":") == held.mac:
            return held
        mac = self._free_mac(text)
        del self._macs[held.mac]
        self._macs[mac] = holder
        changed = self._held[holder] = Assignment(held.ips, mac)
        return changed

    def _take(self, holder: str, offsets: list[tuple[_Subnet, int]], mac: str) -> Assignment:
        for subnet, offset in offsets:
            subnet.take(offset, holder)
        ips = tuple(prefix(subnet.network, subnet.address(offset)) for subnet, offset in offsets)
        self._macs[mac] = holder
        assignment = self._held[holder] = Assignment(ips, mac)
        return assignment

    def release(self, holder: str) -> bool:
        """Gives back all that a holder has, and nobody else's; False if it had nothing."""
        held = self._held.pop(holder, None)
        if held is None:
            return False
        for text in held.ips:
            address = ipaddress.ip_interface(text).ip
            subnet = self._subnets[address.version]
            subnet.free(subnet.offset(address))
        del self._macs[held.mac]
        return True
