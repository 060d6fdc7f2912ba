"""What csi-node-host has to remember of a staged volume: one small file each, replaced atomically.

kubelet gives later calls only the volume id and a path; the file says which disk that is. A file that is missing or
cut is no disaster: names derive from the volume id.
"""

import hashlib
import os
from pathlib import Path

import msgspec

from csi import identity


class Staged(msgspec.Struct, frozen=True, kw_only=True):
    """`formatting` is the disk's life (boot and sequence number) during which a broken-off mkfs may be repeated.

    `passthrough` is the PCI address of a function that vfio-pci has in place of the NVMe driver; `size` is then that of
    the disk, which the host cannot see meanwhile.
    """

    volume_id: str
    namespace_uuid: str
    subsystem_nqn: str = ""
    staging_path: str = ""
    block: bool = False
    fs_type: str = ""
    read_only: bool = False
    device: str = ""
    fabrics: bool = False
    formatting: str = ""
    passthrough: str = ""
    size: int = 0
    targets: tuple[str, ...] = ()


class Records:
    """Blocking: single small files on the node's own disk."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def get(self, volume_id: str) -> Staged | None:
        try:
            record = msgspec.json.decode(self._path(volume_id).read_bytes(), type=Staged)
        except (OSError, msgspec.DecodeError):
            return None
        return record if record.volume_id == volume_id else None

    def put(self, record: Staged) -> None:
        path = self._path(record.volume_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, msgspec.json.encode(record))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)

    def drop(self, volume_id: str) -> None:
        self._path(volume_id).unlink(missing_ok=True)

    def _path(self, volume_id: str) -> Path:
        return self._directory / f"{hashlib.sha256(volume_id.encode()).hexdigest()[:40]}.json"


def uuid_of(volume_id: str, record: Staged | None) -> str:
    """Raises identity.MalformedId for an id that is not ours and of which nothing is remembered."""
    if record is not None and record.namespace_uuid:
        return record.namespace_uuid
    identity.parse_volume_id(volume_id)
    return identity.namespace_uuid(volume_id)
