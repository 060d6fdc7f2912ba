"""The OVS side of an attachment where this machine has the switch: representor or veth end, port, flows."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol

from pyroute2 import IPRoute

from cni.node import links
from cni.node.attachments import Attachment
from cni.node.conntrack import flush
from cni.node.errors import CniNodeError, LinkFailed, SwitchFailed, TryLater
from cni.node.keyed_locks import KeyedLocks
from cni.node.limits import limits_of
from cni.node.link_events import LinkEvent
from cni.node.netns import NetworkNamespace
from cni.node.offload import OffloadReport
from cni.node.ovn_controller import OvnController
from cni.node.representors import Representors
from cni.node.switch import Switch, SwitchPort
from cni.node.switch_flows import Snapshot, SwitchFlows
from cni.node.vswitchd import Vswitchd

_log = logging.getLogger(__name__)

_QUIET_SECONDS = 10.0
# Flows come within a tenth of this; afterwards one asks whether anybody makes them.
_USUAL_SECONDS = 0.4

Reached = Callable[[str, str], None]
"""Told of each stage (`representor`, `port`, `flows`) with the node's netdev."""


class OvsSide(Protocol):
    """Whoever does the OVS side: this machine, or the DPU over the link."""

    needs_function: bool
    """Whether it plugs nothing but a card's functions."""

    def problem(self) -> str:
        """Why nothing can be plugged now; "" when it can."""
        ...

    def admit(self, attachment: Attachment) -> None:
        """Before anything is done. Raises BadConfiguration for what can never be plugged."""
        ...

    async def plug(self, attachment: Attachment, *, deadline: float, reached: Reached) -> None:
        """Returns when the flows are there; repeatable. Raises a CniNodeError; what was done must then be unplugged."""
        ...

    async def unplug(self, attachment: Attachment) -> None:
        """Returns when the port has gone; succeeds when there is none. Raises TryLater when that cannot be known."""
        ...

    async def mismatch(self, attachment: Attachment) -> str:
        """The first thing that is not as it should be, as a sentence; "" when all is."""
        ...

    async def ensure(self, attachment: Attachment) -> None:
        """Puts a live attachment's port back where it is missing, without waiting for its flows."""
        ...

    async def offload(self, attachments: Sequence[Attachment], *, most: int) -> Mapping[str, OffloadReport]:
        """By attachment id, which flows are in hardware, at most `most` of each listed.

        Raises TryLater when the switch does not answer.
        """
        ...


