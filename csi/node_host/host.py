"""What the handlers of csi-node-host share."""

import asyncio
import os
import posixpath
from dataclasses import dataclass
from pathlib import Path

from csi import identity
from csi.calls import Calls
from csi.errors import InvalidArgument, NotFound
from csi.node_host.config import CsiNodeHostConfig
from csi.node_host.disks import Disks
from csi.node_host.fabrics import Fabrics
from csi.node_host.filesystems import FileSystems
from csi.node_host.passthrough import Passthrough
from csi.node_host.records import Records, Staged, uuid_of
from foundation.pci.nvme import NvmeNamespace

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, kw_only=True)
class Host:
    config: CsiNodeHostConfig
    disks: Disks
    fabrics: Fabrics
    file_systems: FileSystems
    passthrough: Passthrough
    records: Records
    calls: Calls

    async def record(self, volume_id: str) -> Staged | None:
        return await asyncio.to_thread(self.records.get, volume_id)

    async def remember(self, record: Staged) -> None:
        await asyncio.to_thread(self.records.put, record)

    async def forget(self, volume_id: str) -> None:
        await asyncio.to_thread(self.records.drop, volume_id)

    def namespace(self, volume_id: str, record: Staged | None) -> NvmeNamespace | None:
        """The volume's disk as sysfs shows it now, whatever state it is in."""
        try:
            return self.disks.by_uuid(uuid_of(volume_id, record))
        except identity.MalformedId:
            return None

    def dead(self, volume_id: str, record: Staged | None) -> bool:
        """Whether touching the disk could hang: it is gone, or none of its controllers lives."""
        if record is not None and record.passthrough:
            return not self.passthrough.bound(record.passthrough)
        namespace = self.namespace(volume_id, record)
        return namespace is None or self.disks.state(namespace) != "live"

    def life_of(self, disk_name: str) -> str:
        """A disk's life on this node: it changes when the node boots and when the disk comes anew. "" if unknown."""
        try:
            sequence = Path(self.config.sysfs_root, "block", disk_name, "diskseq").read_text().strip()
            return f"{_BOOT_ID.read_text().strip()} {sequence}" if sequence else ""
        except OSError:
            return ""


def check_path(path: str, field: str) -> str:
    """An absolute path without detours. Raises InvalidArgument."""
    if not path:
        raise InvalidArgument(f"{field} is missing")
    if not path.startswith("/") or "\0" in path or len(os.fsencode(path)) > 4000:
        raise InvalidArgument(f"{field} {path[:200]!r} is not an absolute path")
    return posixpath.normpath(path)


def check_volume(volume_id: str) -> str:
    """A volume id of ours. Raises InvalidArgument when it is missing, NotFound when it is another driver's."""
    if not volume_id:
        raise InvalidArgument("volume_id is missing")
    try:
        identity.parse_volume_id(volume_id)
    except identity.MalformedId as error:
        raise NotFound(str(error)) from error
    return volume_id
