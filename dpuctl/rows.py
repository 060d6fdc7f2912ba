"""Tables made of a snapshot: nodes with their pairs, pods with their ports, volumes with their attachments. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from cni.controller.translate.names import pod_port_name
from cni.selection import secondary_port_name
from csi import identity
from dpuctl import suite
from dpuctl.inspection.facts import DiskFacts, Machine, PortFacts
from dpuctl.snapshot import Snapshot, host_of, mode_of, networks_of, offload_of, storage_of
from dpuctl.suite import GivenNetwork
from foundation.kube.models.core import Node, PersistentVolume, Pod
from foundation.kube.models.storage import VolumeAttachment


@dataclasses.dataclass(frozen=True)
class Row:
    """One line: its cells by heading, and whether all is well with what it shows."""

    fields: Mapping[str, Any]
    well: bool = True


def nodes(seen: Snapshot) -> list[Row]:
    """Nodes that carry our mode label, hosts before their DPUs."""
    versions = _versions(seen)
    rows = []
    for node in seen.members():
        name, mode = node.metadata.name, mode_of(node)
        pair = [one.metadata.name for one in seen.dpus_of(name)] if mode == "host" else [host_of(node)]
        announced = storage_of(node)
        used = ""
        if announced is not None:
            used = f"{announced.functions.total - announced.functions.free}/{announced.functions.total}"
        problem = _node_problem(seen, node)
        rows.append(
            Row(
                {
                    "node": name,
                    "mode": mode,
                    "pair": [part for part in pair if part],
                    "disks": used,
                    "offload": _share(node),
                    "version": sorted(versions.get(name, ())),
                    "why": problem,
                },
                well=not problem,
            )
        )
    return rows


def _node_problem(seen: Snapshot, node: Node) -> str:
    name, mode = node.metadata.name, mode_of(node)
    if mode == "host" and not seen.dpus_of(name):
        return f"no DPU: label its node {suite.HOST_LABEL}={name}"
    if mode == "dpu":
        if not host_of(node):
            return f"no host: label it {suite.HOST_LABEL}=<node of its host>"
        if storage_of(node) is None:
            return "csi-node-dpu has published nothing: is it running?"
        bad = next((c for c in node.status.conditions or () if c.type == suite.DEGRADED and c.status == "True"), None)
        return bad.message if bad is not None else ""
    ready = next((c for c in node.status.conditions or () if c.type == "Ready"), None)
    if ready is None:
        return "its kubelet has reported nothing"
    return "" if ready.status == "True" else ready.message


def _share(node: Node) -> str:
    share = offload_of(node)
    if share is None or not share.hardware_bytes + share.software_bytes:
        return ""
    return f"{100 * share.hardware_bytes / (share.hardware_bytes + share.software_bytes):.0f} %"


def _versions(seen: Snapshot) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for pod in seen.suite_pods:
        if version := pod.metadata.labels.get(suite.VERSION_LABEL, ""):
            found.setdefault(pod.spec.node_name, set()).add(version)
    return found


def pods(seen: Snapshot, namespace: str, machines: list[Machine]) -> list[Row]:
    """Pods which have our annotation, one row a network; with machines looked at, function, representor and chassis."""
    plugged = {
        (port.pod, port.network): (machine, port) for machine in machines for port in machine.ports() if port.pod
    }
    rows = []
    for pod in seen.pods:
        if namespace and pod.metadata.namespace != namespace:
            continue
        for network, given in networks_of(pod).items():
            fields = {
                "namespace": pod.metadata.namespace,
                "pod": pod.metadata.name,
                "node": pod.spec.node_name,
                "network": network,
                "addresses": list(given.ips),
                "mac": given.mac,
                "port": port_name(pod, network, given),
                "phase": pod.status.phase,
            }
            if machines:
                fields |= _where(plugged.get((pod.metadata.key, network)))
            rows.append(Row(fields))
    return rows


def port_name(pod: Pod, network: str, given: GivenNetwork) -> str:
    """The logical switch port of a pod in a network, from what it was given there."""
    if given.port:
        return given.port
    namespace, name = pod.metadata.namespace, pod.metadata.name
    return pod_port_name(namespace, name) if network == "default" else secondary_port_name(namespace, name, network)


def _where(found: tuple[Machine, PortFacts] | None) -> dict[str, str]:
    if found is None:
        return {"function": "", "interface": "", "chassis": ""}
    machine, port = found
    switch = next((one for one in machine.switches if port in one.ports), None)
    return {"function": port.function, "interface": port.interface, "chassis": switch.chassis if switch else ""}


def volumes(seen: Snapshot, machines: list[Machine]) -> list[Row]:
    """PersistentVolumes of our driver with their attachments; with DPUs looked at, the state of their paths."""
    attachments: dict[str, list[VolumeAttachment]] = {}
    for attachment in seen.our_attachments():
        attachments.setdefault(attachment.spec.source.persistent_volume_name or "", []).append(attachment)
    disks = {disk.volume: disk for machine in machines for dpu in machine.dpus for disk in dpu.disks}
    rows = []
    for volume in seen.ours():
        found: Sequence[VolumeAttachment | None] = attachments.get(volume.metadata.name) or [None]
        rows += [_volume(volume, attachment, disks, looked=bool(machines)) for attachment in found]
    return rows


def _volume(
    volume: PersistentVolume, attachment: VolumeAttachment | None, disks: Mapping[str, DiskFacts], *, looked: bool
) -> Row:
    claim, source = volume.spec.claim_ref, volume.spec.csi
    handle = source.volume_handle if source is not None else ""
    context = (attachment.status.attachment_metadata if attachment is not None else None) or {}
    problem = _attachment_problem(attachment)
    disk = disks.get(handle) if attachment is not None else None
    fields: dict[str, Any] = {
        "volume": volume.metadata.name,
        "claim": f"{claim.namespace}/{claim.name}" if claim is not None else "",
        "size": str((volume.spec.capacity or {}).get("storage", "")),
        "node": attachment.spec.node_name if attachment is not None else "",
        "dpu": context.get("dpuNode", ""),
        "function": context.get("vuid") or (f"pf{context['pf']}vf{context.get('vf', 0)}" if "pf" in context else ""),
        "target": _target(handle),
    }
    if looked:
        fields["paths"] = list(disk.paths) if disk is not None else []
    if disk is not None and not problem and disk.state != "attached":
        problem = f"{disk.state}: {disk.reason}"
    fields["why"] = problem
    return Row(fields, well=not problem)


def _attachment_problem(attachment: VolumeAttachment | None) -> str:
    if attachment is None:
        return ""
    error = attachment.status.attach_error or attachment.status.detach_error
    if error is not None:
        return error.message
    return "" if attachment.status.attached else "being attached"


def _target(handle: str) -> str:
    try:
        return identity.subsystem_nqn(handle)
    except identity.MalformedId:
        return handle
