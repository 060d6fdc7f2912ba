"""Asks the signer for a certificate: a key of our own, a request, and the wait for its answer."""

from __future__ import annotations

import asyncio
import base64
import contextlib

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from certificates.contract import SIGNER, USAGES
from certificates.errors import NotGranted
from certificates.renewer.timing import is_for
from foundation.daemon import logs
from foundation.kube.client import KubeClient
from foundation.kube.models.certificates import CertificateSigningRequest
from foundation.kube.reflector import Reflector
from foundation.kube.resources import CERTIFICATE_SIGNING_REQUESTS


def new_key() -> bytes:
    """A private key in PEM, which no log line will show."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    logs.secret(pem.decode("ascii"))
    return pem


async def ask(client: KubeClient, pem: bytes, *, name: str, component: str, wait_seconds: float) -> bytes:
    """Certificate in PEM of this key for the DNS name. Raises NotGranted, KubeError."""
    key = serialization.load_pem_private_key(pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=True)
        .sign(key, hashes.SHA256())
    )
    body = {
        "metadata": {"generateName": f"dpu-offload-{component}-"},
        "spec": {
            "request": base64.b64encode(request.public_bytes(serialization.Encoding.PEM)).decode(),
            "signerName": SIGNER,
            "usages": list(USAGES),
        },
    }
    made = await client.create(CERTIFICATE_SIGNING_REQUESTS, body)
    answer = await _answer(client, made, wait_seconds)
    if not answer.status.certificate:
        said = " ".join(one.message for one in answer.status.conditions or () if one.message)
        raise NotGranted(f"request {made.metadata.name} for {name} was refused: {said or answer.decided()}")
    if not is_for(answer.status.certificate, pem, name=name):
        raise NotGranted(
            f"request {made.metadata.name} for {name} was answered with another's certificate: who else signs for "
            f"{SIGNER}?"
        )
    return answer.status.certificate


async def _answer(
    client: KubeClient, made: CertificateSigningRequest, wait_seconds: float
) -> CertificateSigningRequest:
    name = made.metadata.name
    reflector = Reflector(client, CERTIFICATE_SIGNING_REQUESTS, field_selector=f"metadata.name={name}")
    answered: asyncio.Future[CertificateSigningRequest] = asyncio.get_running_loop().create_future()

    def look(seen: CertificateSigningRequest | None) -> None:
        if answered.done():
            return
        if seen is None:
            answered.set_exception(NotGranted(f"request {name} was removed before it was answered"))
        elif seen.status.certificate or seen.decided() in ("Denied", "Failed"):
            answered.set_result(seen)

    reflector.subscribe(lambda change: look(change.new))
    following = asyncio.create_task(reflector.run(), name=f"request {name}")
    try:
        async with asyncio.timeout(wait_seconds):
            return await answered
    except TimeoutError:
        raise NotGranted(
            f"request {name} has no answer after {wait_seconds:g} s: does certificate-signer run, and lead?"
        ) from None
    finally:
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
