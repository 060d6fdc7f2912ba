"""Counts on a slow beat how much of the switch's traffic is in hardware: as metrics, and on this machine's Node."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import msgspec

from cni.node.attachments import AttachmentStore
from cni.node.errors import TryLater
from cni.node.offload import Count
from cni.node.ovs_side import LocalOvsSide
from cni.node.switch_flows import Snapshot
from foundation.daemon import metrics
from foundation.kube.errors import KubeError

_log = logging.getLogger(__name__)

ANNOTATION = "dpu-offload.io/offload"
# Node objects are watched by many: written when the share has moved by a point, or now and then.
_POINT = 0.01
_OLD_SECONDS = 300.0
_WHERE = ("hardware", "software")

_ALL_FLOWS = metrics.gauge("datapath_flows", "Flows of OVS' datapath by where they are.", ("where",))
_ALL_BYTES = metrics.gauge("datapath_bytes", "Bytes that the present flows have carried.", ("where",))
_LABELS = ("namespace", "pod", "network", "where")
_FLOWS = metrics.gauge("cni_offload_flows", "Flows that enter or leave a pod's port.", _LABELS)
_BYTES = metrics.gauge("cni_offload_bytes", "Bytes that the present flows of a pod's port have carried.", _LABELS)


class Share(msgspec.Struct, frozen=True, rename="camel"):
    """Value of the annotation: of all flows of this switch."""

    hardware_flows: int
    software_flows: int
    hardware_bytes: int
    software_bytes: int

    def moved_from(self, other: Share) -> bool:
        """Whether the part in hardware has moved by a point, of flows or of bytes."""
        pairs = (
            (_part(self.hardware_flows, self.software_flows), _part(other.hardware_flows, other.software_flows)),
            (_part(self.hardware_bytes, self.software_bytes), _part(other.hardware_bytes, other.software_bytes)),
        )
        return any(abs(now - before) >= _POINT for now, before in pairs)


class OffloadFigures:
    """`write` puts a text into the Node's annotation."""

    def __init__(
        self,
        store: AttachmentStore,
        ovs: LocalOvsSide,
        *,
        seconds: float,
        write: Callable[[str], Awaitable[None]],
    ) -> None:
        self._store = store
        self._ovs = ovs
        self._seconds = seconds
        self._write = write
        self._written: Share | None = None
        self._written_at = 0.0

    async def run(self) -> None:
        """For ever; returns at once where the beat is 0."""
        while self._seconds:
            await asyncio.sleep(self._seconds)
            try:
                await self.look()
            except (TryLater, KubeError) as error:
                _log.warning("the offload figures are not up to date: %s", error)

    async def look(self) -> None:
        """Counts once. Raises TryLater, KubeError."""
        ready = [one for one in self._store if one.phase == "ready"]
        found = await self._ovs.snapshot(ready, most=0)
        for gauge in (_FLOWS, _BYTES):
            gauge.clear()
        for one in ready:
            report = found.reports[one.id]
            for where, count in zip(_WHERE, (report.hardware, report.software), strict=True):
                labels = (one.pod_namespace, one.pod_name, one.network, where)
                _FLOWS.labels(*labels).set(count.flows)
                _BYTES.labels(*labels).set(count.bytes)
        for where, count in zip(_WHERE, (found.hardware, found.software), strict=True):
            _ALL_FLOWS.labels(where).set(count.flows)
            _ALL_BYTES.labels(where).set(count.bytes)
        await self._publish(found)

    async def _publish(self, found: Snapshot) -> None:
        share = _share(found.hardware, found.software)
        now = asyncio.get_running_loop().time()
        before = self._written
        if before is None or share.moved_from(before) or (share != before and now - self._written_at >= _OLD_SECONDS):
            await self._write(msgspec.json.encode(share).decode())
            self._written, self._written_at = share, now


def _share(hardware: Count, software: Count) -> Share:
    return Share(hardware.flows, software.flows, hardware.bytes, software.bytes)


def _part(hardware: int, software: int) -> float:
    return hardware / (hardware + software) if hardware + software else 0.0
