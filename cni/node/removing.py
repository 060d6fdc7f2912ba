"""Taking an attachment away: both sides at once, what cannot be finished now left to the background."""

import asyncio
import logging
from collections.abc import Callable

import msgspec

from cni.node.attachments import Attachment, AttachmentStore
from cni.node.container import ContainerSide
from cni.node.device_info import remove_device_info
from cni.node.errors import CniNodeError, InputFailed, TryLater
from cni.node.keyed_locks import KeyedLocks
from cni.node.ovs_side import OvsSide
from foundation.daemon import metrics

_log = logging.getLogger(__name__)
STEPS = metrics.steps("cni_step_seconds", "Time of each step of ADD and DEL.", ("verb",))


class Removing:
    """`later` is told of attachments whose removal could not be finished."""

    def __init__(
        self,
        *,
        store: AttachmentStore,
        locks: KeyedLocks,
        container: ContainerSide,
        ovs: OvsSide,
        later: Callable[[str], None],
    ) -> None:
        self._store = store
        self._locks = locks
        self._container = container
        self._ovs = ovs
        self._later = later

    async def remove(self, attachment: Attachment) -> None:
        """Under the attachment's lock. Raises a CniNodeError when the pod's side could not be undone; when the switch's
        side cannot be, the attachment stays on record for the background."""
        attachment = msgspec.structs.replace(attachment, phase="deleting")
        try:
            self._store.put(attachment)
        except InputFailed as error:
            # A full disk needs removing most of all; the older record leads here too after a kill.
            _log.warning("%s", error)
        done = False
        try:
            with metrics.step_timer(STEPS, verb="DEL", step="both"):
                detached, unplugged = await asyncio.gather(
                    self._container.detach(attachment), self._ovs.unplug(attachment), return_exceptions=True
                )
            remove_device_info(attachment)
            if isinstance(detached, BaseException):
                raise detached
            if isinstance(unplugged, BaseException) and not isinstance(unplugged, CniNodeError):
                raise unplugged
            done = unplugged is None
            if not done:
                _log.warning("%s: %s", attachment.describe(), unplugged)
        finally:
            if not done:
                self._later(attachment.id)
        if done:
            self._store.remove(attachment.id)

    async def finish(self, attachment: Attachment) -> None:
        """Under the attachment's lock: removes it in whole, or raises the reason why that is not possible yet."""
        await self.remove(attachment)
        if self._store.get(attachment.id) is not None:
            raise TryLater(f"{attachment.describe()} is not wholly removed yet")

    async def undo(self, attachment: Attachment) -> None:
        """Under the attachment's lock, after a failed ADD, whose reason matters more than this one's."""
        try:
            await self.remove(attachment)
        except CniNodeError as error:
            _log.error("undoing %s failed and is repeated in the background: %s", attachment.describe(), error)

    async def collect(self, identity: str) -> None:
        """Removes an attachment if there still is one."""
        async with self._locks.hold(identity):
            attachment = self._store.get(identity)
            if attachment is not None:
                await self.remove(attachment)
