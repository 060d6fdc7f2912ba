"""Keeps what is actual equal to the attachments on record: at start, after an event, on a slow beat.

Each attachment is compared under its own lock. What is half made or half removed is undone or finished; what lives is
put right; what carries our mark but is on no record is removed.
"""

import asyncio
import logging

from cni.node import links
from cni.node.attachments import Attachment, AttachmentStore
from cni.node.container import ContainerSide
from cni.node.errors import UnknownContainer
from cni.node.host_pods import HostPods
from cni.node.keyed_locks import KeyedLocks
from cni.node.link_events import LinkEvent
from cni.node.netns import opened
from cni.node.ovs_side import OvsSide
from cni.node.removing import Removing
from cni.node.switch import Switch
from foundation.daemon.work import Backoff, KeyedQueue

_log = logging.getLogger(__name__)
_WORKERS = 8
_ATTEMPT_SECONDS = 60.0


class Keeper:
    """`switch` is None on a host whose DPU has it; `host_pods` is None where no host is served."""

    def __init__(
        self,
        *,
        store: AttachmentStore,
        locks: KeyedLocks,
        container: ContainerSide,
        ovs: OvsSide,
        switch: Switch | None,
        sweep_seconds: float,
    ) -> None:
        self._store = store
        self._locks = locks
        self._container = container
        self._ovs = ovs
        self._switch = switch
        self._sweep_seconds = sweep_seconds
        self._own: Removing | None = None
        self._host: HostPods | None = None
        self._queue = KeyedQueue(
            self._settle, workers=_WORKERS, backoff=Backoff(0.2, 10.0), deadline=_ATTEMPT_SECONDS, name="keeper"
        )

    def keep(self, own: Removing, host: HostPods | None) -> None:
        self._own, self._host = own, host

    def add(self, identity: str) -> None:
        """Looks at one attachment soon."""
        self._queue.add(identity)

    def add_later(self, identity: str) -> None:
        """Looks at one attachment after a moment: what just failed would fail again."""
        self._queue.add(identity, delay=0.5)

    def add_all(self) -> None:
        """Looks at everything, orphans included."""
        for attachment in self._store:
            self._queue.add(attachment.id)
        self._queue.add("")

    def add_functions(self) -> None:
        """Looks at attachments with a function: a representor came, went or has another name."""
        for attachment in self._store:
            if attachment.function is not None and attachment.phase == "ready" and not self._locks.held(attachment.id):
                self._queue.add(attachment.id)

    def add_unfinished(self) -> None:
        """Looks at what could not be removed before: the DPU is back."""
        for attachment in self._store:
            if attachment.phase == "deleting":
                self._queue.add(attachment.id)

    def note(self, event: LinkEvent) -> None:
        """A function of ours that shows up in the node's namespace: its pod lost it, or nobody wants it any more."""
        mark = links.marked(event.alias)
        if mark is not None and mark[1] is not None and not event.gone and not self._locks.held(mark[0]):
            self._queue.add(mark[0])

    def note_port(self, identity: str) -> None:
        """A port of ours vanished or lost its identity, which is no news while its attachment is being removed."""
        attachment = self._store.get(identity)
        if attachment is None or attachment.phase != "deleting":
            self._queue.add(identity)

    async def settled(self) -> None:
        await self._queue.idle()

    async def run(self) -> None:
        """For ever: the queue, and the slow beat."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._queue.run())
            tasks.create_task(self._beat())

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._sweep_seconds)
            self.add_all()

    async def _settle(self, identity: str) -> None:
        if not identity:
            await self._sweep()
            return
        async with self._locks.hold(identity):
            attachment = self._store.get(identity)
            if attachment is None:
                await self._remove_orphan(identity)
            elif attachment.host:
                await self._settle_host(attachment)
            else:
                await self._settle_own(attachment)

    async def _settle_own(self, attachment: Attachment) -> None:
        assert self._own is not None
        if attachment.phase != "ready":
            _log.info("finishing %s, which was %s", attachment.describe(), attachment.phase)
            await self._own.finish(attachment)
            return
        try:
            present = await self._container.present(attachment)
        except UnknownContainer as error:
            _log.info("%s has ended without DEL (%s); it is removed", attachment.describe(), error)
            await self._own.finish(attachment)
            return
        if not present:
            _log.warning("%s has lost its interface; it is made again", attachment.describe())
            with opened(attachment.netns) as namespace:
                await self._container.attach(attachment, namespace, linked=asyncio.Event())
        await self._ovs.ensure(attachment)

    async def _settle_host(self, attachment: Attachment) -> None:
        if self._host is None:
            # This machine no longer serves a host.
            await self._ovs.unplug(attachment)
            self._store.remove(attachment.id)
        elif attachment.phase != "ready":
            await self._host.remove(attachment)
        else:
            await self._host.ensure(attachment)

    async def _remove_orphan(self, identity: str) -> None:
        if self._switch is not None and await self._switch.unplug(identity):
            _log.warning("removed a port of attachment %s, which is on no record", identity)
        for link in await self._container.marked():
            mark = links.marked(link.alias)
            if mark is not None and mark[0] == identity:
                _log.warning("removed link %s of attachment %s, which is on no record", link.name, identity)
                await self._container.clear(link)

    async def _sweep(self) -> None:
        """Finds what carries our mark without being on record."""
        owned = set(self._switch.owned()) if self._switch is not None and not self._switch.problem() else set()
        marked = {mark[0] for link in await self._container.marked() if (mark := links.marked(link.alias))}
        for identity in sorted(owned | marked):
            if self._store.get(identity) is None and not self._locks.held(identity):
                self._queue.add(identity)
