"""Forgets the connections of an address that has left, so that its next owner does not inherit them."""

import ipaddress
import logging
from collections.abc import Iterable

from cni.node.errors import TryLater
from cni.node.vswitchd import Vswitchd

_log = logging.getLogger(__name__)


async def flush(vswitchd: Vswitchd, addresses: Iterable[str]) -> None:
    """Connections from and to each address (with or without prefix length), in every zone of OVS' datapath.

    A switch that is away has nothing to forget when it comes back with a userspace datapath; with the kernel's, entries
    end by their own time-outs. So a failure is logged and goes no further.
    """
    ips = [ipaddress.ip_interface(address).ip for address in addresses]
    matches = [f"{'ct_nw' if ip.version == 4 else 'ct_ipv6'}_{end}={ip}" for ip in ips for end in ("src", "dst")]
    try:
        await vswitchd.commands(("dpctl/flush-conntrack", match) for match in matches)
    except TryLater as error:
        _log.warning("connections of %s are not flushed: %s", ", ".join(map(str, ips)), error)
