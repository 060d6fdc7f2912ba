"""Who may have which certificate. No I/O.

The API server vouches for the asker's service account and, since its token is bound to a pod, for the node that this
pod runs on (extra `authentication.kubernetes.io/node-name`): a node can ask for its own name only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from certificates.contract import USAGES
from certificates.errors import Refused
from foundation.daemon.identity import Identity, parse_identity
from foundation.kube.models.certificates import CertificateSigningRequestSpec

NODE_NAME = "authentication.kubernetes.io/node-name"


def judge(
    spec: CertificateSigningRequestSpec, *, namespace: str, accounts: Mapping[str, Sequence[str]]
) -> tuple[x509.CertificateSigningRequest, Identity]:
    """The request and the identity that it is granted. Raises Refused."""
    request = _request(spec.request)
    identity = _identity(request)
    if unknown := set(spec.usages or ()) - set(USAGES):
        raise Refused(f"usages {', '.join(sorted(unknown))} are not given; ask for {', '.join(USAGES)}")
    if lacking := set(USAGES) - set(spec.usages or ()):
        raise Refused(f"a certificate here is for {', '.join(USAGES)}; not asked for is {', '.join(sorted(lacking))}")
    prefix = f"system:serviceaccount:{namespace}:"
    account = spec.username.removeprefix(prefix)
    if not spec.username.startswith(prefix) or account not in accounts:
        raise Refused(f"{spec.username or 'nobody'} is none of the service accounts that get certificates here")
    if identity.component not in accounts[account]:
        raise Refused(f"service account {account} may not be {identity.component}")
    nodes = tuple((spec.extra or {}).get(NODE_NAME, ()))
    if nodes != (identity.node,):
        where = f"node {nodes[0]}" if len(nodes) == 1 else "no known node"
        raise Refused(f"a request for node {identity.node} comes from {where}; its token must be bound to a pod there")
    return request, identity


def _request(pem: bytes) -> x509.CertificateSigningRequest:
    try:
        request = x509.load_pem_x509_csr(pem)
        signed = request.is_signature_valid
        key = request.public_key()
    except Exception as error:  # the parser raises what it likes for bytes that anybody may send
        raise Refused(f"not a PKCS #10 request in PEM: {error}") from None
    if not signed:
        raise Refused("the request is not signed by its own key")
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.key_size < 256:
        raise Refused("the key must be EC with 256 bits or more")
    return request


def _identity(request: x509.CertificateSigningRequest) -> Identity:
    try:
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        raise Refused("the request has no subject alternative name") from None
    found = list(names)
    if len(found) != 1 or not isinstance(found[0], x509.DNSName):
        raise Refused("the request must name one DNS name and nothing else")
    identity = parse_identity(found[0].value)
    if identity is None or identity.server_name != found[0].value:
        raise Refused(f"{found[0].value!r} is not of the form <node>.<component>.dpu-offload.io")
    return identity
