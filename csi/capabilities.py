"""Which access modes and types of the CSI specification this driver serves, with the reason where it does not."""

from collections.abc import Iterable
from typing import Final

from csi.errors import InvalidArgument
from dpu_offload_stubs.csi import csi_pb2

Mode = csi_pb2.VolumeCapability.AccessMode

FILE_SYSTEMS: Final = ("ext4", "xfs", "btrfs")
SHARED_MODES: Final = frozenset({Mode.MULTI_NODE_READER_ONLY, Mode.MULTI_NODE_MULTI_WRITER})
READ_ONLY_MODES: Final = frozenset({Mode.SINGLE_NODE_READER_ONLY, Mode.MULTI_NODE_READER_ONLY})
SINGLE_TARGET_MODES: Final = frozenset({Mode.SINGLE_NODE_SINGLE_WRITER})
_SERVED: Final = frozenset(
    {
        Mode.SINGLE_NODE_WRITER,
        Mode.SINGLE_NODE_SINGLE_WRITER,
        Mode.SINGLE_NODE_MULTI_WRITER,
        Mode.SINGLE_NODE_READER_ONLY,
        Mode.MULTI_NODE_READER_ONLY,
        Mode.MULTI_NODE_MULTI_WRITER,
    }
)


def refusal(capability: csi_pb2.VolumeCapability) -> str:
    """Why this capability cannot be had; empty when it can."""
    kind = capability.WhichOneof("access_type")
    if kind is None:
        return "volume_capability.access_type is missing: say block or mount"
    mode = capability.access_mode.mode
    if mode == Mode.UNKNOWN:
        return "volume_capability.access_mode is missing"
    if mode not in _SERVED:
        name = Mode.Mode.Name(mode) if mode in Mode.Mode.values() else str(mode)
        return f"access mode {name} is not served: nothing would keep the other nodes from writing"
    if kind == "mount":
        if mode == Mode.MULTI_NODE_MULTI_WRITER:
            return (
                "ReadWriteMany with a file system is not served: ext4, xfs and btrfs are destroyed when two nodes "
                "mount them for writing; use volumeMode Block or ReadWriteOnce"
            )
        if capability.mount.fs_type and capability.mount.fs_type not in FILE_SYSTEMS:
            return f"fs_type {capability.mount.fs_type[:40]!r} is not served; choose one of {', '.join(FILE_SYSTEMS)}"
        if any("\0" in flag or "\n" in flag or len(flag) > 4096 for flag in capability.mount.mount_flags):
            return "mount_flags hold a character that no mount option can have"
    return ""


def check(capabilities: Iterable[csi_pb2.VolumeCapability], *, field: str = "volume_capabilities") -> None:
    """Raises InvalidArgument for the first capability that cannot be had, and when there is none."""
    given = list(capabilities)
    if not given:
        raise InvalidArgument(f"{field} is missing: say how the volume shall be used")
    for capability in given:
        if reason := refusal(capability):
            raise InvalidArgument(reason)


def check_one(
    request: csi_pb2.ControllerPublishVolumeRequest | csi_pb2.NodeStageVolumeRequest | csi_pb2.NodePublishVolumeRequest,
) -> csi_pb2.VolumeCapability:
    """The request's one capability. Raises InvalidArgument."""
    if not request.HasField("volume_capability"):
        raise InvalidArgument("volume_capability is missing: say how the volume shall be used")
    check([request.volume_capability], field="volume_capability")
    return request.volume_capability


def shared(capability: csi_pb2.VolumeCapability) -> bool:
    """Whether several nodes may have the volume at once."""
    return capability.access_mode.mode in SHARED_MODES


def read_only(capability: csi_pb2.VolumeCapability) -> bool:
    return capability.access_mode.mode in READ_ONLY_MODES
