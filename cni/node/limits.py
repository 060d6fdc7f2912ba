"""A pod's bandwidth as OVS sets it on a port. Pure.

What the pod sends is policed where it enters the switch, which cards do in hardware (a match-all tc rule); what it
receives is shaped where it leaves the switch, by a queue of its own (ovs-vswitchd.conf.db(5), Interface
ingress_policing_rate, QoS linux-htb). Packets that a card forwards itself never meet that queue: there the bound on
what is received is OVN's (cni-controller's QoS rows from the pod's annotations), which cards take as a rule.
"""

from __future__ import annotations

import msgspec

from cni.node.request import Bandwidth

SHAPER = "linux-htb"
# What runtimes send for a burst that the pod does not name: no bound at all.
_ENDLESS = 2**31 - 1
# A tenth of a second, and at least a packet of segmented size (64 KiB) with company.
_BURST_PART, _LEAST_BURST = 10, 800_000


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bits a second, and bits at once, as the pod sends and receives; a rate of 0 is no bound."""

    sent_rate: int = 0
    sent_burst: int = 0
    received_rate: int = 0
    received_burst: int = 0

    def policing(self) -> dict[str, int]:
        """Columns of the Interface, in kbit/s and kbit."""
        return {
            "ingress_policing_rate": -(-self.sent_rate // 1000),
            "ingress_policing_burst": -(-self.sent_burst // 1000),
        }

    def shaping(self) -> dict[str, str]:
        """Settings of the one queue; none without a bound."""
        if not self.received_rate:
            return {}
        return {"max-rate": str(self.received_rate), "burst": str(self.received_burst)}


def limits_of(bandwidth: Bandwidth) -> Limits:
    """CNI's ingress is what the pod receives."""
    return Limits(
        sent_rate=bandwidth.egress_rate,
        sent_burst=_burst(bandwidth.egress_rate, bandwidth.egress_burst),
        received_rate=bandwidth.ingress_rate,
        received_burst=_burst(bandwidth.ingress_rate, bandwidth.ingress_burst),
    )


def _burst(rate: int, asked: int) -> int:
    if not rate:
        return 0
    return asked if 0 < asked < _ENDLESS else max(rate // _BURST_PART, _LEAST_BURST)