class LocalOvsSide:
    needs_function = False

    def __init__(
        self,
        switch: Switch,
        representors: Representors,
        node: NetworkNamespace,
        *,
        representor_seconds: float,
        vswitchd: Vswitchd,
        flows: SwitchFlows,
        controller: OvnController,
    ) -> None:
        self._switch = switch
        self._representors = representors
        self._node = node
        self._representor_seconds = representor_seconds
        self._vswitchd = vswitchd
        self._flows = flows
        self._controller = controller
        self._locks = KeyedLocks()
        self._flushing = asyncio.Lock()
        self._users: dict[str, str] = {}
        self._up: dict[str, int] = {}
        self._running: set[asyncio.Task[None]] = set()

    def problem(self) -> str:
        return self._switch.problem()

    def admit(self, attachment: Attachment) -> None:
        """A switch takes whatever has a link."""

    def note(self, event: LinkEvent) -> None:
        """A representor that somebody takes down, or gives another MTU, is not as `plug` left it."""
        mtu = self._up.get(event.name)
        if mtu is not None and (event.gone or not event.up or mtu not in (0, event.mtu)):
            del self._up[event.name]

    def note_loss(self) -> None:
        """Link events were lost: anything may have happened."""
        self._up.clear()

    async def find(self, attachment: Attachment, *, deadline: float) -> str:
        """The node's netdev to plug. Raises SwitchFailed when a representor stays missing."""
        if attachment.function is None:
            return attachment.link
        limit = min(deadline, self._representor_seconds)
        return await self._representors.wait(attachment.function, of_host=bool(attachment.host), deadline=limit)

    async def plug(self, attachment: Attachment, *, deadline: float, reached: Reached) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline
        link = await self.find(attachment, deadline=deadline)
        reached("representor", link)
        port = switch_port(attachment, link)
        # In this order: OVS adds flags to those it read before, and would take a link down that came up meanwhile.
        await self._take_up(attachment, link)
        await self._switch.plug(port)
        reached("port", link)
        await self._installed(port, deadline=max(end - loop.time(), 0.1))
        reached("flows", link)

    async def _installed(self, port: SwitchPort, *, deadline: float) -> None:
        """Raises SwitchFailed; TryLater as soon as it is known that nobody installs flows."""
        installed = asyncio.ensure_future(self._switch.installed(port, deadline=deadline))
        try:
            while not (await asyncio.wait({installed}, timeout=_USUAL_SECONDS))[0]:
                if problem := await self._controller.lasting_problem():
                    raise TryLater(f"flows of logical port {port.port} are not installed: {problem}; try again")
            installed.result()
        finally:
            if not installed.done():
                installed.cancel()
                await asyncio.wait({installed})

    async def unplug(self, attachment: Attachment) -> None:
        await self._switch.unplug(attachment.id)
        for link in [link for link, user in self._users.items() if user == attachment.id]:
            del self._users[link]
        if attachment.function is not None and (link := self._present(attachment)):
            # The port is gone and nothing passes any more; the 20 ms that the kernel takes for this are nobody's wait.
            self._behind(self._quiet(link))
        self._behind(self._forget_connections(attachment))

    async def mismatch(self, attachment: Attachment) -> str:
        link = self.link(attachment)
        if not link:
            return f"the representor of {attachment.describe()} is missing"
        if wrong := self._switch.mismatch(switch_port(attachment, link)):
            return wrong
        mtu = attachment.assignment.mtu
        found = await self._node.run(lambda netlink: links.find(netlink, name=link))
        if found is None or not found.up:
            return f"{link} is {'missing' if found is None else 'down'} on the node"
        return f"{link} has MTU {found.mtu} instead of {mtu}" if mtu and found.mtu != mtu else ""

    async def ensure(self, attachment: Attachment) -> None:
        link = await self.find(attachment, deadline=self._representor_seconds)
        await self._take_up(attachment, link)
        await self._switch.plug(switch_port(attachment, link))

    async def offload(self, attachments: Sequence[Attachment], *, most: int) -> Mapping[str, OffloadReport]:
        return (await self.snapshot(attachments, most=most)).reports

    async def snapshot(self, attachments: Sequence[Attachment], *, most: int) -> Snapshot:
        """As `offload`, with what the whole switch has. Raises TryLater."""
        return await self._flows.snapshot({one.id: self.link(one) for one in attachments}, most=most)

    def link(self, attachment: Attachment) -> str:
        """The node's netdev now; "" for a representor that is missing."""
        return attachment.link if attachment.function is None else self._present(attachment)

    def _present(self, attachment: Attachment) -> str:
        assert attachment.function is not None
        return self._representors.find(attachment.function, of_host=bool(attachment.host))

    async def _take_up(self, attachment: Attachment, link: str) -> None:
        if attachment.function is None:
            return
        mtu = attachment.assignment.mtu
        self._users[link] = attachment.id
        async with self._locks.hold(link):
            if self._up.get(link) == mtu:
                return
            # Before it is so: who takes it down meanwhile has the last word.
            self._up[link] = mtu
            try:
                if not await self._node.run(lambda netlink: links.take_up(netlink, link, mtu=mtu)):
                    raise SwitchFailed(f"representor {link} vanished; try again when it is back")
            except CniNodeError:
                self._up.pop(link, None)
                raise

    def _behind(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs behind the answer."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _forget_connections(self, attachment: Attachment) -> None:
        """One attachment after another: OVS looks through all connections each time."""
        async with self._flushing:
            await flush(self._vswitchd, attachment.assignment.ips)

    async def _quiet(self, link: str) -> None:
        """Takes a representor down that nobody uses (again): not at once, because the next pod often comes soon."""
        await asyncio.sleep(_QUIET_SECONDS)
        async with self._locks.hold(link):
            if link not in self._users:
                self._up.pop(link, None)
                try:
                    await self._node.run(lambda netlink: _take_down(netlink, link))
                except LinkFailed as error:
                    _log.warning("%s (%s)", error, error.details)


def switch_port(attachment: Attachment, link: str) -> SwitchPort:
    """The port of an attachment on this machine's switch."""
    return SwitchPort(
        attachment=attachment.id,
        link=link,
        port=attachment.port,
        pod_uid=attachment.pod_uid,
        mac=attachment.assignment.mac,
        sandbox=attachment.container_id,
        network=attachment.network,
        limits=limits_of(attachment.bandwidth),
    )


def _take_down(netlink: IPRoute, name: str) -> None:
    link = links.find(netlink, name=name)
    if link is not None and link.up:
        links.change(netlink, link.index, f"take {name} down", state="down")
