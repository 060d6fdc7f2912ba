"""How to reach the server: kubeconfigs of all shapes, the files of a pod, and what is wrong with bad ones."""

from __future__ import annotations

import asyncio
import base64
import datetime
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from foundation.kube.client import KubeClient
from foundation.kube.configuration import connection, in_cluster
from foundation.kube.errors import ConfigurationInvalid
from foundation.kube.resources import NAMESPACES
from lab.apiserver.access import Tokens
from lab.apiserver.server import ApiServer

Json = dict[str, Any]


@dataclass(frozen=True)
class Files:
    """A self-signed certificate that is its own authority."""

    certificate: Path
    key: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    directory = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lab")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("api.lab")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    made = Files(directory / "tls.crt", directory / "tls.key")
    made.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    made.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return made


def config(server: str, *, cluster: Json | None = None, user: Json | None = None) -> Json:
    return {
        "clusters": [{"name": "c", "cluster": {"server": server, **(cluster or {})}}],
        "users": [{"name": "u", "user": user or {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "mine"}}],
        "current-context": "x",
    }


def write(path: Path, document: Json) -> str:
    path.write_bytes(msgspec.yaml.encode(document))
    return str(path)


@pytest.fixture
def tls(files: Files) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.certificate, files.key)
    return context


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    path = tmp_path / "tokens"
    path.write_text("secret-token,alice,1\n")
    return Tokens.read(path)


async def works(path: str, context: str = "") -> None:
    async with await KubeClient.connect(path, context, deadline=20.0) as client:
        assert (await client.get(NAMESPACES, "default")).metadata.name == "default"


@pytest.mark.parametrize("how", ["token", "token file", "data", "exec", "server name"])
async def test_kubeconfigs_that_work(
    tmp_path: Path, files: Files, tls: ssl.SSLContext, tokens: Tokens, how: str
) -> None:
    async with ApiServer(tls=tls, tokens=tokens) as server:
        cluster: Json = {"certificate-authority": str(files.certificate)}
        user: Json = {"token": "secret-token"}
        if how == "token file":
            (tmp_path / "token").write_text("secret-token\n")
            user = {"tokenFile": "token"}
        elif how == "data":
            cluster = {"certificate-authority-data": base64.b64encode(files.certificate.read_bytes()).decode()}
            pair = {"client-certificate": files.certificate, "client-key": files.key}
            user |= {f"{name}-data": base64.b64encode(path.read_bytes()).decode() for name, path in pair.items()}
        elif how == "server name":
            cluster["tls-server-name"] = "api.lab"
        elif how == "exec":
            status = {"token": "secret-token"}
            credential = {
                "apiVersion": "client.authentication.k8s.io/v1",
                "kind": "ExecCredential",
                "status": status,
            }
            plugin = tmp_path / "plugin"
            plugin.write_text(f"#!/bin/sh\necho '{msgspec.json.encode(credential).decode()}'\n")
            plugin.chmod(0o755)
            user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin), "args": []}}
        path = write(tmp_path / "kubeconfig", config(server.url, cluster=cluster, user=user))
        await works(path)


async def test_the_authority_is_checked(tmp_path: Path, tls: ssl.SSLContext) -> None:
    async with ApiServer(tls=tls) as server:
        distrusting = write(tmp_path / "one", config(server.url))
        async with await KubeClient.connect(distrusting, deadline=0.5) as client:
            with pytest.raises(Exception, match="certificate verify failed"):
                await client.get(NAMESPACES, "default")
        await works(write(tmp_path / "two", config(server.url, cluster={"insecure-skip-tls-verify": True})))


async def test_several_files_are_merged_and_the_first_wins(tmp_path: Path) -> None:
    async with ApiServer() as server:
        one = config("http://127.0.0.1:1")
        two = config(server.url)
        two["contexts"][0]["name"] = two["clusters"][0]["name"] = "second"
        two["contexts"][0]["context"]["cluster"] = "second"
        paths = write(tmp_path / "one", one) + ":" + write(tmp_path / "two", two)
        await works(paths, "second")
        assert (await connection(paths)).server == "http://127.0.0.1:1"


