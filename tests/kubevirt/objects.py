"""KubeVirt's objects as its API would give them, with only what a test says."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

_numbers = itertools.count(1)
READY = {"kubevirt.io/migration-target-ready-timestamp": "2026-11-22T03:00:00Z"}


def interface(name: str, binding: str = "bridge", *, mac: str = "", plugin: str = "", **more: Any) -> dict[str, Any]:
    bound: dict[str, Any] = {"binding": {"name": plugin}} if plugin else {binding: {}}
    return {"name": name, **bound, **({"macAddress": mac} if mac else {}), **more}


def spec(*interfaces: Mapping[str, Any], networks: Mapping[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """`networks`: interface name -> NAD for those that are not on the pod network. One bridge without any."""
    given = interfaces or (interface("default"),)
    names = networks or {}
    return {
        "domain": {"devices": {"interfaces": list(given)}},
        "networks": [
            {"name": each["name"], "multus": {"networkName": names[each["name"]]}}
            if each["name"] in names
            else {"name": each["name"], "pod": {}}
            for each in given
        ],
        **more,
    }


def vm(name: str, template: Mapping[str, Any] | None = None, **annotations: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "ns", "uid": f"vm-{name}", "annotations": annotations},
        "spec": {"running": True, "template": {"metadata": {}, "spec": dict(template or spec())}},
    }


def vmi(
    name: str, template: Mapping[str, Any] | None = None, *, on: str = "", migration: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    status: dict[str, Any] = {"nodeName": on}
    if migration is not None:
        status["migrationState"] = dict(migration)
    return {
        "metadata": {"name": name, "namespace": "ns", "uid": f"vmi-{name}"},
        "spec": dict(template or spec()),
        "status": status,
    }


def migration(name: str, of: str, phase: str = "Running") -> dict[str, Any]:
    """Its uid is `uid-<name>`."""
    return {
        "metadata": {"name": name, "namespace": "ns", "uid": f"uid-{name}"},
        "spec": {"vmiName": of},
        "status": {"phase": phase},
    }


def launcher(
    of: str,
    name: str,
    *,
    on: str,
    job: str = "",
    ready: bool = False,
    phase: str = "Running",
    leaving: bool = False,
    networks: str = "",
    created: int = 0,
    annotations: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """A virt-launcher pod; later ones are younger. `job`: the migration it is the target of."""
    number = created or next(_numbers)
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": "ns",
        "uid": f"pod-{name}",
        "creationTimestamp": f"2026-11-22T02:{number // 60 % 60:02}:{number % 60:02}Z",
        "labels": {
            "kubevirt.io": "virt-launcher",
            "vm.kubevirt.io/name": of,
            **({"kubevirt.io/migrationJobUID": f"uid-{job}"} if job else {}),
            **(labels or {}),
        },
        "annotations": {
            "kubevirt.io/domain": of,
            **(READY if ready else {}),
            **({"k8s.v1.cni.cncf.io/networks": networks} if networks else {}),
            **(annotations or {}),
        },
    }
    if leaving:
        metadata["deletionTimestamp"] = "2026-11-22T04:00:00Z"
    return {
        "metadata": metadata,
        "spec": {"nodeName": on, "containers": [{"name": "compute", "image": "i"}]},
        "status": {"phase": phase},
    }
