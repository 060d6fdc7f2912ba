"""Which network devices carry the node's default route."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

# Kernel's own columns: /proc/net/route (Iface Destination .. Mask ..), /proc/net/ipv6_route (dest prefixlen .. iface).
_REJECT = 0x0200


def default_route_netdevs(procfs: Path) -> frozenset[str]:
    """Netdevs with an IPv4 or IPv6 default route in the namespace that `procfs` shows."""
    return frozenset({*ipv4(_lines(procfs / "net/route")), *ipv6(_lines(procfs / "net/ipv6_route"))})


def ipv4(lines: Iterable[str]) -> set[str]:
    """Netdevs of the default routes in the text of /proc/net/route."""
    found = set()
    for line in lines:
        columns = line.split()
        if len(columns) >= 8 and columns[1] == "00000000" and columns[7] == "00000000":
            found.add(columns[0])
    return found


def ipv6(lines: Iterable[str]) -> set[str]:
    """Netdevs of the default routes in the text of /proc/net/ipv6_route; the kernel's reject entries do not count."""
    found = set()
    for line in lines:
        columns = line.split()
        if len(columns) >= 10 and columns[1] == "00" and not int(columns[8], 16) & _REJECT and columns[9] != "lo":
            found.add(columns[9])
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
