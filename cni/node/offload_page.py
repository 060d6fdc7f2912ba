"""The offload report of this node's attachments in JSON, for dpuctl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from cni.link.errors import LinkError
from cni.node.attachments import Attachment, AttachmentStore
from cni.node.errors import CniNodeError
from cni.node.hardware_offload import HardwareOffload
from cni.node.offload import Count, OffloadReport
from cni.node.ovs_side import OvsSide

PATH = "/offload"
# Flows listed of each attachment, where few attachments are asked for and where many are.
_OF_ONE_POD, _OF_ALL, _SEVERAL = 1000, 20, 9


class FlowEntry(msgspec.Struct, frozen=True, rename="camel"):
    """`layer` is "tc" or "ovs"; `reason` says why the flow is not in hardware, "" when it is."""

    match: str
    actions: tuple[str, ...]
    packets: int
    bytes: int
    layer: str
    hardware: bool
    reason: str


class AttachmentEntry(msgspec.Struct, frozen=True, rename="camel"):
    """One interface of a pod. `host` is the node whose pod it is when a DPU tells of its host's pods; `link` is the
    switch's netdev; `in_hardware` when there are flows, all of them in hardware. Flows come busiest first."""

    id: str
    pod: str
    host: str
    interface: str
    network: str
    port: str
    link: str
    in_hardware: bool
    hardware: Count
    software: Count
    flows: tuple[FlowEntry, ...]


class OffloadPage:
    """`GET /offload?pod=<namespace>/<name>`; without `pod` of all attachments here. `offload` is
    None where another machine has the switch."""

    def __init__(self, node: str, store: AttachmentStore, ovs: OvsSide, offload: HardwareOffload | None) -> None:
        self._node = node
        self._store = store
        self._ovs = ovs
        self._offload = offload

    async def __call__(self, parameters: Mapping[str, str]) -> tuple[int, object]:
        pod = parameters.get("pod", "")
        if unknown := sorted(set(parameters) - {"pod"}):
            return 400, {"error": f"unknown parameter {unknown[0]}; there is only pod=<namespace>/<name>"}
        found = [one for one in self._store if one.phase == "ready" and pod in ("", one.pod)]
        if pod and not found:
            return 404, {"error": f"pod {pod} has no attachment on node {self._node}"}
        try:
            entries = await self._entries(found)
        except (CniNodeError, LinkError) as error:
            return 503, {"error": str(error)}
        problem = self._offload.problem() if self._offload is not None else ""
        return 200, {"node": self._node, "problem": problem, "attachments": entries}

    async def _entries(self, attachments: Sequence[Attachment]) -> list[AttachmentEntry]:
        if not attachments:
            return []
        most = _OF_ONE_POD if len(attachments) < _SEVERAL else _OF_ALL
        reports = await self._ovs.offload(attachments, most=most)
        return [entry(one, reports[one.id]) for one in sorted(attachments, key=lambda one: (one.pod, one.ifname))]


def entry(attachment: Attachment, report: OffloadReport) -> AttachmentEntry:
    return AttachmentEntry(
        id=attachment.id,
        pod=attachment.pod,
        host=attachment.host,
        interface=attachment.ifname,
        network=attachment.network,
        port=attachment.port,
        link=report.port,
        in_hardware=report.in_hardware,
        hardware=report.hardware,
        software=report.software,
        flows=tuple(
            FlowEntry(
                match=one.flow.match,
                actions=one.flow.actions,
                packets=one.flow.packets,
                bytes=one.flow.bytes,
                layer=one.flow.layer,
                hardware=one.flow.hardware,
                reason=one.reason,
            )
            for one in report.flows
        ),
    )
