"""What the handlers of csi-node-host share."""

import asyncio
import os
import posixpath
from dataclasses import dataclass
from pathlib import Path

from csi import identity
from csi.calls import Calls
from csi.errors import CsiError, Internal, InvalidArgument, NotFound
from csi.node_host.config import CsiNodeHostConfig
from csi.node_host.disks import Disks
from csi.node_host.fabrics import Fabrics
from csi.node_host.filesystems import FileSystems
from csi.node_host.passthrough import Passthrough
from csi.node_host.records import Records, Staged, uuid_of
from foundation.pci.nvme import NvmeNamespace

_NAME_MAX = 255
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
        try:
            await asyncio.to_thread(self.records.put, record)
        except OSError as error:
            raise Internal(
                f"note volume {record.volume_id} in {self.config.state_directory}: {error.strerror}"
            ) from error

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

    async def at(self, record: Staged, path: str) -> bool:
        """Whether the volume was staged or published at `path`, or a device node of it is there.

        For a raw disk kubelet names the node that it has made itself (volumeDevices/<volume>/dev/<pod>).
        """
        return path in (record.staging_path, *record.targets) or await self.node_at(record, path)

    async def node_at(self, record: Staged, path: str) -> bool:
        """Whether a device node of the raw volume is at `path`. Looks at the node only, never at the disk."""
        return record.block and await asyncio.to_thread(self._is_node, record, path)

    def _is_node(self, record: Staged, path: str) -> bool:
        try:
            device = record.device
            if record.passthrough:
                device = _number(self.passthrough.device(record.passthrough).stat())
            return device == _number(os.stat(path))
        except (OSError, CsiError):
            return False

    def life_of(self, disk_name: str) -> str:
        """A disk's life on this node: it changes when the node boots and when the disk comes anew. "" if unknown."""
        try:
            sequence = Path(self.config.sysfs_root, "block", disk_name, "diskseq").read_text().strip()
            return f"{_BOOT_ID.read_text().strip()} {sequence}" if sequence else ""
        except OSError:
            return ""


def _number(found: os.stat_result) -> str:
    """`major:minor` of a device node; of anything else what no device has."""
    return f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"


def check_path(path: str, field: str) -> str:
    """An absolute path without detours. Raises InvalidArgument."""
    if not path:
        raise InvalidArgument(f"{field} is missing")
    if not path.startswith("/") or "\0" in path or len(os.fsencode(path)) > 4000:
        raise InvalidArgument(f"{field} {path[:200]!r} is not an absolute path")
    if any(len(os.fsencode(part)) > _NAME_MAX for part in path.split("/")):
        raise InvalidArgument(f"{field} {path[:200]!r}: a name in it has more than {_NAME_MAX} bytes")
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