async def test_of_several_files_those_that_are_missing_are_left_out(tmp_path: Path) -> None:
    """As kubectl does it; and each file's own files are beside it."""
    async with ApiServer() as server:
        (tmp_path / "far").mkdir()
        two = config(server.url)
        two["users"][0]["user"] = {"tokenFile": "token"}
        (tmp_path / "far/token").write_text("beside")
        written = write(tmp_path / "far/two", two)
        one = write(tmp_path / "one", {"contexts": [], "clusters": [], "users": []})
        found = await connection(f"{tmp_path}/none:{one}:{written}:")
        assert await found.credentials.header() == "Bearer beside"
    with pytest.raises(ConfigurationInvalid, match="none can't be read"):
        await connection(f"{tmp_path}/none:{tmp_path}/neither")
    with pytest.raises(ConfigurationInvalid, match="is empty"):
        await connection(":")


async def test_the_environment_names_a_kubeconfig(tmp_path: Path) -> None:
    path = write(tmp_path / "one", config("http://127.0.0.1:1"))
    found = await connection(environ={"KUBECONFIG": path})
    assert (found.server, found.namespace) == ("http://127.0.0.1:1", "mine")


async def test_a_pod_needs_no_kubeconfig(tmp_path: Path, files: Files, tls: ssl.SSLContext, tokens: Tokens) -> None:
    (tmp_path / "token").write_text("secret-token")
    (tmp_path / "ca.crt").write_bytes(files.certificate.read_bytes())
    (tmp_path / "namespace").write_text("mine\n")
    async with ApiServer(tls=tls, tokens=tokens) as server:
        port = server.url.rpartition(":")[2]
        environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": port, "KUBECONFIG": "/none"}
        found = await connection(environ=environ, root=tmp_path)
        assert found.namespace == "mine"
        async with KubeClient(found, deadline=20.0) as client:
            await client.get(NAMESPACES, "default")
    environ["KUBERNETES_SERVICE_HOST"] = "fd00::1"
    assert (await asyncio.to_thread(in_cluster, environ, tmp_path)).server == f"https://[fd00::1]:{port}"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"current-context": ""}, "has no current-context: name one"),
        ({"current-context": "y"}, r"has no context named 'y' \(it has: x\)"),
        ({"clusters": []}, r"has no cluster named 'c' \(it has: none\)"),
        ({"users": []}, "has no user named 'u'"),
        ({"clusters": [{"name": "c", "cluster": {"server": "ftp://x"}}]}, r"no http\(s\) server"),
        ({"clusters": [{"name": "c", "cluster": {"server": "https://x", "certificate-authority": "none"}}]}, "none"),
        (
            {"clusters": [{"name": "c", "cluster": {"server": "https://x", "certificate-authority-data": "!"}}]},
            "certificate-authority of the kubeconfig can't be read",
        ),
        (
            {"clusters": [{"name": "c", "cluster": {"server": "https://x", "certificate-authority-data": "eA=="}}]},
            "can't be used",
        ),
    ],
)
async def test_kubeconfigs_that_do_not_work_say_why(tmp_path: Path, change: Json, sentence: str) -> None:
    path = write(tmp_path / "kubeconfig", config("https://127.0.0.1:1") | change)
    with pytest.raises(ConfigurationInvalid, match=sentence):
        await connection(path)


async def test_files_that_are_no_kubeconfig(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationInvalid, match="can't be read"):
        await connection(str(tmp_path / "none"))
    for text in ("[1, 2]", "a: b: c", "\x00"):
        (tmp_path / "bad").write_text(text)
        with pytest.raises(ConfigurationInvalid):
            await connection(str(tmp_path / "bad"))
    with pytest.raises(ConfigurationInvalid, match="KUBECONFIG is not set"):
        await connection(environ={})


async def test_a_plugin_that_fails_is_named(tmp_path: Path) -> None:
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "/none", "args": []}}
    path = write(tmp_path / "kubeconfig", config("https://127.0.0.1:1", user=user))
    with pytest.raises(ConfigurationInvalid, match="credential plugin of context 'x'"):
        await connection(path)
