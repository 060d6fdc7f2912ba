"""The settings of csi-controller."""

from typing import Any

import msgspec

from foundation.daemon.configuration import DaemonConfig


class TlsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PEM files for calling csi-node-dpu; the certificate names `<node>.csi-controller.dpu-offload.io`."""

    ca: str
    certificate: str
    key: str


class DpuConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds, in seconds, of the calls to a DPU's csi-node-dpu."""

    attach_seconds: float = 60.0
    detach_seconds: float = 8.0
    """After it, unpublish succeeds all the same: the target has cut the DPU off already."""
    list_seconds: float = 5.0


class GarbageConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Leftovers on the storage: how often they are looked for, and how long one is only reported."""

    every_seconds: float = 600.0
    grace_seconds: float = 3600.0
    remove: bool = True
    """Remove what nothing can ever need again (subsystems without volume, broken-off creations, stale access)."""
    remove_volumes: bool = False
    """Also volumes that no PersistentVolume names. Off by default: a retained volume's PersistentVolume may be gone."""


class CsiControllerConfig(DaemonConfig, frozen=True, kw_only=True):
    """csi-controller: CSI Identity, Controller and GroupController on one unix socket."""

    socket: str = "/run/dpu-offload/csi-controller.sock"
    """Where the side-cars call."""
    kubeconfig: str = ""
    """File, or empty for in-cluster, then $KUBECONFIG."""
    context: str = ""
    tls: TlsConfig
    dpu: DpuConfig = DpuConfig()
    backends: dict[str, dict[str, Any]]
    """Storage backends by name, the first half of volume ids; key `kind` chooses the sort (default: the name)."""
    default_backend: str = ""
    """For StorageClasses without `backend`; empty: the first one."""
    converge_seconds: float = 60.0
    """The slow beat on which exports are compared with VolumeAttachments."""
    garbage: GarbageConfig = GarbageConfig()
