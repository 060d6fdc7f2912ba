"""The settings of csi-node-dpu."""

from typing import Annotated

import msgspec

from foundation.daemon.configuration import DaemonConfig

Seconds = Annotated[float, msgspec.Meta(gt=0)]


class TlsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PEM files; the certificate names `<node>.csi-node-dpu.dpu-offload.io`."""

    ca: str
    certificate: str
    key: str


class CsiNodeDpuConfig(DaemonConfig, frozen=True, kw_only=True):
    """csi-node-dpu: which volumes this DPU must have, told by Kubernetes and by csi-controller."""

    node_name: str
    """The DPU's own Kubernetes node."""
    listen: str = "0.0.0.0:7443"
    """host:port for csi-controller."""
    advertise: str = ""
    """host:port by which csi-controller reaches it; empty: the Node's internal address and the port of `listen`."""
    tls: TlsConfig
    kubeconfig: str = ""
    """File, or empty for in-cluster, then $KUBECONFIG."""
    context: str = ""
    attacher: str = "unix:/run/dpu-offload/volume-attacher.sock"
    beat_seconds: Seconds = 10.0
    """Everything is compared this often, whatever happened."""
    orphan_grace_seconds: Annotated[float, msgspec.Meta(ge=0)] = 30.0
    """How long an attachment that no VolumeAttachment accounts for is left alone."""
    announce_seconds: Seconds = 2.0
    """Least time between two updates of the Node's annotation because of the number of free functions."""
