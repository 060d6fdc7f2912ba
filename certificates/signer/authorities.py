"""The succession of certificate authorities: which signs, which are trusted, when the next one is due. No I/O.

An authority is trusted from the moment it is made, signs after a while in which all holders learn of it, makes place
for its successor, and is trusted until it has expired: no moment is without a signer whom everybody trusts.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certificates.errors import AuthorityUnusable

# A clock that is a little behind must not refuse what was just signed.
SKEW = datetime.timedelta(minutes=5)


@dataclass(frozen=True)
class Authority:
    """A certificate authority with its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def make(cls, now: datetime.datetime, *, lifetime: datetime.timedelta) -> Authority:
        """A new one, valid from now on."""
        key = ec.generate_private_key(ec.SECP256R1())
        serial = x509.random_serial_number()
        # Different names, so that a verifier never tries the wrong one of two that are trusted.
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"dpu-offload authority {serial:x}"[:64])])
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(serial)
            .not_valid_before(now - SKEW)
            .not_valid_after(now + lifetime)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def read(cls, certificate: bytes, key: bytes) -> Authority:
        """From PEM. Raises AuthorityUnusable."""
        try:
            private = serialization.load_pem_private_key(key, None)
            found = x509.load_pem_x509_certificate(certificate)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise AuthorityUnusable(f"no PEM certificate with its key: {error}") from None
        if not isinstance(private, ec.EllipticCurvePrivateKey) or private.public_key() != found.public_key():
            raise AuthorityUnusable("the key is not the certificate's, or of another kind than EC")
        return cls(found, private)

    @property
    def begins(self) -> datetime.datetime:
        return self.certificate.not_valid_before_utc + SKEW

    @property
    def ends(self) -> datetime.datetime:
        return self.certificate.not_valid_after_utc

    def pem(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self) -> bytes:
        """The private key."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def issue(
        self,
        request: x509.CertificateSigningRequest,
        *,
        name: str,
        now: datetime.datetime,
        lifetime: datetime.timedelta,
    ) -> bytes:
        """A leaf in PEM for client and server use, with the one DNS name; it does not outlive its authority."""
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "dpu-offload.io")]))
            .issuer_name(self.certificate.subject)
            .public_key(request.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - SKEW)
            .not_valid_after(min(now + lifetime, self.ends))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def issued(self, chain: bytes) -> bool:
        """Whether the first certificate of a PEM chain is of this authority."""
        try:
            x509.load_pem_x509_certificate(chain).verify_directly_issued_by(self.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True


@dataclass(frozen=True)
class Succession:
    """What to do with the authorities there are."""

    signing: Authority | None
    trusted: tuple[Authority, ...]
    """Oldest first."""
    due: bool
    """A new one has to be made now."""


def succession(authorities: Sequence[Authority], *, now: datetime.datetime, spread: datetime.timedelta) -> Succession:
    """The newest one that has been trusted for `spread` signs; without one the oldest, as at the very beginning.

    One that a clock ahead of time has made is trusted, but does not sign before its time: nobody would take its leaves.
    """
    trusted = sorted((one for one in authorities if one.ends > now), key=lambda one: one.begins)
    valid = [one for one in trusted if one.begins - SKEW <= now]
    ripe = [one for one in valid if one.begins + spread <= now]
    signing = ripe[-1] if ripe else valid[0] if valid else None
    due = not valid or now >= valid[-1].begins + (valid[-1].ends - valid[-1].begins) / 2
    return Succession(signing, tuple(trusted), due)


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
