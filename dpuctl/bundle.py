"""The contents of a support archive. Secrets are never read, and what looks like one is struck out."""

from __future__ import annotations

import io
import json
import re
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from dpuctl import suite
from dpuctl.doctor.check import View, examine
from dpuctl.doctor.checks import ALL
from dpuctl.machines import Reached
from dpuctl.snapshot import Snapshot
from foundation.daemon import logs
from foundation.daemon.configuration import version
from foundation.kube import resources
from foundation.kube.client import KubeClient
from foundation.kube.errors import KubeError

LOG_LINES: Final = 2000
# Objects of others' making may hold anything in annotations; kubectl's copy of what was applied does it often.
_STRUCK: Final = ("kubectl.kubernetes.io/last-applied-configuration",)
_SECRET_KEY: Final = re.compile(r"(?i)(password|passwd|token|secret|private.?key|dhchap|psk|credential)")
_REDACTED: Final = "(struck out)"


async def collect(client: KubeClient, seen: Snapshot, reached: Reached) -> dict[str, bytes]:
    """{name in the archive: content}."""
    found: dict[str, Any] = {
        "version.json": {"dpuctl": version(), "taken": seen.taken},
        "unreached.json": list(reached.unreached),
        "doctor.json": [
            {"check": one.check.name, "findings": [vars(each) for each in one.findings]}
            for one in examine(View(seen, reached.machines), ALL)
        ],
        "machines.json": reached.machines,
    }
    for name in (
        "nodes",
        "pods",
        "volumes",
        "attachments",
        "classes",
        "drivers",
        "csi_nodes",
        "networks",
        "leases",
        "suite_pods",
    ):
        found[f"cluster/{name}.json"] = getattr(seen, name)
    try:
        found["cluster/events.json"] = await client.list(resources.EVENTS)
    except KubeError as error:
        found["cluster/events.json"] = {"problem": str(error)}
    archive = {name: _clean(value) for name, value in found.items()}
    return archive | await _logs(client, seen)


async def _logs(client: KubeClient, seen: Snapshot) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for pod in seen.suite_pods:
        for container in pod.spec.containers:
            name = f"logs/{pod.metadata.namespace}/{pod.metadata.name}/{container.name}.log"
            try:
                text = await client.request(
                    "GET",
                    suite.SUITE_PODS.path(pod.metadata.namespace, pod.metadata.name, "log"),
                    query={"container": container.name, "tailLines": str(LOG_LINES), "timestamps": "true"},
                )
            except KubeError as error:
                text = f"not readable: {error}\n".encode()
            found[name] = logs.redact(text.decode("utf-8", "replace")).encode()
    return found


def _clean(value: Any) -> bytes:
    plain = _struck(msgspec.to_builtins(value))
    return logs.redact(json.dumps(plain, indent=1)).encode()


def _struck(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            key: _REDACTED if key in _STRUCK or (_SECRET_KEY.search(key) and isinstance(inner, str)) else _struck(inner)
            for key, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_struck(one) for one in value]
    return value


def write(file: Path, contents: Mapping[str, bytes]) -> None:
    """A .tar.gz that only its owner may read. An archive of that name is replaced when the new one is whole."""
    fresh = file.with_name(f"{file.name}.new")
    fresh.touch(mode=0o600)
    with tarfile.open(fresh, "w:gz") as archive:
        for name, content in sorted(contents.items()):
            entry = tarfile.TarInfo(f"dpu-offload/{name}")
            entry.size, entry.mtime, entry.mode = len(content), int(time.time()), 0o600
            archive.addfile(entry, io.BytesIO(content))
    fresh.replace(file)
