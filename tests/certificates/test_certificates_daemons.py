"""Signer and renewer against the API server: a certificate is got, used, renewed, and refused to the wrong node."""

import asyncio
import base64
import datetime
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from certificates.contract import CA_FILE, SIGNER
from certificates.errors import NotGranted
from certificates.renewer import app as renewer
from certificates.renewer.asking import ask, new_key
from certificates.renewer.config import CertificateRenewerConfig
from certificates.signer.authorities import Authority
from certificates.signer.config import CertificateSignerConfig
from certificates.signer.judging import NODE_NAME
from certificates.signer.signing import Signing
from dpu_offload_stubs.link.v1 import link_pb2, link_pb2_grpc
from foundation.daemon.errors import ErrorTable
from foundation.daemon.running import Daemon
from foundation.daemon.serving import TlsFiles, dial, listen_tls, make_server
from foundation.kube.client import KubeClient
from foundation.kube.configuration import Connection
from foundation.kube.credentials import FixedCredentials
from foundation.kube.errors import NotFound
from foundation.kube.resources import CERTIFICATE_SIGNING_REQUESTS, CONFIG_MAPS, NAMESPACES, SECRETS
from lab.apiserver.access import Tokens, User
from lab.apiserver.server import ApiServer

ACCOUNTS = {"cni-node": ["cni-node"]}
PREFIX = "system:serviceaccount:dpu-offload:"


@dataclass
class Cluster:
    server: ApiServer
    signer: KubeClient
    clients: dict[str, KubeClient]


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    users = {
        "signer": User(f"{PREFIX}certificate-signer"),
        **{node: User(f"{PREFIX}cni-node", extra={NODE_NAME: [node]}) for node in ("node-a", "node-b")},
    }
    async with ApiServer(tokens=Tokens(users)) as server:
        clients = {
            name: KubeClient(Connection(server=server.url, credentials=FixedCredentials.token(name))) for name in users
        }
        await clients["signer"].create(NAMESPACES, {"metadata": {"name": "dpu-offload"}})
        yield Cluster(server, clients["signer"], clients)
        for client in clients.values():
            await client.close()


@pytest.fixture
async def signing(cluster: Cluster) -> AsyncIterator[Signing]:
    one = Signing(cluster.signer, CertificateSignerConfig(accounts=ACCOUNTS))
    task = asyncio.create_task(one.run())
    yield one
    task.cancel()
    await asyncio.wait({task})


async def trusted(cluster: Cluster) -> bytes:
    found = await cluster.signer.get(CONFIG_MAPS, "certificate-authority", "dpu-offload")
    return (found.data or {})[CA_FILE].encode()


async def kept(cluster: Cluster, node: str, directory: Path, daemon: Daemon) -> TlsFiles:
    """Start a renewer for the node; returns once its files are there."""
    authority = directory.with_suffix(".ca")
    async with asyncio.timeout(30):
        while not authority.exists():
            try:
                authority.write_bytes(await trusted(cluster))
            except NotFound:
                await asyncio.sleep(0.05)
    directory.mkdir(exist_ok=True)
    config = CertificateRenewerConfig(
        node_name=node, component="cni-node", directory=str(directory), authority=str(authority), look_seconds=0.1
    )
    name = f"{node}.cni-node.dpu-offload.io"
    daemon.spawn(renewer._keep(config, name, cluster.clients[node], daemon), name=f"certificate of {node}")
    async with asyncio.timeout(30):
        while not (directory / "tls.crt").exists():
            await asyncio.sleep(0.02)
    return TlsFiles(*(str(directory / name) for name in ("ca.crt", "tls.crt", "tls.key")))


async def test_two_nodes_get_certificates_and_talk_by_them(cluster: Cluster, signing: Signing, tmp_path: Path) -> None:
    async with Daemon("test") as daemon:
        first = await kept(cluster, "node-a", tmp_path / "a", daemon)
        second = await kept(cluster, "node-b", tmp_path / "b", daemon)
        server = make_server(errors=ErrorTable({}), service="cni-link", callers={"cni-node"})
        link_pb2_grpc.add_LinkServicer_to_server(link_pb2_grpc.LinkServicer(), server)
        port = listen_tls(server, "127.0.0.1:0", second)
        await server.start()
        channel = dial(f"127.0.0.1:{port}", tls=first, server_name="node-b.cni-node.dpu-offload.io", name="node-b")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await link_pb2_grpc.LinkStub(channel).Describe(link_pb2.DescribeRequest(), timeout=20)
        # The handshake held: it is the servicer that answers.
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
        await channel.close()
        await server.stop(0)


async def test_a_node_cannot_have_anothers_name(cluster: Cluster, signing: Signing) -> None:
    with pytest.raises(NotGranted, match="comes from node node-a"):
        await ask(
            cluster.clients["node-a"],
            new_key(),
            name="node-b.cni-node.dpu-offload.io",
            component="cni-node",
            wait_seconds=30,
        )


async def test_a_missing_signer_is_named(cluster: Cluster) -> None:
    with pytest.raises(NotGranted, match="does certificate-signer run"):
        await ask(
            cluster.clients["node-a"],
            new_key(),
            name="node-a.cni-node.dpu-offload.io",
            component="cni-node",
            wait_seconds=0.3,
        )


