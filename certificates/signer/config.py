"""The settings of certificate-signer."""

from typing import Annotated

import msgspec

from foundation.daemon.configuration import DaemonConfig


class CertificateSignerConfig(DaemonConfig, frozen=True, kw_only=True):
    """certificate-signer: approves and signs the requests of the suite's own service accounts."""

    kubeconfig: str = ""
    """File, or empty for in-cluster, then $KUBECONFIG."""
    namespace: str = "dpu-offload"
    """Of the service accounts, of the authority and of the lease."""
    accounts: dict[str, list[str]]
    """Service account -> components whose certificates it may hold."""
    authority: str = "certificate-authority"
    """Name of the Secret with the authorities' keys, and of the ConfigMap with what everybody trusts (ca.crt)."""
    lifetime_hours: Annotated[float, msgspec.Meta(gt=0.01, le=8760)] = 168.0
    """Of a certificate; holders renew it after two thirds."""
    authority_days: Annotated[float, msgspec.Meta(gt=0, le=7300)] = 730.0
    """Of an authority; the next one is made after half of it, and trusted everywhere before it signs."""
    spread_hours: Annotated[float, msgspec.Meta(ge=0)] = 24.0
    """How long a new authority is only trusted before it signs: every pod must have seen it by then."""
    keep_requests_hours: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    """Requests of this signer are removed after it."""
