"""Telling the cluster how this DPU's attachments are: Events for a volume's users, a condition of the Node, metrics."""

import asyncio
import datetime
import logging
from collections import Counter
from collections.abc import Mapping
from typing import Final

from csi.node_dpu.mirror import Mirror
from csi.node_dpu.users import Users
from dpu_offload_stubs.attacher.v1 import attacher_pb2 as pb
from foundation.daemon import metrics
from foundation.kube.client import KubeClient
from foundation.kube.errors import KubeError
from foundation.kube.resources import NODES

_log = logging.getLogger(__name__)
CONDITION: Final = "DpuStorageDegraded"
_ATTACHMENTS: Final = metrics.gauge("dpu_attachments", "Volumes attached through this DPU, by state.", ("state",))
_PATHS_LOST: Final = metrics.gauge("dpu_paths_lost", "Paths to storage that do not work.")
_BAD: Final = {pb.ATTACHMENT_STATE_DEGRADED: "VolumeDegraded", pb.ATTACHMENT_STATE_FAILED: "VolumeFailed"}
_PREFIX: Final = "ATTACHMENT_STATE_"


def condition(attachments: Mapping[str, pb.Attachment]) -> dict[str, str]:
    """What the Node's condition says: status, reason and message."""
    bad = [one for _, one in sorted(attachments.items()) if one.state in _BAD]
    if not bad:
        return {"status": "False", "reason": "AllVolumesWork", "message": f"{len(attachments)} volumes are attached"}
    first = f"{bad[0].volume_id}: {bad[0].reason}"
    failed = any(one.state == pb.ATTACHMENT_STATE_FAILED for one in bad)
    reason = _BAD[pb.ATTACHMENT_STATE_FAILED if failed else pb.ATTACHMENT_STATE_DEGRADED]
    return {"status": "True", "reason": reason, "message": f"{len(bad)} of {len(attachments)} volumes; {first}"[:1000]}


def lost(path: pb.PathState) -> bool:
    """Whether no I/O can go this way: it is not connected, or the target says so (ANA)."""
    return not path.connected or path.ana_state == "inaccessible"


class Health:
    """Reports changes of state only; a condition is written at most every `pause` seconds."""

    def __init__(
        self,
        *,
        kube: KubeClient,
        mirror: Mirror,
        users: Users,
        node: str,
        pause: float,
    ) -> None:
        self._kube = kube
        self._mirror = mirror
        self._users = users
        self._node = node
        self._pause = pause
        self._states: dict[str, int] = {}
        self._said: dict[str, str] = {}
        self._wake = asyncio.Event()
        mirror.subscribe(self._changed)

    def _changed(self, volume_id: str) -> None:
        self._wake.set()
        if not self._mirror.synced:
            return
        there = self._mirror.attachments
        for volume in [volume_id] if volume_id else list(there):
            self._compare(volume, there.get(volume))
        if not volume_id:
            for gone in set(self._states) - set(there):
                del self._states[gone]

    def _compare(self, volume_id: str, attachment: pb.Attachment | None) -> None:
        if attachment is None:
            self._states.pop(volume_id, None)
            return
        before, now = self._states.get(volume_id), attachment.state
        self._states[volume_id] = now
        if now in _BAD and before != now:
            self._users.tell(volume_id, "Warning", _BAD[now], attachment.reason)
        elif now == pb.ATTACHMENT_STATE_ATTACHED and before in _BAD:
            self._users.tell(volume_id, "Normal", "VolumeRecovered", "the volume and all of its paths work again")

    def _count(self, there: Mapping[str, pb.Attachment]) -> None:
        counted = Counter(int(one.state) for one in there.values())
        for name, number in pb.AttachmentState.items():
            if number:
                _ATTACHMENTS.labels(state=name.removeprefix(_PREFIX).lower()).set(counted[int(number)])
        _PATHS_LOST.set(sum(lost(path) for one in there.values() for path in one.paths))

    async def run(self) -> None:
        """Keep the Node's condition and the figures current until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._mirror.synced:
                self._count(self._mirror.attachments)
                says = condition(self._mirror.attachments)
                if says != self._said:
                    await self._write(says)
            await asyncio.sleep(self._pause)

    async def _write(self, says: dict[str, str]) -> None:
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        changed = {"type": CONDITION, **says, "lastTransitionTime": now, "lastHeartbeatTime": now}
        body = {"metadata": {"name": self._node}, "status": {"conditions": [changed]}}
        try:
            await self._kube.apply(NODES, body, "csi-node-dpu", force=True, subresource="status")
        except KubeError as error:
            _log.warning("the Node's condition %s could not be written: %s", CONDITION, error)
            self._wake.set()
            return
        self._said = says
