"""The port by which the node itself reaches its pods: an internal port of the integration bridge, as
cni-controller's annotation on the Node describes it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec
from pyroute2 import IPRoute

from cni.node import links
from cni.node.assignment import Assignment, parse_one
from cni.node.errors import BadConfiguration, CniNodeError
from cni.node.link_events import LinkEvent
from cni.node.netns import NetworkNamespace
from cni.node.switch import Switch

_log = logging.getLogger(__name__)

ANNOTATION = "dpu-offload.io/management"
# Not the alias of an attachment: what has that and no record is removed.
_ALIAS = "dpu-offload management port"
_BEAT_SECONDS = 60.0
_AGAIN_SECONDS = 1.0


class ManagementPort:
    """`name` is the internal port's; `changed` gets each new reason why the node cannot reach its pods, "" for none."""

    def __init__(self, switch: Switch, node: NetworkNamespace, *, name: str, changed: Callable[[str], None]) -> None:
        self._switch = switch
        self._node = node
        self._name = name
        self._changed = changed
        self._text = ""
        self._known = asyncio.Event()
        self._look = asyncio.Event()
        self._problem: str | None = None

    def want(self, text: str) -> None:
        """The annotation's text, "" for none."""
        self._text = text
        self._known.set()
        self._look.set()

    def note(self, event: LinkEvent) -> None:
        """OVS has made the port's link (anew)."""
        if event.name == self._name and not event.gone and event.alias != _ALIAS:
            self._look.set()

    async def run(self) -> None:
        """For ever: after each change of the annotation or the link, after each connection to OVS, on a slow beat."""
        self._switch.on_state(self._look.set)
        await self._known.wait()
        while True:
            self._look.clear()
            try:
                await self._settle()
                problem = ""
            except CniNodeError as error:
                problem = f"{error}{f' ({error.details})' if error.details else ''}"
            if problem != self._problem:
                self._problem = problem
                self._changed(problem)
            try:
                await asyncio.wait_for(self._look.wait(), _AGAIN_SECONDS if problem else _BEAT_SECONDS)
            except TimeoutError:
                continue

    async def _settle(self) -> None:
        """Raises a CniNodeError."""
        if not self._text:
            await self._switch.remove_internal(self._name)
            return
        wanted = parse_one(self._text, where=f"the node's annotation {ANNOTATION}")
        if not (wanted.port and wanted.ips):
            raise BadConfiguration(f"the node's annotation {ANNOTATION} lacks port or ips; see cni-controller")
        # A node has its default route elsewhere.
        wanted = msgspec.structs.replace(wanted, gateways=())
        await self._switch.plug_internal(self._name, port=wanted.port, mac=wanted.mac)
        await self._node.run(lambda netlink: _configure(netlink, self._name, wanted))


def _configure(netlink: IPRoute, name: str, wanted: Assignment) -> None:
    link = links.find(netlink, name=name)
    if link is None:
        # Its event brings us back; until then OVS is about to make it.
        raise CniNodeError(f"OVS has not made internal port {name} yet")
    if link.alias != _ALIAS:
        _log.info("management port %s gets %s", name, ", ".join(wanted.ips))
    links.configure(netlink, link, wanted, alias=_ALIAS, finish_checksums=False)
    links.remove_others(netlink, link, wanted)
