"""When a certificate is renewed. No I/O."""

from __future__ import annotations

import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from certificates.renewer.files import Held

_SHARE = 2 / 3


def renewal(held: Held | None, *, name: str, early: float) -> datetime.datetime:
    """When to ask for a new certificate: after two thirds of its life, less up to a tenth of that by `early` (0 to 1),
    which spreads a cluster's requests. At once (the beginning of time) when what is held cannot be used at all."""
    at_once = datetime.datetime.min.replace(tzinfo=datetime.UTC)
    if held is None:
        return at_once
    if not is_for(held.certificate, held.key, name=name):
        return at_once
    leaf = x509.load_pem_x509_certificate(held.certificate)
    try:
        trusted = x509.load_pem_x509_certificates(held.authority)
    except ValueError:
        return at_once
    if not any(_issued(leaf, one) for one in trusted):
        return at_once
    life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    return leaf.not_valid_before_utc + life * _SHARE * (1 - 0.1 * early)


def is_for(certificate: bytes, key: bytes, *, name: str) -> bool:
    """Whether a certificate in PEM is of this key and of this name alone."""
    try:
        leaf = x509.load_pem_x509_certificate(certificate)
        private = serialization.load_pem_private_key(key, None)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound, x509.DuplicateExtension):
        return False
    return names.get_values_for_type(x509.DNSName) == [name] and private.public_key() == leaf.public_key()


def _issued(leaf: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        leaf.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
