"""The settings of csi-node-host."""

import msgspec

from foundation.daemon.configuration import DaemonConfig


class CsiNodeHostConfig(DaemonConfig, frozen=True, kw_only=True):
    """csi-node-host: CSI Identity and Node on one unix socket."""

    socket: str = "/run/dpu-offload/csi-node-host.sock"
    """Where kubelet calls."""
    node_name: str
    """The Kubernetes node's name, which is the CSI node id."""
    kubeconfig: str = ""
    """File, or empty for in-cluster, then $KUBECONFIG."""
    context: str = ""
    sysfs_root: str = "/sys"
    dev_root: str = "/dev"
    state_directory: str = "/var/lib/dpu-offload/csi-node-host"
    """Small records of staged volumes; they survive a restart of the daemon."""
    physical_functions: dict[str, str] = msgspec.field(default_factory=dict)
    """Physical functions of the DPU by the number the card gives them -> PCI address on this host."""
    topology: dict[str, str] = msgspec.field(default_factory=dict)
    """Topology segments of this node."""
    mount_options: dict[str, list[str]] = msgspec.field(default_factory=dict)
    """Mount options by file system, added to those of the StorageClass."""
    format_options: dict[str, list[str]] = msgspec.field(default_factory=dict)
    """Arguments for mkfs by file system."""
    disk_seconds: float = 60.0
    """Longest wait for a published disk to appear."""
    rescan_seconds: float = 1.0
    """After this long without the disk its controller is asked to look again."""
    command_seconds: float = 110.0
    """Longest run of mkfs, fsck or a resize."""
