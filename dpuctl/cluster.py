"""What the API server knows of the suite's nodes, pods and volumes, as rows for a table."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from foundation.kube import resources
from foundation.kube.client import KubeClient
from foundation.kube.errors import KubeError
from foundation.kube.models.core import Node

MODE_LABEL = "dpu-offload.io/mode"
HOST_LABEL = "dpu-offload.io/host-node"
STORAGE_ANNOTATION = "dpu-offload.io/storage"
NETWORKS_ANNOTATION = "dpu-offload.io/pod-networks"
DRIVER = "csi.dpu-offload.io"
ANSWER_SECONDS = 5.0


class Unreadable(Exception):
    """The cluster could not be asked; the message says which cluster and why."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line: its cells by heading, and whether all is well with what it shows."""

    fields: Mapping[str, Any]
    well: bool = True


class Cluster:
    """One connection to an API server."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, kubeconfig: str, context: str) -> AsyncIterator[Cluster]:
        """Raises Unreadable, also for what goes wrong while it is open."""
        try:
            async with await KubeClient.connect(
                kubeconfig=kubeconfig, context=context, deadline=ANSWER_SECONDS
            ) as client:
                yield cls(client)
        except (KubeError, OSError) as error:
            raise Unreadable(f"cannot read the cluster of {kubeconfig or '$KUBECONFIG'}: {error}") from error

    async def nodes(self) -> list[Row]:
        """Nodes that carry our mode label, hosts before their DPUs."""
        nodes = [node for node in await self._client.list(resources.NODES) if MODE_LABEL in _labels(node)]
        dpus: dict[str, list[str]] = {}
        for node in nodes:
            if host := _labels(node).get(HOST_LABEL):
                dpus.setdefault(host, []).append(node.metadata.name)
        rows = []
        for node in sorted(nodes, key=_beside_its_host):
            name, mode = node.metadata.name, _mode(node)
            ready = next((c for c in node.status.conditions or () if c.type == "Ready"), None)
            functions = _annotation(node, STORAGE_ANNOTATION).get("functions", {})
            pair = dpus.get(name, []) if mode == "host" else [_labels(node).get(HOST_LABEL, "")]
            problem = ""
            if mode == "host" and not pair:
                problem = f"no DPU: label its node {HOST_LABEL}={name}"
            elif mode != "dpu" and (ready is None or ready.status != "True"):
                problem = ready.message if ready is not None else "its kubelet has reported nothing"
            elif mode == "dpu" and not functions:
                problem = "csi-node-dpu has published nothing: is it running?"
            used = f"{functions['total'] - functions['free']}/{functions['total']}" if functions else ""
            rows.append(
                Row(
                    {
                        "node": name,
                        "mode": mode,
                        "pair": [part for part in pair if part],
                        "disks": used,
                        "why": problem,
                    },
                    well=not problem,
                )
            )
        return rows

    async def pods(self, namespace: str) -> list[Row]:
        """Pods which have our annotation, one row a network."""
        rows = []
        for pod in await self._client.list(resources.PODS, namespace=namespace):
            for network, given in _annotation(pod, NETWORKS_ANNOTATION).items():
                rows.append(
                    Row(
                        {
                            "namespace": pod.metadata.namespace,
                            "pod": pod.metadata.name,
                            "node": pod.spec.node_name,
                            "network": network,
                            "addresses": given.get("ips", []),
                            "mac": given.get("mac", ""),
                            "phase": pod.status.phase,
                        }
                    )
                )
        return rows

    async def volumes(self) -> list[Row]:
        """PersistentVolumes of our driver with their attachments."""
        attachments: dict[str, list[Any]] = {}
        for attachment in await self._client.list(resources.VOLUME_ATTACHMENTS):
            if attachment.spec.attacher == DRIVER:
                name = attachment.spec.source.persistent_volume_name or ""
                attachments.setdefault(name, []).append(attachment)
        rows = []
        for volume in await self._client.list(resources.PERSISTENT_VOLUMES):
            if volume.spec.csi is None or volume.spec.csi.driver != DRIVER:
                continue
            claim = volume.spec.claim_ref
            base = {
                "volume": volume.metadata.name,
                "claim": f"{claim.namespace}/{claim.name}" if claim is not None else "",
                "size": str((volume.spec.capacity or {}).get("storage", "")),
            }
            rows += [_volume_row(base, found) for found in attachments.get(volume.metadata.name, [None])]
        return rows


def _volume_row(base: Mapping[str, Any], attachment: Any) -> Row:
    if attachment is None:
        return Row({**base, "node": "", "dpu": "", "function": "", "why": ""})
    context = attachment.status.attachment_metadata or {}
    error = attachment.status.attach_error or attachment.status.detach_error
    problem = error.message if error is not None else "" if attachment.status.attached else "being attached"
    function = context.get("vuid") or (f"pf{context['pf']}vf{context['vf']}" if "pf" in context else "")
    return Row(
        {
            **base,
            "node": attachment.spec.node_name,
            "dpu": context.get("dpuNode", ""),
            "function": function,
            "why": problem,
        },
        well=not problem,
    )


def _beside_its_host(node: Node) -> tuple[str, bool, str]:
    return _labels(node).get(HOST_LABEL, node.metadata.name), HOST_LABEL in _labels(node), node.metadata.name


def _labels(node: Node) -> Mapping[str, str]:
    return node.metadata.labels or {}


def _mode(node: Node) -> str:
    return _labels(node)[MODE_LABEL]


def _annotation(subject: Any, name: str) -> dict[str, Any]:
    try:
        found = json.loads((subject.metadata.annotations or {}).get(name, "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
