"""When a certificate is renewed. No I/O."""

from __future__ import annotations

import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from certificates.renewer.files import Held

_SHARE = 2 / 3


def renewal(held: Held | None, *, name: str, early: float) -> datetime.datetime:
    """When to ask for a new certificate: after two thirds of its life, less up to a tenth of that by `early` (0 to 1),
    which spreads a cluster's requests. At once (the beginning of time) when what is held cannot be used at all."""
    at_once = datetime.datetime.min.replace(tzinfo=datetime.UTC)
    if held is None:
        return at_once
    try:
        leaf = x509.load_pem_x509_certificate(held.certificate)
        key = serialization.load_pem_private_key(held.key, None)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        trusted = x509.load_pem_x509_certificates(held.authority)
    except (ValueError, TypeError, x509.ExtensionNotFound):
        return at_once
    if names.get_values_for_type(x509.DNSName) != [name] or key.public_key() != leaf.public_key():
        return at_once
    if not any(_issued(leaf, one) for one in trusted):
        return at_once
    life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    return leaf.not_valid_before_utc + life * _SHARE * (1 - 0.1 * early)


def _issued(leaf: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        leaf.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
