"""Keeps OVS' hardware offload as configured, and looks whether the running ovs-vswitchd follows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Literal

from pyroute2 import IPRoute

from cni.node import links
from cni.node.attachments import AttachmentStore
from cni.node.errors import CniNodeError
from cni.node.netns import NetworkNamespace
from cni.node.ovs_side import LocalOvsSide
from cni.node.switch import Switch
from cni.node.switch_flows import HARDWARE_OFFLOAD, TC_POLICY
from cni.node.vswitchd import Vswitchd

_log = logging.getLogger(__name__)

# In external_ids: the ovs-vswitchd that was running when a setting changed which is only read at its start.
PENDING = "dpu-offload/offload-changed-under"
_BEAT_SECONDS = 60.0
_AGAIN_SECONDS = 1.0
_PORTS_LOOKED_AT = 8

Wanted = Literal["", "on", "off"]


class HardwareOffload:
    """`hardware` and `tc_policy` as wanted, "" to leave as it is; `changed` gets each new answer of `problem`."""

    def __init__(
        self,
        switch: Switch,
        vswitchd: Vswitchd,
        node: NetworkNamespace,
        *,
        store: AttachmentStore,
        ovs: LocalOvsSide,
        hardware: Wanted,
        tc_policy: str,
        changed: Callable[[str], None],
    ) -> None:
        self._switch = switch
        self._vswitchd = vswitchd
        self._node = node
        self._store = store
        self._ovs = ovs
        wanted = {HARDWARE_OFFLOAD: {"": "", "on": "true", "off": "false"}[hardware], TC_POLICY: tc_policy}
        self._wanted = {key: value for key, value in wanted.items() if value}
        self._changed = changed
        self._problem: str | None = None
        self._look = asyncio.Event()

    def problem(self) -> str:
        """Why flows do not go into the card although they shall; "" when they do, or when nothing is configured."""
        return self._problem or ""

    async def run(self) -> None:
        """For ever: after each change of OVS' settings, after each connection to it, and on a slow beat."""
        if not self._wanted:
            return
        self._switch.on_settings(self._look.set)
        while True:
            self._look.clear()
            try:
                await self._settle()
                beat = _BEAT_SECONDS
            except CniNodeError as error:
                _log.warning("hardware offload cannot be set: %s (%s)", error, error.details)
                beat = _AGAIN_SECONDS
            try:
                await asyncio.wait_for(self._look.wait(), beat)
            except TimeoutError:
                continue

    async def _settle(self) -> None:
        """Raises a CniNodeError."""
        if self._switch.problem():
            # Another check says that OVS is away.
            return
        wrong = {key: value for key, value in self._wanted.items() if self._switch.setting(key) != value}
        if wrong:
            # Once on, ovs-vswitchd reads neither again before it is restarted (ovs-vswitchd.conf.db(5)).
            was_on = self._switch.setting(HARDWARE_OFFLOAD) == "true"
            await self._switch.change_settings(wrong, {PENDING: self._vswitchd.incarnation()} if was_on else {})
            _log.info("OVS settings changed to %s", wrong)
        problem = await self._found()
        if problem != self._problem:
            self._problem = problem
            self._changed(problem)

    async def _found(self) -> str:
        pending = self._switch.mark(PENDING)
        if pending and pending == self._vswitchd.incarnation():
            settings = ", ".join(f"{key}={value}" for key, value in sorted(self._wanted.items()))
            return (
                f"ovs-vswitchd still runs with its former offload settings; restart it so that {settings} takes effect"
            )
        if self._wanted.get(HARDWARE_OFFLOAD) != "true":
            return ""
        if self._switch.userspace:
            return (
                f"bridge {self._switch.bridge} has OVS' own datapath (datapath_type netdev), whose flows no card "
                "takes; set external_ids:ovn-bridge-datapath-type=system in OVS"
            )
        # A limited port has a classifier for its limit alone.
        ready = (one for one in self._store if one.phase == "ready" and not one.bandwidth)
        names = [name for one in ready if (name := self._ovs.link(one))][:_PORTS_LOOKED_AT]
        bare = await self._node.run(lambda netlink: _without_classifier(netlink, names))
        if bare:
            return f"ovs-vswitchd has hw-offload=true but no tc classifier on its port {bare}; restart ovs-vswitchd"
        return ""


def _without_classifier(netlink: IPRoute, names: list[str]) -> str:
    """The first of these links without the ingress queueing discipline that OVS adds where it offloads; "" for none."""
    for name in names:
        link = links.find(netlink, name=name)
        if link is not None and not links.has_classifier(netlink, link.index):
            return name
    return ""
