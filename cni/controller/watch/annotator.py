"""Writes what was assigned onto pods, in the same way onto nodes: many at a time."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from cni.controller.model.annotations import POD_NETWORKS
from cni.controller.world import World
from foundation.daemon.work import Backoff, KeyedQueue
from foundation.kube.client import KubeClient
from foundation.kube.errors import Conflict, NotFound, Unprocessable
from foundation.kube.resources import IPAM_CLAIMS, NODES, PODS

_log = logging.getLogger(__name__)

WORKERS = 64
"""Patches in flight: the API server's own limits hold beyond."""


class Annotator:
    """`want(key, uid, text)` as often as one likes; only a text that differs from the pod's annotation is sent."""

    def __init__(self, client: KubeClient, world: World) -> None:
        self._client = client
        self._world = world
        self._wanted: dict[str, tuple[str, str]] = {}
        self._of_nodes: dict[str, dict[str, str]] = {}
        self.nodes = KeyedQueue(
            self._write_node, workers=8, backoff=Backoff(0.05, 1.0), deadline=30.0, name="node annotations"
        )
        self._of_claims: dict[str, tuple[str, ...]] = {}
        self.claims = KeyedQueue(self._write_claim, workers=8, backoff=Backoff(0.05, 1.0), deadline=30.0, name="claims")
        self.written = 0
        self.queue = KeyedQueue(
            self._write, workers=WORKERS, backoff=Backoff(0.05, 1.0), deadline=30.0, name="pod annotations"
        )

    def want(self, key: str, uid: str, text: str) -> None:
        """The annotation that pod `key` of that uid shall have."""
        pod = self._world.pods.get(key)
        if pod is None or pod.annotations.get(POD_NETWORKS) == text:
            self._wanted.pop(key, None)
            return
        if self._wanted.get(key) == (uid, text):
            return
        self._wanted[key] = (uid, text)
        self.queue.add(key)

    def want_node(self, name: str, texts: Mapping[str, str]) -> None:
        """Annotations that a node shall have."""
        node = self._world.nodes.get(name)
        if node is None:
            return
        waiting = self._of_nodes.get(name, {})
        missing = {key: text for key, text in texts.items() if node.annotations.get(key) != text}
        if any(waiting.get(key) != text for key, text in missing.items()):
            self._of_nodes[name] = {**waiting, **missing}
            self.nodes.add(name)

    async def _write_node(self, name: str) -> None:
        wanted = self._of_nodes.get(name)
        if wanted is None:
            return
        if name in self._world.nodes:
            try:
                await self._client.merge_patch(NODES, name, "", {"metadata": {"annotations": wanted}})
            except NotFound:
                if name in self._world.nodes:
                    raise  # as below
                _log.debug("node %s went before its annotations were written", name)
        if self._of_nodes.get(name) is wanted:
            del self._of_nodes[name]

    def want_claim(self, key: str, ips: tuple[str, ...]) -> None:
        """The addresses that an IPAMClaim's status shall name."""
        if self._of_claims.get(key) != ips:
            self._of_claims[key] = ips
            self.claims.add(key)

    async def _write_claim(self, key: str) -> None:
        ips = self._of_claims.get(key)
        if ips is None:
            return
        namespace, _, name = key.partition("/")
        try:
            await self._client.merge_patch(IPAM_CLAIMS, name, namespace, {"status": {"ips": list(ips)}}, "status")
        except NotFound:
            if self._world.networks.claimed(key) is not None:
                raise  # as below
            _log.debug("claim %s went before its addresses were written", key)
        if self._of_claims.get(key) == ips:
            del self._of_claims[key]

    async def _write(self, key: str) -> None:
        wanted = self._wanted.get(key)
        pod = self._world.pods.get(key)
        if wanted is None or pod is None or pod.uid != wanted[0] or pod.annotations.get(POD_NETWORKS) == wanted[1]:
            self._wanted.pop(key, None)
            return
        uid, text = wanted
        # The uid makes the server refuse when another pod has taken the name meanwhile.
        body = {"metadata": {"uid": uid, "annotations": {POD_NETWORKS: text}}}
        try:
            await self._client.merge_patch(PODS, pod.name, pod.namespace, body)
        except (NotFound, Conflict, Unprocessable):
            now = self._world.pods.get(key)
            if now is not None and now.uid == uid:
                raise  # it may be going, as the watch will tell; or a proxy before the API server said this
            _log.debug("pod %s went before its annotation was written", key)
        self.written += 1
        if self._wanted.get(key) == wanted:
            del self._wanted[key]
