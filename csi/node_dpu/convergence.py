"""Bringing what the DPU has to what Kubernetes says, on every event and on a slow beat."""

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Final

from csi.node_dpu import desired
from csi.node_dpu.calls import RecentCalls
from csi.node_dpu.desired import Wanted
from csi.node_dpu.mirror import AttacherRefusal, Mirror
from csi.node_dpu.users import Users
from csi.node_dpu.volumes import Volumes
from foundation.daemon import logs
from foundation.daemon.backoff import Backoff
from foundation.daemon.work import KeyedQueue
from foundation.kube.errors import KubeError
from foundation.kube.models.core import Node
from foundation.kube.models.storage import VolumeAttachment
from foundation.kube.reflector import Reflector

_log = logging.getLogger(__name__)
HOST_LABEL: Final = "dpu-offload.io/host-node"
_CALL_SECONDS: Final = 60.0
# For which changes are gathered: each comparison looks at all volumes.
_BURST_SECONDS: Final = 0.05


class Convergence:
    """Compares; what has to be done is done volume by volume, with back-off."""

    def __init__(
        self,
        *,
        node: str,
        nodes: Reflector[Node],
        attachments: Reflector[VolumeAttachment],
        volumes: Volumes,
        mirror: Mirror,
        calls: RecentCalls,
        users: Users,
        beat: float,
        grace: float,
    ) -> None:
        self._node = node
        self._nodes = nodes
        self._attachments = attachments
        self._volumes = volumes
        self._mirror = mirror
        self._calls = calls
        self._users = users
        self._beat = beat
        self._grace = grace
        self._wake = asyncio.Event()
        self._orphaned_since: dict[str, float] = {}
        self._work: KeyedQueue[str] = KeyedQueue(self._settle, workers=16, backoff=Backoff(0.5, 30.0), name="volume")
        self._desired: Mapping[str, Wanted] = {}
        nodes.subscribe(lambda _change: self.look())
        attachments.subscribe(lambda change: self.look() if self._matters(change.old, change.new) else None)
        mirror.subscribe(lambda _volume: self.look())

    @property
    def errors(self) -> Mapping[str, BaseException]:
        """Volumes whose last attempt failed."""
        return self._work.errors

    @property
    def hosts(self) -> frozenset[str]:
        """The hosts this DPU sits in."""
        return hosts_of(self._nodes.store.get(self._node))

    def _matters(self, *versions: VolumeAttachment | None) -> bool:
        hosts = self.hosts
        return any(one is not None and desired.concerns(one, node=self._node, hosts=hosts) for one in versions)

    def look(self) -> None:
        """Compare soon."""
        self._wake.set()

    async def run(self) -> None:
        """Compare on every event and beat until cancelled."""
        await asyncio.gather(self._work.run(), self._watch())

    async def _watch(self) -> None:
        await self._nodes.synced()
        await self._attachments.synced()
        while True:
            try:
                await self.compare()
            except KubeError as error:
                _log.warning("could not compare with Kubernetes: %s", error)
            try:
                async with asyncio.timeout(self._pause()):
                    await self._wake.wait()
                await asyncio.sleep(_BURST_SECONDS)
            except TimeoutError:
                continue
            finally:
                self._wake.clear()

    def _pause(self) -> float:
        """Until the next beat, or until the first orphan's grace is over."""
        now = time.monotonic()
        ends = [since + self._grace - now for since in self._orphaned_since.values()]
        return max(0.05, min([self._beat, *(end for end in ends if end > 0)]))

    async def compare(self) -> None:
        """Find what is lacking and what is too much. Raises KubeError."""
        if not self._mirror.synced or not self.hosts:
            return
        mine = [
            one for one in self._attachments.store.values() if desired.concerns(one, node=self._node, hosts=self.hosts)
        ]
        await self._volumes.fetch(one.spec.source.persistent_volume_name or "" for one in mine)
        wanted = [desired.wanted(one, self._volumes.known) for one in mine]
        self._desired = {one.volume_id: one for one in wanted if one.volume_id}
        there = self._mirror.attachments
        lost = desired.keyless(wanted, there, self._volumes.known)
        for one in (*desired.missing(wanted, there), *lost):
            if not self._calls.running(one.volume_id) and one.volume_id not in self._work.errors:
                self._work.add(one.volume_id)
        self._note_orphans(desired.orphans(wanted, there))

    def _note_orphans(self, found: list[str]) -> None:
        now = time.monotonic()
        self._orphaned_since = {volume: self._orphaned_since.get(volume, now) for volume in found}
        for volume, since in self._orphaned_since.items():
            overdue = now - since >= self._grace and not self._calls.recent(volume)
            if overdue and volume not in self._work.errors:
                self._work.add(volume)

    async def _settle(self, volume_id: str) -> None:
        """Attach or detach one volume, whichever is right by now."""
        with logs.bound(volume=volume_id):
            wanted = self._desired.get(volume_id)
            there = volume_id in self._mirror.attachments
            if wanted is not None and wanted.certain and (not there or self._keyless(wanted)):
                await self._attach(wanted)
            elif wanted is None and there and volume_id in self._orphaned_since and not self._calls.recent(volume_id):
                _log.warning("%s is attached here but no VolumeAttachment names it: detaching", volume_id)
                await self._mirror.detach(volume_id, seconds=_CALL_SECONDS)

    def _keyless(self, wanted: Wanted) -> bool:
        return bool(desired.keyless([wanted], self._mirror.attachments, self._volumes.known))

    async def _attach(self, wanted: Wanted) -> None:
        volume = self._volumes.known.get(wanted.persistent_volume)
        if volume is None:
            return
        _log.info("%s is attached here by Kubernetes but not on this DPU: attaching", wanted.volume_id)
        transports = await self._transports()
        request = desired.request(volume, transports=transports, told=wanted.told)
        await self._volumes.add_secrets(request, volume)
        try:
            await self._mirror.attach(request, seconds=_CALL_SECONDS)
        except AttacherRefusal as refusal:
            self._users.tell(wanted.volume_id, "Warning", "AttachFailed", str(refusal))
            raise

    async def _transports(self) -> frozenset[str]:
        inventory = await self._mirror.inventory(seconds=5.0)
        return transport_words(inventory.transports)


def hosts_of(node: Node | None) -> frozenset[str]:
    """The hosts that a DPU's Node names."""
    host = node.metadata.labels.get(HOST_LABEL, "") if node is not None else ""
    return frozenset({host} if host else ())


def transport_words(numbers: object) -> frozenset[str]:
    """Transports as portals name them."""
    words = {1: "tcp", 2: "rdma"}
    return frozenset(words[number] for number in list(numbers) if number in words)  # type: ignore[call-overload]  # a repeated enum
