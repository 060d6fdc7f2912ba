"""Container Device Interface files: device nodes by name, which the container runtime resolves itself.

CDI specification 0.5.0: kind `vendor/class`, devices with container edits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from cni.device_plugin.atomic import write_atomically
from cni.device_plugin.nodes import Node

_VERSION = "0.5.0"
_KIND = re.compile(r"[A-Za-z]([A-Za-z0-9_.-]*[A-Za-z0-9])?/[A-Za-z]([A-Za-z0-9_-]*[A-Za-z0-9])?")


def kind(resource: str) -> str:
    """`dpu-offload.io/vf.fast` -> `dpu-offload.io/vf_fast`: a class has no dots."""
    vendor, _, name = resource.partition("/")
    return f"{vendor}/{re.sub(r'[^A-Za-z0-9_-]', '_', name)}"


def is_kind(text: str) -> bool:
    """Whether vendor and class both begin with a letter and end with a letter or digit."""
    return _KIND.fullmatch(text) is not None


def qualified(resource: str, device: str) -> str:
    """The name that kubelet hands to the runtime."""
    return f"{kind(resource)}={device}"


def content(resource: str, nodes: Mapping[str, Sequence[Node]]) -> bytes:
    """The file's text; devices without nodes are left out, as the specification forbids empty edits."""
    devices = [
        {
            "name": device,
            "containerEdits": {
                "deviceNodes": [
                    {"path": node.container, "hostPath": node.host, "permissions": "rw"} for node in nodes[device]
                ]
            },
        }
        for device in sorted(nodes)
        if nodes[device]
    ]
    return json.dumps({"cdiVersion": _VERSION, "kind": kind(resource), "devices": devices}, indent=1).encode()


def write(directory: Path, resource: str, nodes: Mapping[str, Sequence[Node]]) -> None:
    """Replace the resource's file. Blocking."""
    write_atomically(directory / f"{kind(resource).replace('/', '-')}.json", content(resource, nodes))
