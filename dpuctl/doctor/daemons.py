"""Checks of the suite's own processes: pods, side-cars, versions, settings, who may write."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import Final

from dpuctl import suite
from dpuctl.doctor.check import Check, Finding, View
from dpuctl.suite import SuitePod
from foundation.kube.models.coordination import Lease

# What has to run beside a daemon, and what goes without it.
SIDECARS: Final[Mapping[str, Mapping[str, str]]] = {
    "csi-controller": {
        "csi-provisioner": "no claim gets a volume",
        "csi-attacher": "no volume is attached to a node",
        "csi-resizer": "no volume grows",
    },
    "csi-node-host": {"node-driver-registrar": "kubelet does not know the driver"},
}
STALE_LEASES: Final = 2.0


def _pods(view: View) -> Iterator[Finding]:
    for pod in view.cluster.suite_pods:
        if pod.metadata.deletion_timestamp is not None:
            continue
        where = f"pod {pod.metadata.key} on {pod.spec.node_name or 'no node'}"
        crashed = next((one for one in pod.status.container_statuses or () if one.waiting), None)
        if crashed is not None:
            yield Finding(
                where=where,
                problem=f"container {crashed.name} does not run: {crashed.waiting}, {crashed.restart_count} restarts",
                cure=f"kubectl logs -n {pod.metadata.namespace} {pod.metadata.name} -c {crashed.name} --previous: "
                "its last line says why in one sentence",
            )
            continue
        ready = next((one for one in pod.status.conditions or () if one.type == "Ready"), None)
        if pod.status.phase != "Running" or (ready is not None and ready.status != "True"):
            yield Finding(
                where=where,
                problem=f"not ready: {pod.status.message or (ready.message if ready else '') or pod.status.phase}",
                cure=f"kubectl describe pod -n {pod.metadata.namespace} {pod.metadata.name}; the reason of each "
                "failing check stands in the daemon's /readyz",
            )


def _sidecars(view: View) -> Iterator[Finding]:
    for pod in view.cluster.suite_pods:
        for daemon in pod.daemons():
            for sidecar, loss in SIDECARS.get(daemon, {}).items():
                if not _has(pod, sidecar):
                    yield Finding(
                        where=f"pod {pod.metadata.key}",
                        problem=f"{daemon} runs without {sidecar}: {loss}",
                        cure=f"add the container {sidecar} to its manifest (it is in the suite's own), with the "
                        "socket's directory shared",
                    )


def _has(pod: SuitePod, sidecar: str) -> bool:
    return any(sidecar in (one.name, one.image.rpartition("/")[2].partition(":")[0]) for one in pod.spec.containers)


def _versions(view: View) -> Iterator[Finding]:
    found: dict[str, list[str]] = {}
    for pod in view.cluster.suite_pods:
        if version := pod.metadata.labels.get(suite.VERSION_LABEL, ""):
            found.setdefault(version, []).append(f"pod {pod.metadata.key}")
    for machine in view.machines:
        if machine.version:
            found.setdefault(machine.version, []).append(f"machine {machine.name}")
    if len(found) > 1:
        told = "; ".join(f"{version}: {', '.join(sorted(where)[:4])}" for version, where in sorted(found.items()))
        yield Finding(
            where="cluster",
            problem=f"versions do not match: {told}",
            cure="finish the upgrade (docs/operations.md): a release talks to the one before it, not to older ones",
            severity="warning",
        )


def _configurations(view: View) -> Iterator[Finding]:
    for machine, daemon in view.daemons():
        if daemon.problem:
            yield Finding(
                where=f"{daemon.name} on {daemon.node or machine.name}",
                problem=f"its configuration cannot be used: {daemon.problem}",
                cure=f"correct the key that is named; {daemon.name} --help lists all keys",
            )


def _lease(view: View) -> Iterator[Finding]:
    leases = [one for one in view.cluster.leases if one.metadata.name == suite.CONTROLLER_LEASE]
    if "leases" in view.cluster.missing:
        return
    if not leases:
        if not any(daemon.name == "cni-controller" and not daemon.elects for _, daemon in view.daemons()):
            yield Finding(
                where="cni-controller",
                problem=f"there is no lease {suite.CONTROLLER_LEASE}: no cni-controller has ever led",
                cure="deploy cni-controller; if it runs, its log says why it cannot take the lease (usually RBAC)",
            )
        return
    # One in an abandoned namespace is nobody's trouble while another is held.
    if any(_held(one, view.now) for one in leases):
        return
    for one in leases:
        yield Finding(
            where=f"lease {one.metadata.key}",
            problem=f"not renewed for {view.now - _renewed(one):.0f} s (by {one.spec.holder_identity or 'nobody'}): "
            "no cni-controller writes, new pods get no network",
            cure="see that a cni-controller runs and reaches the API server and OVN's northbound database",
        )


def _single_writer(view: View) -> Iterator[Finding]:
    cure = "run one installation of cni-controller a northbound database, with leader_election.enabled: true"
    held = [one for one in view.cluster.leases if one.metadata.name == suite.CONTROLLER_LEASE and _held(one, view.now)]
    if len(held) > 1:
        names = ", ".join(f"{one.metadata.key} ({one.spec.holder_identity})" for one in held)
        yield Finding(where="cni-controller", problem=f"two leaders at once, by two leases: {names}", cure=cure)
    writers = [
        f"{machine.name} (pid {daemon.pid})"
        for machine, daemon in view.daemons()
        if daemon.name == "cni-controller" and not daemon.elects
    ]
    electing = sum(daemon.name == "cni-controller" and daemon.elects for _, daemon in view.daemons())
    if len(writers) > 1 or (writers and electing):
        yield Finding(
            where="cni-controller",
            problem=f"two writers: {', '.join(writers)} without leader election beside another one",
            cure=cure,
        )


def _held(lease: Lease, now: float) -> bool:
    return bool(lease.spec.holder_identity) and now - _renewed(lease) < STALE_LEASES * (
        lease.spec.lease_duration_seconds or 1
    )


def _renewed(lease: Lease) -> float:
    text = lease.spec.renew_time or lease.spec.acquire_time or ""
    try:
        return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return 0.0


CHECKS = (
    Check("pods", "the suite's pods run and are ready", _pods),
    Check("side-cars", "the daemons have the side-cars that call them", _sidecars),
    Check("versions", "all parts are of one version", _versions),
    Check("configurations", "each daemon's configuration can be used", _configurations),
    Check("leader", "a cni-controller leads", _lease),
    Check("single-writer", "only one cni-controller writes OVN's northbound database", _single_writer),
)
