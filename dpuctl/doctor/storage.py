"""Checks of storage: registration with Kubernetes, targets with their access lists, DPUs with their disks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from csi import identity
from dpuctl import suite
from dpuctl.doctor.check import Check, Finding, View
from dpuctl.inspection.facts import DiskFacts, DpuFacts, ExportFacts
from dpuctl.snapshot import Snapshot, mode_of, storage_of
from foundation.kube.models.storage import VolumeAttachment


def _driver(view: View) -> Iterator[Finding]:
    if "csidrivers" in view.cluster.missing:
        return
    driver = next((one for one in view.cluster.drivers if one.metadata.name == suite.DRIVER), None)
    if driver is None:
        yield Finding(
            where="cluster",
            problem=f"there is no CSIDriver {suite.DRIVER}",
            cure="apply the suite's manifests again: the object is a part of them",
        )
    elif driver.spec.attach_required is False:
        yield Finding(
            where=f"CSIDriver {suite.DRIVER}",
            problem="attachRequired is false, so Kubernetes never asks for a disk to be attached",
            cure=f"kubectl delete csidriver {suite.DRIVER} and apply the suite's manifests again (it is immutable)",
        )


def _registered(view: View) -> Iterator[Finding]:
    if "csinodes" in view.cluster.missing:
        return
    known = {
        one.metadata.name
        for one in view.cluster.csi_nodes
        if any(driver.name == suite.DRIVER for driver in one.spec.drivers or ())
    }
    for node in view.cluster.members():
        name = node.metadata.name
        if mode_of(node) == "host" and name not in known:
            yield Finding(
                where=f"node {name}",
                problem=f"kubelet does not know the driver {suite.DRIVER}: pods with its volumes cannot start there",
                cure=f"see that csi-node-host and node-driver-registrar run on {name}, and that the registration "
                "socket lies in kubelet's plugins_registry",
            )


def _classes(view: View) -> Iterator[Finding]:
    if "storageclasses" in view.cluster.missing:
        return
    if not any(one.provisioner == suite.DRIVER for one in view.cluster.classes):
        yield Finding(
            where="cluster",
            problem=f"no StorageClass has the provisioner {suite.DRIVER}",
            cure="create one; docs/storage-backends.md has an example for each backend",
            severity="warning",
        )


def _targets(view: View) -> Iterator[Finding]:
    for machine in view.machines:
        for backend in machine.backends:
            if backend.problem:
                yield Finding(
                    where=f"backend {backend.name} ({backend.kind})",
                    problem=f"the storage does not answer: {backend.problem}",
                    cure="start the target (its SPDK), and see that the address in csi-controller's backends is right; "
                    "disks that are attached go on by their other paths or wait",
                )


def _access(view: View) -> Iterator[Finding]:
    exports = _exports(view)
    for attachment, handle, nqn in _attached(view.cluster):
        export = exports.get(handle)
        if export is None:
            continue
        where = f"volume {handle} on {attachment.spec.node_name}"
        cure = (
            "csi-controller puts it right within converge_seconds (60 s) while it runs: see its log; by hand: "
            f"rpc.py nvmf_subsystem_add_host {identity.subsystem_nqn(handle)} {nqn}"
        )
        if not export.exported:
            yield Finding(where=where, problem="the target does not offer the volume (was it restarted?)", cure=cure)
        elif nqn not in export.hosts:
            yield Finding(where=where, problem=f"the target's access list lacks the DPU's {nqn}", cure=cure)


def _exports(view: View) -> Mapping[str, ExportFacts]:
    return {one.volume: one for machine in view.machines for backend in machine.backends for one in backend.exports}


def _attached(seen: Snapshot) -> Iterator[tuple[VolumeAttachment, str, str]]:
    """(attachment, volume id, host NQN of its DPU) of everything that Kubernetes calls attached."""
    handles = {one.metadata.name: one.spec.csi.volume_handle for one in seen.ours() if one.spec.csi is not None}
    for attachment in seen.our_attachments():
        handle = handles.get(attachment.spec.source.persistent_volume_name or "", "")
        node = seen.node((attachment.status.attachment_metadata or {}).get("dpuNode", ""))
        announced = storage_of(node) if node is not None else None
        if handle and attachment.status.attached and announced is not None:
            yield attachment, handle, announced.host_nqn


def _leftovers(view: View) -> Iterator[Finding]:
    for machine in view.machines:
        for backend in machine.backends:
            for one in backend.leftovers:
                yield Finding(
                    where=f"backend {backend.name}",
                    problem=f"orphan {one.kind} {one.name}: {one.reason}",
                    cure="csi-controller removes it after garbage.grace_seconds; at once: dpuctl gc --yes",
                    severity="warning",
                )
    for dpu, disk in orphan_disks(view):
        yield Finding(
            where=f"DPU {dpu.node}",
            problem=f"holds volume {disk.volume} at {disk.function}, which no VolumeAttachment asks for",
            cure="csi-node-dpu detaches it after orphan_grace_seconds; at once: dpuctl gc, then dpuctl gc --yes",
            severity="warning",
        )


def orphan_disks(view: View) -> Iterator[tuple[DpuFacts, DiskFacts]]:
    """Volumes of ours on a DPU that no VolumeAttachment accounts for, in whatever state it is."""
    wanted = _wanted(view.cluster)
    for dpu in view.dpus():
        for disk in dpu.disks:
            if disk.volume not in wanted and _is_ours(disk.volume):
                yield dpu, disk


def _wanted(seen: Snapshot) -> set[str]:
    handles = {one.metadata.name: one.spec.csi.volume_handle for one in seen.ours() if one.spec.csi is not None}
    return {handles.get(one.spec.source.persistent_volume_name or "", "") for one in seen.our_attachments()}


def _is_ours(volume: str) -> bool:
    try:
        identity.parse_volume_id(volume)
    except identity.MalformedId:
        return False
    return True


def _attachments(view: View) -> Iterator[Finding]:
    for attachment in view.cluster.our_attachments():
        error = attachment.status.attach_error or attachment.status.detach_error
        if error is not None:
            yield Finding(
                where=f"volume {attachment.spec.source.persistent_volume_name} on {attachment.spec.node_name}",
                problem=error.message,
                cure="the message names the object; csi-attacher tries again by itself once the cause is gone",
            )


def _disks(view: View) -> Iterator[Finding]:
    looked = {dpu.node: dpu for dpu in view.dpus() if dpu.node and not dpu.attacher_problem and dpu.attacher}
    for attachment, handle, _ in _attached(view.cluster):
        name = (attachment.status.attachment_metadata or {}).get("dpuNode", "")
        dpu = looked.get(name)
        if dpu is not None and all(disk.volume != handle for disk in dpu.disks):
            yield Finding(
                where=f"DPU {name}",
                problem=f"does not hold volume {handle}, which is attached to {attachment.spec.node_name}",
                cure=f"csi-node-dpu on {name} attaches it again by itself: see its log and its /readyz",
            )
    for dpu in view.dpus():
        for disk in dpu.disks:
            if disk.state in ("degraded", "failed"):
                yield Finding(
                    where=f"DPU {dpu.node}, volume {disk.volume}",
                    problem=f"{disk.state}: {disk.reason or 'a path is down'} ({', '.join(disk.paths) or 'no path'})",
                    cure="see the target and the network between DPU and storage; the disk goes on by itself",
                )


def _cards(view: View) -> Iterator[Finding]:
    for dpu in view.dpus():
        if dpu.card_problem:
            yield Finding(
                where=f"DPU {dpu.node}",
                problem=f"the card's SPDK process does not answer: {dpu.card_problem}",
                cure="start it (on BlueField: the SNAP container), and see that opi-bridge's `spdk` names its socket; "
                "opi-bridge then makes every disk anew",
            )
        if dpu.attacher_problem:
            yield Finding(
                where=f"DPU {dpu.node}",
                problem=f"volume-attacher does not answer at {dpu.attacher}: {dpu.attacher_problem}",
                cure="start it, and see that csi-node-dpu's `attacher` names its socket",
            )


CHECKS = (
    Check("csi-driver", "the CSIDriver object is there", _driver),
    Check("csi-nodes", "the hosts' kubelets know the driver", _registered),
    Check("storage-classes", "there is a class to ask for volumes with", _classes),
    Check("targets", "the storage answers", _targets),
    Check("target-access", "each target lets in the DPU that has its volume", _access),
    Check("leftovers", "nothing of ours lies about that belongs to nothing", _leftovers),
    Check("attachments", "no volume failed to be attached or detached", _attachments),
    Check("cards", "the DPUs' storage processes answer", _cards),
    Check("disks", "each DPU holds the disks it should, with all paths", _disks),
)