async def test_the_authority_outlives_the_signer_and_its_successor_is_trusted_before_it_signs(
    cluster: Cluster, tmp_path: Path
) -> None:
    config = CertificateSignerConfig(accounts=ACCOUNTS, authority_days=10, spread_hours=24)
    now = datetime.datetime.now(datetime.UTC)
    first = await Signing(cluster.signer, config).succeed(now)
    again = await Signing(cluster.signer, config).succeed(now)
    assert again.certificate == first.certificate
    later = now + datetime.timedelta(days=6)
    assert (await Signing(cluster.signer, config).succeed(later)).certificate == first.certificate
    assert len(x509.load_pem_x509_certificates(await trusted(cluster))) == 2
    ripe = await Signing(cluster.signer, config).succeed(later + datetime.timedelta(days=1))
    assert ripe.certificate != first.certificate
    # Expired ones go, with their keys.
    await Signing(cluster.signer, config).succeed(now + datetime.timedelta(days=11))
    secret = await cluster.signer.get(SECRETS, "certificate-authority", "dpu-offload")
    serials = {f"{first.certificate.serial_number:x}.{kind}" for kind in ("crt", "key")}
    assert not serials & set(secret.data or {})


async def test_a_changed_authority_reaches_the_files_and_an_unknown_one_brings_a_new_certificate(
    cluster: Cluster, signing: Signing, tmp_path: Path
) -> None:
    async with Daemon("test") as daemon:
        held = await kept(cluster, "node-a", tmp_path / "a", daemon)
        before = Path(held.certificate).read_bytes()
        bundle = (tmp_path / "a.ca").read_bytes()
        stranger = Authority.make(datetime.datetime.now(datetime.UTC), lifetime=datetime.timedelta(days=1)).pem()
        (tmp_path / "a.ca").write_bytes(bundle + stranger)
        async with asyncio.timeout(30):
            while Path(held.ca).read_bytes() != bundle + stranger:
                await asyncio.sleep(0.02)
        assert Path(held.certificate).read_bytes() == before, "it is still of a trusted authority"
        (tmp_path / "a.ca").write_bytes(stranger)
        async with asyncio.timeout(30):
            while Path(held.certificate).read_bytes() == before:
                await asyncio.sleep(0.02)


async def test_a_damaged_authority_replaces_no_good_one(cluster: Cluster, signing: Signing, tmp_path: Path) -> None:
    async with Daemon("test") as daemon:
        held = await kept(cluster, "node-a", tmp_path / "a", daemon)
        before = [Path(path).read_bytes() for path in (held.ca, held.certificate)]
        (tmp_path / "a.ca").write_text("-----BEGIN CERTIFICATE-----\nhalf")
        async with asyncio.timeout(30):
            while daemon.health.ready or "no usable certificate" not in daemon.health.checks["certificate"].reason:
                await asyncio.sleep(0.02)
        assert [Path(path).read_bytes() for path in (held.ca, held.certificate)] == before
        (tmp_path / "a.ca").write_bytes(before[0])
        async with asyncio.timeout(30):
            while not daemon.health.ready:
                await asyncio.sleep(0.02)
        assert Path(held.certificate).read_bytes() == before[1]


async def asked(cluster: Cluster, *, usages: list[str]) -> str:
    """The name of a request for node-a that nobody has answered."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.SubjectAlternativeName([x509.DNSName("node-a.cni-node.dpu-offload.io")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(name, critical=True)
    pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    spec = {"request": base64.b64encode(pem).decode(), "signerName": SIGNER, "usages": usages}
    body = {"metadata": {"generateName": "r-"}, "spec": spec}
    return (await cluster.clients["node-a"].create(CERTIFICATE_SIGNING_REQUESTS, body)).metadata.name


async def test_a_refusal_leaves_anothers_approval_standing(cluster: Cluster) -> None:
    """The API server takes no change that removes an approval (422): without it the refusal is never told."""
    name = await asked(cluster, usages=["client auth"])
    approved = {"type": "Approved", "status": "True", "reason": "Somebody", "message": "by hand"}
    await cluster.signer.merge_patch(
        CERTIFICATE_SIGNING_REQUESTS, name, "", {"status": {"conditions": [approved]}}, "approval"
    )
    task = asyncio.create_task(Signing(cluster.signer, CertificateSignerConfig(accounts=ACCOUNTS)).run())
    async with asyncio.timeout(30):
        while (found := await cluster.signer.get(CERTIFICATE_SIGNING_REQUESTS, name)).decided() != "Failed":
            await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.wait({task})
    assert [one.type for one in found.status.conditions or ()] == ["Approved", "Failed"]
    assert "not asked for is digital signature, server auth" in (found.status.conditions or ())[1].message


async def test_anothers_certificate_is_not_taken(cluster: Cluster) -> None:
    client, name = cluster.clients["node-a"], "node-a.cni-node.dpu-offload.io"
    asking = asyncio.create_task(ask(client, new_key(), name=name, component="cni-node", wait_seconds=30))
    async with asyncio.timeout(30):
        while not (found := await cluster.signer.list(CERTIFICATE_SIGNING_REQUESTS)):
            await asyncio.sleep(0.02)
    stranger = Authority.make(datetime.datetime.now(datetime.UTC), lifetime=datetime.timedelta(days=1)).pem()
    await cluster.signer.merge_patch(
        CERTIFICATE_SIGNING_REQUESTS,
        found[0].metadata.name,
        "",
        {"status": {"certificate": base64.b64encode(stranger).decode()}},
        "status",
    )
    with pytest.raises(NotGranted, match="was answered with another's certificate"):
        await asking


async def test_old_requests_are_removed(cluster: Cluster) -> None:
    config = CertificateSignerConfig(accounts=ACCOUNTS, keep_requests_hours=1e-9)
    signing = Signing(cluster.signer, config)
    with pytest.raises(NotGranted):
        await ask(
            cluster.clients["node-a"],
            new_key(),
            name="node-a.cni-node.dpu-offload.io",
            component="cni-node",
            wait_seconds=0.1,
        )
    task = asyncio.create_task(signing.run())
    async with asyncio.timeout(30):
        while await cluster.signer.list(CERTIFICATE_SIGNING_REQUESTS):
            await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait({task})
