"""The flows of this machine's switch, told apart by the ports that they enter or leave."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cni.node.datapath import Flow
from cni.node.offload import Count, OffloadReport, Settings, count, report
from cni.node.switch import Switch
from cni.node.vswitchd import Vswitchd

HARDWARE_OFFLOAD, TC_POLICY = "hw-offload", "tc-policy"


@dataclass(frozen=True)
class Snapshot:
    """All flows at one moment: `reports` by what was asked; of the whole switch, what is in hardware, what is not."""

    reports: Mapping[str, OffloadReport]
    hardware: Count
    software: Count


class SwitchFlows:
    """`switch_of` gives the id of the embedded switch that a netdev is a port of, "" for none."""

    def __init__(self, switch: Switch, vswitchd: Vswitchd, switch_of: Callable[[str], str]) -> None:
        self._switch = switch
        self._vswitchd = vswitchd
        self._switch_of = switch_of

    def settings(self) -> Settings:
        enabled = self._switch.setting(HARDWARE_OFFLOAD) == "true"
        return Settings(enabled=enabled, policy=self._switch.setting(TC_POLICY) or "none")

    async def snapshot(self, links: Mapping[str, str], *, most: int) -> Snapshot:
        """`links`: {any name: netdev}; at most `most` flows of each are listed.

        Raises TryLater when ovs-vswitchd does not answer.
        """
        flows = await self._vswitchd.flows()
        # A busy switch has a hundred thousand flows: seconds of work.
        switch_of = functools.cache(self._switch_of)
        return await asyncio.to_thread(_sorted, flows, dict(links), self.settings(), switch_of, most)


def _sorted(
    flows: tuple[Flow, ...], links: Mapping[str, str], settings: Settings, switch_of: Callable[[str], str], most: int
) -> Snapshot:
    by_port: dict[str, list[Flow]] = {link: [] for link in links.values()}
    for flow in flows:
        for port in {flow.in_port, *flow.outputs} & by_port.keys():
            by_port[port].append(flow)
    reports = {
        name: report(link, by_port[link], settings=settings, switch_of=switch_of, most=most)
        for name, link in links.items()
    }
    return Snapshot(reports, count(flows, hardware=True), count(flows, hardware=False))
