"""Requests for certificates (API group certificates.k8s.io/v1)."""

from __future__ import annotations

from collections.abc import Mapping

from foundation.kube.models.meta import KubernetesObject, Model


class CertificateSigningRequestSpec(Model, frozen=True):
    """`request` is a PKCS #10 request in PEM. The API server fills in who asks: user name, groups and extra facts."""

    request: bytes = b""
    signer_name: str = ""
    usages: tuple[str, ...] | None = None
    expiration_seconds: int | None = None
    username: str = ""
    groups: tuple[str, ...] | None = None
    extra: Mapping[str, tuple[str, ...]] | None = None


class CertificateSigningRequestCondition(Model, frozen=True):
    """`type` is Approved, Denied or Failed."""

    type: str = ""
    status: str = ""
    reason: str = ""
    message: str = ""


class CertificateSigningRequestStatus(Model, frozen=True):
    """`certificate` is a chain in PEM, once it is issued."""

    conditions: tuple[CertificateSigningRequestCondition, ...] | None = None
    certificate: bytes | None = None


class CertificateSigningRequest(KubernetesObject, frozen=True):
    """A request for a certificate."""

    spec: CertificateSigningRequestSpec = CertificateSigningRequestSpec()
    status: CertificateSigningRequestStatus = CertificateSigningRequestStatus()

    def decided(self) -> str:
        """The decision that was taken: Approved, Denied, Failed, or nothing yet."""
        found = [one.type for one in self.status.conditions or () if one.status in ("", "True")]
        return next((name for name in ("Failed", "Denied", "Approved") if name in found), "")
