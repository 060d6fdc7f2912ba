"""Subnets of nodes: those given, checked; for nodes without, parts of the pod ranges."""

from __future__ import annotations

import ipaddress
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence

from cni.controller.errors import AddressesExhausted, InvalidNode
from cni.controller.model.addressing import IPNetwork, networks

SMALLEST = 8
"""Addresses of a node's subnet at least: its own three, the broadcast, a few pods."""


def checked(name: str, texts: Sequence[str], others: Mapping[str, Sequence[IPNetwork]]) -> tuple[IPNetwork, ...]:
    """A node's subnets from their texts. Raises InvalidNode, also when they overlap with those of `others`."""
    try:
        subnets = networks(texts)
    except ValueError as error:
        raise InvalidNode(f"node {name}: {error}") from None
    if len({network.version for network in subnets}) != len(subnets):
        raise InvalidNode(f"node {name} has two subnets of one family: {', '.join(texts)}")
    for network in subnets:
        if network.num_addresses < SMALLEST:
            raise InvalidNode(f"node {name}: subnet {network} is too small, use at least {SMALLEST} addresses")
        for other, taken in others.items():
            for each in taken:
                if each.version == network.version and each.overlaps(network):
                    message = f"node {name}: subnet {network} overlaps with {each} of node {other}"
                    raise InvalidNode(message, waits_for=("ranges",))
    return subnets


def overlap(some: Iterable[IPNetwork], others: Iterable[IPNetwork]) -> bool:
    """Whether any two have an address in common."""
    return any(one.version == other.version and one.overlaps(other) for one in some for other in others)


def pick(
    name: str, ranges: Sequence[IPNetwork], prefixes: tuple[int, int], is_free: Callable[[IPNetwork], bool]
) -> tuple[IPNetwork, ...]:
    """One subnet of each range for `name`, a node or a network on a node; `prefixes`: lengths for IPv4, IPv6.

    Where the search begins is a function of the name, so that a node that comes back finds its subnet again while it is
    free. Raises AddressesExhausted, or InvalidNode for a prefix length that the range cannot hold.
    """
    return tuple(_one(name, whole, prefixes[0 if whole.version == 4 else 1], is_free) for whole in ranges)


def _one(name: str, whole: IPNetwork, length: int, is_free: Callable[[IPNetwork], bool]) -> IPNetwork:
    if not whole.prefixlen <= length <= whole.max_prefixlen - 3:
        raise InvalidNode(f"node subnets of /{length} do not fit into range {whole}: change cluster.host_prefixes")
    count = 1 << (length - whole.prefixlen)
    size = 1 << (whole.max_prefixlen - length)
    start = zlib.crc32(name.encode()) % count
    for step in range(min(count, 1 << 16)):
        base = int(whole.network_address) + (start + step) % count * size
        candidate: IPNetwork
        if whole.version == 4:
            candidate = ipaddress.IPv4Network((base, length))
        else:
            candidate = ipaddress.IPv6Network((base, length))
        if is_free(candidate):
            return candidate
    raise AddressesExhausted(
        f"range {whole} has no free /{length} for {name}: widen it, or remove nodes", waits_for=("ranges",)
    )
