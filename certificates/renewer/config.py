"""The settings of certificate-renewer."""

from typing import Annotated

import msgspec

from foundation.daemon.configuration import DaemonConfig

Seconds = Annotated[float, msgspec.Meta(gt=0)]


class CertificateRenewerConfig(DaemonConfig, frozen=True, kw_only=True):
    """certificate-renewer: one certificate `<node>.<component>.dpu-offload.io` for the daemons of its pod."""

    node_name: Annotated[str, msgspec.Meta(min_length=1)]
    """The pod's node."""
    component: Annotated[str, msgspec.Meta(min_length=1)]
    """Whose certificate it is."""
    kubeconfig: str = ""
    """File, or empty for in-cluster, then $KUBECONFIG."""
    directory: str = "/etc/dpu-offload/tls"
    """Where tls.crt, tls.key and ca.crt are written; a tmpfs."""
    authority: str = "/etc/dpu-offload/authority/ca.crt"
    """What is trusted: the mounted ConfigMap of the signer. ca.crt in `directory` follows it."""
    wait_seconds: Seconds = 60.0
    """How long one request waits for its answer before another is made."""
    look_seconds: Seconds = 30.0
    """How often the time of renewal and the authority's file are looked at."""
