"""Telling those who use a volume what became of it: Events about the volume, its claim, and the pods that have it."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Literal

from csi.node_dpu.volumes import Volumes
from foundation.kube.client import KubeClient
from foundation.kube.errors import KubeError
from foundation.kube.events import EventRecorder
from foundation.kube.models.core import Pod
from foundation.kube.models.meta import ObjectReference
from foundation.kube.resources import PODS

_log = logging.getLogger(__name__)
Kind = Literal["Normal", "Warning"]
# More than that waits for its pods to be looked up only when something is very wrong.
_WAITING: Final = 1000


class Users:
    """`hosts` says where the pods of this DPU's volumes run."""

    def __init__(
        self, kube: KubeClient, volumes: Volumes, events: EventRecorder, *, hosts: Callable[[], frozenset[str]]
    ) -> None:
        self._kube = kube
        self._volumes = volumes
        self._events = events
        self._hosts = hosts
        self._news: asyncio.Queue[tuple[ObjectReference, Kind, str, str]] = asyncio.Queue(_WAITING)

    def tell(self, volume_id: str, kind: Kind, reason: str, message: str) -> None:
        """Returns at once; the pods are told by `run`."""
        for volume in self._volumes.known.values():
            source = volume.spec.csi
            if source is None or source.volume_handle != volume_id:
                continue
            self._events.event(volume, kind, reason, message)
            claim = volume.spec.claim_ref
            if claim is not None:
                self._events.about(claim, kind, reason, message)
                if not self._news.full():
                    self._news.put_nowait((claim, kind, reason, message))

    async def run(self) -> None:
        """Tell pods until cancelled."""
        while True:
            claim, kind, reason, message = await self._news.get()
            try:
                for pod in await self._pods(claim):
                    self._events.event(pod, kind, reason, message)
            except KubeError as error:
                _log.warning("the pods that use claim %s could not be told of %s: %s", claim.name, reason, error)

    async def _pods(self, claim: ObjectReference) -> list[Pod]:
        return [
            pod
            for host in self._hosts()
            for pod in await self._kube.list(PODS, namespace=claim.namespace, field_selector=f"spec.nodeName={host}")
            if claim.name in _claims(pod)
        ]


def _claims(pod: Pod) -> set[str]:
    """The names of the claims that a pod's volumes are; a generic ephemeral volume's is made of both names."""
    return {
        one.persistent_volume_claim.claim_name if one.persistent_volume_claim else f"{pod.metadata.name}-{one.name}"
        for one in pod.spec.volumes or ()
        if one.persistent_volume_claim is not None or one.ephemeral is not None
    }
