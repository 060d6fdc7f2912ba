"""What the page shows, made of Kubernetes objects: an entry a pair of host and DPU, or a plain node. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Final, TypeVar

import msgspec

from cni.controller.model.annotations import GROUP, HOST_NODE, MODE
from foundation.kube.models.core import Node, PersistentVolume, Pod
from foundation.kube.models.storage import VolumeAttachment

_DRIVER: Final = "csi.dpu-offload.io"
_DEGRADED: Final = "DpuStorageDegraded"
_DONE: Final = ("Succeeded", "Failed")

T = TypeVar("T")
# What JSON can carry on to a browser as a number of its own.
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class _Given(msgspec.Struct, frozen=True):
    ips: tuple[str, ...] = ()


class _Functions(msgspec.Struct, frozen=True):
    total: _Count = 0
    free: _Count = 0


class _Storage(msgspec.Struct, frozen=True):
    functions: _Functions = _Functions()


class _Offload(msgspec.Struct, frozen=True, rename="camel"):
    hardware_bytes: _Count = 0
    software_bytes: _Count = 0


class PortView(msgspec.Struct, frozen=True):
    """A pod's port in one network."""

    pod: str
    network: str
    addresses: tuple[str, ...]
    phase: str


class DiskView(msgspec.Struct, frozen=True):
    """A volume attached to the host. `problem`: why it is not well."""

    claim: str
    size: str
    function: str
    dpu: str
    problem: str


class DpuView(msgspec.Struct, frozen=True):
    """A DPU: its functions, and the share of traffic (0 to 1) that its card carries, None while it is not known."""

    name: str
    functions_total: int
    functions_free: int
    offload: float | None
    problem: str


class NodeView(msgspec.Struct, frozen=True):
    """A host with its DPUs, or a plain node."""

    name: str
    mode: str
    ready: bool
    problem: str
    offload: float | None
    dpus: tuple[DpuView, ...]
    ports: tuple[PortView, ...]
    disks: tuple[DiskView, ...]


def draw(
    *,
    nodes: Iterable[Node],
    pods: Iterable[Pod],
    volumes: Iterable[PersistentVolume],
    attachments: Iterable[VolumeAttachment],
) -> dict[str, NodeView]:
    """{name of the host or plain node: its view}. A DPU without a host stands for itself."""
    ours = {node.metadata.name: node for node in nodes if MODE in node.metadata.labels}
    ports: dict[str, list[PortView]] = {}
    for pod in pods:
        if pod.spec.node_name in ours and pod.status.phase not in _DONE:
            ports.setdefault(pod.spec.node_name, []).extend(_ports(pod))
    known = {one.metadata.name: one for one in volumes if one.spec.csi is not None and one.spec.csi.driver == _DRIVER}
    disks: dict[str, list[DiskView]] = {}
    for attachment in attachments:
        volume = known.get(attachment.spec.source.persistent_volume_name or "")
        if volume is not None and attachment.spec.attacher == _DRIVER:
            disks.setdefault(attachment.spec.node_name, []).append(_disk(attachment, volume))
    found: dict[str, NodeView] = {}
    for name, node in sorted(ours.items()):
        if node.metadata.labels.get(HOST_NODE, "") in ours:
            continue
        dpus = [one for one in ours.values() if one.metadata.labels.get(HOST_NODE) == name]
        found[name] = NodeView(
            name=name,
            mode=node.metadata.labels[MODE],
            ready=not _unready(node),
            problem=_unready(node),
            offload=_share(node),
            dpus=tuple(_dpu(one) for one in sorted(dpus, key=lambda one: one.metadata.name)),
            ports=tuple(sorted(ports.get(name, ()), key=lambda port: (port.pod, port.network))),
            disks=tuple(sorted(disks.get(name, ()), key=lambda disk: disk.claim)),
        )
    return found


def _ports(pod: Pod) -> Iterable[PortView]:
    for network, text in (_annotation(pod.metadata.annotations, "pod-networks", dict[str, msgspec.Raw]) or {}).items():
        given = _decoded(text, _Given)
        if given is not None:
            yield PortView(pod.metadata.key, network, given.ips, pod.status.phase)


def _disk(attachment: VolumeAttachment, volume: PersistentVolume) -> DiskView:
    context = attachment.status.attachment_metadata or {}
    error = attachment.status.attach_error or attachment.status.detach_error
    claim = volume.spec.claim_ref
    waiting = "" if attachment.status.attached else "being attached"
    return DiskView(
        claim=f"{claim.namespace}/{claim.name}" if claim is not None else volume.metadata.name,
        size=str((volume.spec.capacity or {}).get("storage", "")),
        function=context.get("vuid") or (f"pf{context['pf']}vf{context.get('vf', 0)}" if "pf" in context else ""),
        dpu=context.get("dpuNode", ""),
        problem=error.message if error is not None else waiting,
    )


def _dpu(node: Node) -> DpuView:
    storage = _annotation(node.metadata.annotations, "storage", _Storage)
    degraded = next((one for one in node.status.conditions or () if one.type == _DEGRADED), None)
    problem = "" if storage is not None else "its csi-node-dpu has published nothing that can be read"
    functions = storage.functions if storage is not None else _Functions()
    if degraded is not None and degraded.status == "True":
        problem = degraded.message
    return DpuView(
        name=node.metadata.name,
        functions_total=functions.total,
        functions_free=functions.free,
        offload=_share(node),
        problem=problem,
    )


def _unready(node: Node) -> str:
    """A node that is a DPU may have no kubelet."""
    ready = next((one for one in node.status.conditions or () if one.type == "Ready"), None)
    if ready is None:
        return "" if HOST_NODE in node.metadata.labels else "its kubelet has reported nothing"
    return "" if ready.status == "True" else ready.message or "not ready"


def _share(node: Node) -> float | None:
    told = _annotation(node.metadata.annotations, "offload", _Offload) or _Offload()
    both = told.hardware_bytes + told.software_bytes
    return round(told.hardware_bytes / both, 4) if both else None


def _annotation(annotations: Mapping[str, str], name: str, kind: type[T]) -> T | None:
    text = annotations.get(f"{GROUP}/{name}")
    return _decoded(text, kind) if text is not None else None


def _decoded(text: str | msgspec.Raw, kind: type[T]) -> T | None:
    """None for what is not as our daemons write it: anybody may write on an object, and the others are shown still."""
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, RecursionError):
        return None
