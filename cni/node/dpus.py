"""The DPUs of a host: found by their nodes' label, reached at the endpoint in their nodes' annotation."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

import msgspec

from cni.link.client import LinkClient
from dpu_offload_stubs.link.v1 import link_pb2
from foundation.daemon.serving import Identity, TlsFiles
from foundation.kube.client import KubeClient
from foundation.kube.models.core import Node
from foundation.kube.reflector import Change, Reflector
from foundation.kube.resources import NODES

_log = logging.getLogger(__name__)

HOST_LABEL = "dpu-offload.io/host-node"
ANNOTATION = "dpu-offload.io/link"


class Endpoint(msgspec.Struct, frozen=True, rename="camel"):
    """Value of the annotation: `endpoint` is host:port, `server_name` what the certificate must say."""

    endpoint: str
    server_name: str = ""


def endpoint_of(node: Node) -> Endpoint | None:
    """None for a DPU that has not announced itself, or has done so in a way that nobody can use."""
    text = node.metadata.annotations.get(ANNOTATION, "")
    try:
        return msgspec.json.decode(text, type=Endpoint) if text else None
    except (msgspec.MsgspecError, RecursionError) as error:
        _log.error("node %s has a malformed annotation %s: %s", node.metadata.name, ANNOTATION, error)
        return None


def server_name(node: str) -> str:
    return Identity(node, "cni-node").server_name


class Dpus:
    """`wanted` gives, for a DPU's node name, all attachments that it shall have."""

    def __init__(
        self,
        host: str,
        *,
        tls: TlsFiles,
        wanted: Callable[[str], Sequence[link_pb2.Attachment]],
        synced: Callable[[], None],
        accept_seconds: float,
    ) -> None:
        self._host = host
        self._tls = tls
        self._wanted = wanted
        self._synced = synced
        self._accept_seconds = accept_seconds
        self._clients: dict[str, LinkClient] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ended: set[asyncio.Task[None]] = set()
        self._reflector: Reflector[Node] | None = None

    @property
    def clients(self) -> Mapping[str, LinkClient]:
        return self._clients

    def missing(self) -> str:
        """Why there is no DPU to ask."""
        if self._clients:
            return ""
        if self._reflector is not None and not self._reflector.has_synced:
            return f"the DPU of host {self._host} is not known yet: {self._reflector.last_error or 'still looking'}"
        return (
            f"host {self._host} has no DPU: no node with label {HOST_LABEL}={self._host} has the annotation "
            f"{ANNOTATION}; is cni-node running on the DPU?"
        )

    def use(self, peers: Mapping[str, str]) -> None:
        """Fixed endpoints from the configuration."""
        for node, target in peers.items():
            self._connect(node, Endpoint(target, server_name(node)))

    async def follow(self, client: KubeClient) -> None:
        """Endpoints as the DPUs' nodes announce them; for ever."""
        self._reflector = Reflector(client, NODES, label_selector=f"{HOST_LABEL}={self._host}")
        self._reflector.subscribe(self._note)
        await self._reflector.run()

    async def stop(self) -> None:
        for node in tuple(self._clients):
            self._disconnect(node)
        if self._ended:
            await asyncio.wait(self._ended)

    def _note(self, change: Change[Node]) -> None:
        endpoint = endpoint_of(change.new) if change.new is not None else None
        client = self._clients.get(change.key)
        if client is not None and (endpoint is None or endpoint.endpoint != client.target):
            # A DPU that only vanished from the API server may still serve; another address is another server.
            if endpoint is None:
                return
            self._disconnect(change.key)
        if endpoint is not None and change.key not in self._clients:
            self._connect(change.key, endpoint)

    def _connect(self, node: str, endpoint: Endpoint) -> None:
        client = LinkClient(
            node,
            endpoint.endpoint,
            server_name=endpoint.server_name or server_name(node),
            tls=self._tls,
            wanted=lambda: self._wanted(node),
            synced=lambda _: self._synced(),
            accept_seconds=self._accept_seconds,
        )
        self._clients[node] = client
        self._tasks[node] = asyncio.create_task(client.run(), name=f"link to {node}")

    def _disconnect(self, node: str) -> None:
        client, task = self._clients.pop(node), self._tasks.pop(node)

        async def end() -> None:
            task.cancel()
            await asyncio.wait({task})
            await client.close()

        ending = asyncio.create_task(end())
        self._ended.add(ending)
        ending.add_done_callback(self._ended.discard)
