"""Telling the cluster, in an annotation of the DPU's Node, how to call this DPU and what it has left."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

import msgspec

from csi.announcement import STORAGE_ANNOTATION, Announcement, Functions
from csi.node_dpu.convergence import transport_words
from csi.node_dpu.mirror import AttacherRefusal, Mirror
from dpu_offload_stubs.attacher.v1 import attacher_pb2
from foundation.daemon.backoff import Backoff
from foundation.kube.client import KubeClient
from foundation.kube.errors import KubeError
from foundation.kube.models.core import Node
from foundation.kube.reflector import Reflector
from foundation.kube.resources import NODES

_log = logging.getLogger(__name__)
_INTERNAL: Final = "InternalIP"


def announcement(inventory: attacher_pb2.InventoryResponse, *, node: str, endpoint: str) -> Announcement:
    """What the annotation says."""
    return Announcement(
        endpoint=endpoint,
        server_name=f"{node}.csi-node-dpu.dpu-offload.io",
        host_nqn=inventory.host_nqn,
        host_id=inventory.host_id,
        functions=Functions(total=inventory.functions_total, free=inventory.functions_free),
        transports=tuple(sorted(transport_words(inventory.transports))),
    )


def endpoint(node: Node | None, *, advertise: str, port: int) -> str:
    """host:port for csi-controller: as configured, or the Node's internal address; "" when that is not known yet."""
    if advertise:
        return advertise
    addresses = node.status.addresses or () if node is not None else ()
    address = next((one.address for one in addresses if one.type == _INTERNAL), "")
    if not address:
        return ""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class Announcer:
    """Keeps the annotation current: at once after a change, but not more often than every `pause` seconds."""

    def __init__(
        self,
        *,
        kube: KubeClient,
        nodes: Reflector[Node],
        mirror: Mirror,
        node: str,
        advertise: str,
        port: int,
        pause: float,
        beat: float,
    ) -> None:
        self._kube = kube
        self._nodes = nodes
        self._mirror = mirror
        self._node = node
        self._advertise = advertise
        self._port = port
        self._pause = pause
        self._beat = beat
        self._wake = asyncio.Event()
        nodes.subscribe(lambda _change: self._wake.set())
        mirror.subscribe(lambda _volume: self._wake.set())

    async def run(self) -> None:
        await self._nodes.synced()
        pauses = Backoff(0.5, 30.0)
        failures = 0
        while True:
            self._wake.clear()
            pause = self._pause
            try:
                await self._announce()
                failures = 0
            except (KubeError, AttacherRefusal) as error:
                failures += 1
                pause = pauses.delay(failures)
                _log.warning("the Node's annotation is not current: %s", error)
            await asyncio.sleep(pause)
            if not failures:
                try:
                    async with asyncio.timeout(self._beat):
                        await self._wake.wait()
                except TimeoutError:
                    continue

    async def _announce(self) -> None:
        if not self._mirror.synced:
            return
        node = self._nodes.store.get(self._node)
        where = endpoint(node, advertise=self._advertise, port=self._port)
        if node is None or not where:
            return
        inventory = await self._mirror.inventory(seconds=5.0)
        text = msgspec.json.encode(announcement(inventory, node=self._node, endpoint=where)).decode()
        if node.metadata.annotations.get(STORAGE_ANNOTATION) == text:
            return
        body: Mapping[str, object] = {"metadata": {"annotations": {STORAGE_ANNOTATION: text}}}
        await self._kube.merge_patch(NODES, self._node, "", body)
        _log.info("announced %d of %d functions free at %s", inventory.functions_free, inventory.functions_total, where)
