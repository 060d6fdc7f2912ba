"""Device information files, by which Multus learns what a pod was given.

Kubernetes Network Plumbing Working Group, device information specification 1.1.0: one JSON file a device, named after
resource and device, in a directory which device plugin and Multus share.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from cni.device_plugin.atomic import write_atomically
from cni.device_plugin.candidates import Candidate
from foundation.pci.address import is_address

_VERSION = "1.1.0"


def content(candidate: Candidate) -> bytes:
    """The file's text."""
    pci = {"pci-address": candidate.address}
    if candidate.function.is_vf:
        pci["pf-pci-address"] = candidate.function.pf
    if candidate.representor:
        pci["representor-device"] = candidate.representor
    if candidate.rdma:
        pci["rdma-device"] = ",".join(candidate.rdma)
    return json.dumps({"type": "pci", "version": _VERSION, "pci": pci}).encode()


class DeviceInfoFiles:
    """Blocking writes of small files below one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, resource: str, device: str) -> Path:
        return self._directory / f"{resource.replace('/', '-')}-{device}-device.json"

    def write(self, resource: str, candidate: Candidate) -> None:
        write_atomically(self.path(resource, candidate.address), content(candidate))

    def keep_only(self, resource: str, devices: Collection[str]) -> None:
        """Remove what an earlier start of ours left for devices that are no more."""
        prefix, suffix = self.path(resource, "\n").name.split("\n")
        for path in self._directory.glob("*.json"):
            device = path.name.removeprefix(prefix).removesuffix(suffix)
            # `vf` must leave the files of `vf-fast` alone.
            if path.name == self.path(resource, device).name and is_address(device) and device not in devices:
                path.unlink(missing_ok=True)
