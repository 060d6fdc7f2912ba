"""The manifests as they are shipped, read as objects."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
KUSTOMIZE = ROOT / "deploy/kustomize"
CHART = ROOT / "deploy/helm/dpu-offload"
PROFILES = ("default", "host-dpu", "kubevirt", "network-only", "storage-only")

Body = dict[str, Any]


def identity(body: Body) -> tuple[str, str, str]:
    return body["kind"], body["metadata"].get("namespace", ""), body["metadata"]["name"]


def documents(directory: Path) -> list[Body]:
    """What kustomize makes of a directory of ours, which only lists files, bases and components.

    The comparison with kustomize itself is a test of its own: the others shall not need it.
    """
    listed = yaml.safe_load((directory / "kustomization.yaml").read_text())
    assert not set(listed) - {"apiVersion", "kind", "resources", "components"}, directory
    found: list[Body] = []
    for name in (*listed.get("resources", ()), *listed.get("components", ())):
        path = (directory / name).resolve()
        found += documents(path) if path.is_dir() else [one for one in yaml.safe_load_all(path.read_text()) if one]
    return found


WORKLOADS = ("Deployment", "DaemonSet", "StatefulSet")


def everything() -> list[Body]:
    """Every object that any part of the manifests holds."""
    parts = [KUSTOMIZE / "base", *sorted(path for path in (KUSTOMIZE / "components").iterdir() if path.is_dir())]
    return [one for part in parts for one in documents(part)]


def workloads(objects: list[Body]) -> list[Body]:
    return [one for one in objects if one["kind"] in WORKLOADS]


def containers(workload: Body) -> Iterator[Body]:
    pod = workload["spec"]["template"]["spec"]
    yield from (*pod.get("initContainers", ()), *pod["containers"])
