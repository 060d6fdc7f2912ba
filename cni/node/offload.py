"""Whether the flows of an attachment's port are in hardware, and why those are not that are not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cni.node.datapath import Flow

# Netdevs by which the kernel's tunnels show in OVS; a card offloads them towards its uplink.
_TUNNELS = ("genev_sys_", "vxlan_sys_", "gre_sys", "erspan_sys")


@dataclass(frozen=True)
class Settings:
    """`other_config` of OVS: hw-offload (read when ovs-vswitchd starts) and tc-policy."""

    enabled: bool
    policy: str = "none"


@dataclass(frozen=True)
class Count:
    flows: int = 0
    packets: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class FlowVerdict:
    """A flow with the reason why it is not in hardware; "" when it is."""

    flow: Flow
    reason: str


@dataclass(frozen=True)
class OffloadReport:
    """Flows that enter or leave a port: how many are where, and the busiest of them, busiest first."""

    port: str
    hardware: Count = Count()
    software: Count = Count()
    flows: tuple[FlowVerdict, ...] = ()

    @property
    def in_hardware(self) -> bool:
        """True when there are flows, all of them in hardware."""
        return bool(self.hardware.flows) and not self.software.flows


def count(flows: Iterable[Flow], *, hardware: bool) -> Count:
    """Of some flows, those in hardware or in software."""
    chosen = [flow for flow in flows if flow.hardware == hardware]
    return Count(len(chosen), sum(flow.packets for flow in chosen), sum(flow.bytes for flow in chosen))


def report(
    port: str,
    flows: Iterable[Flow],
    *,
    settings: Settings,
    switch_of: Callable[[str], str],
    most: int = sys.maxsize,
) -> OffloadReport:
    """`switch_of` gives the id of the embedded switch that a netdev is a port of, "" for none. At most `most` flows are
    listed; all are counted."""
    mine = [flow for flow in flows if flow.in_port == port or port in flow.outputs]
    mine.sort(key=lambda flow: -flow.packets)
    listed = tuple(FlowVerdict(flow, reason(flow, settings, switch_of)) for flow in mine[:most])
    return OffloadReport(port, count(mine, hardware=True), count(mine, hardware=False), listed)


def reason(flow: Flow, settings: Settings, switch_of: Callable[[str], str]) -> str:
    """Why a flow is not in hardware, the first cause first; "" when it is."""
    if flow.hardware:
        return ""
    if slow := next((action for action in flow.actions if action.startswith("userspace(")), ""):
        return f"ovs-vswitchd handles each packet itself: {slow}"
    if not settings.enabled:
        return "OVS has hardware offload off: set other_config:hw-offload=true and restart ovs-vswitchd"
    if settings.policy == "skip_hw":
        return "OVS' tc-policy is skip_hw, which keeps rules out of the card"
    return _by_ports(flow, switch_of) or _by_layer(flow)


def _by_ports(flow: Flow, switch_of: Callable[[str], str]) -> str:
    if flow.in_port.startswith(_TUNNELS):
        return ""
    switch = switch_of(flow.in_port)
    if not switch:
        return f"comes from {flow.in_port}, which is no port of a card's switch"
    for output in flow.outputs:
        if not output.startswith(_TUNNELS) and switch_of(output) != switch:
            return f"goes to {output}, which is no port of the switch of {flow.in_port}"
    return ""


def _by_layer(flow: Flow) -> str:
    tracks = any(action.startswith("ct(") for action in flow.actions) or "ct_state(" in flow.match
    if flow.layer != "tc":
        return "tc cannot express its match or actions, so the kernel's OVS datapath has it" + (
            " (it tracks connections)" if tracks else ""
        )
    if tracks:
        return "the card's driver refused the rule, which tracks connections"
    return "the card's driver refused the rule: its table is full, or it lacks a match or an action of this flow"
