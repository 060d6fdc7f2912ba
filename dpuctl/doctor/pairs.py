"""Checks of nodes: labels, hosts with their DPUs, what a DPU has published."""

from __future__ import annotations

from collections.abc import Iterator

from dpuctl import suite
from dpuctl.doctor.check import Check, Finding, View
from dpuctl.snapshot import host_of, link_of, mode_of, storage_of

MODES = ("default", "host", "dpu")


def _labels(view: View) -> Iterator[Finding]:
    members = view.cluster.members()
    if not members:
        yield Finding(
            where="cluster",
            problem=f"no node has the label {suite.MODE_LABEL}",
            cure=f"label each node: kubectl label node NODE {suite.MODE_LABEL}=default|host|dpu",
        )
    for node in members:
        name, mode = node.metadata.name, mode_of(node)
        if mode not in MODES:
            yield Finding(
                where=f"node {name}",
                problem=f"label {suite.MODE_LABEL}={mode} is no mode",
                cure=f"set it to one of {', '.join(MODES)}",
            )
        if mode == "dpu" and not host_of(node):
            yield Finding(
                where=f"node {name}",
                problem="a DPU that names no host: nobody can be served",
                cure=f"kubectl label node {name} {suite.HOST_LABEL}=<name of its host's node>",
            )


def _pairs(view: View) -> Iterator[Finding]:
    for node in view.cluster.members():
        name, mode, host = node.metadata.name, mode_of(node), host_of(node)
        if mode == "host" and not view.cluster.dpus_of(name):
            yield Finding(
                where=f"node {name}",
                problem="in mode host, but no DPU's node names it",
                cure=f"kubectl label node <its DPU> {suite.HOST_LABEL}={name}, or "
                f"label {name} {suite.MODE_LABEL}=default",
            )
        if not host:
            continue
        found = view.cluster.node(host)
        if found is None:
            yield Finding(
                where=f"node {name}",
                problem=f"its host {host} is no node of this cluster",
                cure=f"correct the label {suite.HOST_LABEL} of {name}, or let {host} join the cluster",
            )
        elif mode_of(found) != "host":
            yield Finding(
                where=f"node {host}",
                problem=f"has the DPU {name}, but is in mode {mode_of(found) or '(none)'}",
                cure=f"kubectl label --overwrite node {host} {suite.MODE_LABEL}=host, then restart its cni-node",
            )


def _ready(view: View) -> Iterator[Finding]:
    for node in view.cluster.members():
        if mode_of(node) == "dpu":
            continue
        ready = next((one for one in node.status.conditions or () if one.type == "Ready"), None)
        if ready is None or ready.status != "True":
            yield Finding(
                where=f"node {node.metadata.name}",
                problem=f"not Ready: {ready.message if ready else 'its kubelet has reported nothing'}",
                cure="see kubelet's log on that node (journalctl -u kubelet); it must reach the API server",
            )


def _announced(view: View) -> Iterator[Finding]:
    for node in view.cluster.nodes:
        if not host_of(node):
            continue
        for daemon, annotation, found in (
            ("cni-node", suite.LINK_ANNOTATION, link_of(node)),
            ("csi-node-dpu", suite.STORAGE_ANNOTATION, storage_of(node)),
        ):
            if found is None:
                yield Finding(
                    where=f"node {node.metadata.name}",
                    problem=f"has no annotation {annotation}, by which its host would find it",
                    cure=f"see that {daemon} runs on {node.metadata.name} and is ready (/readyz, log)",
                )


def _functions(view: View) -> Iterator[Finding]:
    for node in view.cluster.nodes:
        announced = storage_of(node)
        if announced is None or announced.functions.free:
            continue
        yield Finding(
            where=f"node {node.metadata.name}",
            problem=f"all {announced.functions.total} emulated functions are in use: no further disk fits",
            cure="give the card more functions (opi-bridge: card.functions or hotplug_functions), or move pods",
            severity="warning",
        )


CHECKS = (
    Check("labels", "every node of the suite says its mode, every DPU its host", _labels),
    Check("pairs", "hosts and DPUs name one another", _pairs),
    Check("nodes-ready", "the nodes' kubelets are well", _ready),
    Check("announcements", "each DPU says where its host finds it", _announced),
    Check("free-functions", "each DPU has a function left for the next disk", _functions),
)
