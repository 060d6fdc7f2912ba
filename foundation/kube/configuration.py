"""How to reach the API server: in-cluster files or a kubeconfig, read into one `Connection`."""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from foundation.kube.credentials import Credentials, FixedCredentials, RenewedCredentials, TokenFile
from foundation.kube.errors import ConfigurationInvalid

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True)
class Connection:
    """An API server and how to talk to it. `namespace` is the caller's own ("" if unknown)."""

    server: str
    ssl_context: ssl.SSLContext | None = None
    server_hostname: str = ""
    proxy: str = ""
    namespace: str = ""
    credentials: Credentials = field(default_factory=FixedCredentials)


async def connection(
    kubeconfig: str = "", context: str = "", *, environ: Mapping[str, str] | None = None, root: Path = SERVICE_ACCOUNT
) -> Connection:
    """The connection that `kubeconfig` describes; "" means in-cluster, then $KUBECONFIG.

    Raises ConfigurationInvalid with what is missing, where it was looked for and what to do.
    """
    environ = os.environ if environ is None else environ
    if not kubeconfig:
        if environ.get("KUBERNETES_SERVICE_HOST") and (root / "token").exists():
            return await asyncio.to_thread(in_cluster, environ, root)
        kubeconfig = environ.get("KUBECONFIG", "")
        if not kubeconfig:
            raise ConfigurationInvalid(
                f"no API server: not in a pod ({root}/token is missing) and KUBECONFIG is not set; "
                "give the path of a kubeconfig"
            )
    return await from_kubeconfig(kubeconfig, context)


def in_cluster(environ: Mapping[str, str], root: Path = SERVICE_ACCOUNT) -> Connection:
    """The connection of a pod's service account; its token file is read again as kubelet rotates it."""
    host, port = environ["KUBERNETES_SERVICE_HOST"], environ.get("KUBERNETES_SERVICE_PORT", "443")
    try:
        context = ssl.create_default_context(cafile=str(root / "ca.crt"))
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationInvalid(f"the cluster's CA {root}/ca.crt can't be used: {error}") from error
    namespace = root / "namespace"
    return Connection(
        server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
        ssl_context=context,
        namespace=namespace.read_text().strip() if namespace.exists() else "",
        credentials=TokenFile(root / "token"),
    )


async def from_kubeconfig(paths: str, context: str = "") -> Connection:
    """The connection of one context ("" = current) of a kubeconfig, or of several joined by `:` (the first one wins).

    Tokens, token files, client certificates and passwords are read here; exec plugins and auth providers are left to
    the `kubernetes` package, which is imported only then (20 MiB).
    """
    document = await asyncio.to_thread(_merged, paths)
    context = context or document.get("current-context") or ""
    if not context:
        raise ConfigurationInvalid(f"kubeconfig {paths} has no current-context: name one")
    chosen = _named(document, "contexts", "context", context, paths)
    cluster = _named(document, "clusters", "cluster", str(chosen.get("cluster", "")), paths)
    user = _named(document, "users", "user", str(chosen["user"]), paths) if chosen.get("user") else {}
    server = str(cluster.get("server", "")).rstrip("/")
    if not server.startswith(("http://", "https://")):
        raise ConfigurationInvalid(f"kubeconfig {paths}: the cluster of context {context!r} has no http(s) server")
    certificate = (_pem(user, "client-certificate"), _pem(user, "client-key"))
    credentials: Credentials = FixedCredentials()
    if "exec" in user or "auth-provider" in user:
        credentials, issued = await _from_plugin(paths, context)
        certificate = issued if any(issued) else certificate
    elif user.get("token"):
        credentials = FixedCredentials.token(str(user["token"]))
    elif user.get("tokenFile"):
        credentials = TokenFile(Path(user["tokenFile"]))
    elif user.get("username"):
        credentials = FixedCredentials.basic(str(user["username"]), str(user.get("password", "")))
    tls = None
    if server.startswith("https://"):
        authority = _pem(cluster, "certificate-authority")
        verify = not cluster.get("insecure-skip-tls-verify", False)
        tls = await asyncio.to_thread(_tls, authority, certificate, verify, paths)
    return Connection(
        server=server,
        ssl_context=tls,
        server_hostname=str(cluster.get("tls-server-name", "")),
        proxy=str(cluster.get("proxy-url", "")),
        namespace=str(chosen.get("namespace", "")),
        credentials=credentials,
    )


# Entries that name files, relative to the kubeconfig that has them.
_FILES: Final = {"cluster": ("certificate-authority",), "user": ("client-certificate", "client-key", "tokenFile")}


def _merged(paths: str) -> dict[str, Any]:
    """As kubectl does it: of several files those that are missing are left out."""
    merged: dict[str, Any] = {"contexts": [], "clusters": [], "users": []}
    if not paths.strip(os.pathsep):
        raise ConfigurationInvalid("the path of the kubeconfig is empty")
    named = [Path(text).expanduser() for text in filter(None, paths.split(os.pathsep))]
    for path in [path for path in named if path.exists()] or named[:1]:
        try:
            document = yaml.safe_load(path.read_text())
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigurationInvalid(f"kubeconfig {path} can't be read: {error}") from error
        if not isinstance(document, dict):
            raise ConfigurationInvalid(f"kubeconfig {path} is not a mapping")
        for kind in ("contexts", "clusters", "users"):
            known = {entry.get("name") for entry in merged[kind]}
            entries = document.get(kind) or []
            _anchor(entries, path.absolute().parent)
            merged[kind] += [entry for entry in entries if isinstance(entry, dict) and entry.get("name") not in known]
        if "current-context" not in merged and document.get("current-context"):
            merged["current-context"] = document["current-context"]
    return merged


def _anchor(entries: Any, directory: Path) -> None:
    """Makes the files that entries name absolute."""
    for entry in entries if isinstance(entries, list) else ():
        for kind, keys in _FILES.items():
            inner = entry.get(kind) if isinstance(entry, dict) else None
            if isinstance(inner, dict):
                inner.update({key: str(directory / str(inner[key])) for key in keys if inner.get(key)})


def _named(document: Mapping[str, Any], plural: str, kind: str, name: str, paths: str) -> Mapping[str, Any]:
    for entry in document[plural]:
        if entry.get("name") == name and isinstance(entry.get(kind), dict):
            found: Mapping[str, Any] = entry[kind]
            return found
    known = ", ".join(sorted(str(entry.get("name")) for entry in document[plural])) or "none"
    raise ConfigurationInvalid(f"kubeconfig {paths} has no {kind} named {name!r} (it has: {known})")


def _pem(entry: Mapping[str, Any], key: str) -> bytes:
    try:
        if entry.get(f"{key}-data"):
            return base64.b64decode(str(entry[f"{key}-data"]), validate=True)
        return Path(entry[key]).read_bytes() if entry.get(key) else b""
    except (OSError, binascii.Error) as error:
        raise ConfigurationInvalid(f"{key} of the kubeconfig can't be read: {error}") from error


def _tls(authority: bytes, certificate: tuple[bytes, bytes], verify: bool, paths: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cadata=authority.decode() if authority else None)
        if not verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if certificate[0]:
            # the ssl module takes a certificate from a file only; this one is ours alone and lives for a moment
            with tempfile.NamedTemporaryFile(prefix="dpu-offload-", suffix=".pem") as file:
                file.write(certificate[0].rstrip() + b"\n" + certificate[1])
                file.flush()
                context.load_cert_chain(file.name)
    except (ssl.SSLError, OSError, UnicodeDecodeError) as error:
        raise ConfigurationInvalid(f"the certificates of kubeconfig {paths} can't be used: {error}") from error
    return context


async def _from_plugin(paths: str, context: str) -> tuple[Credentials, tuple[bytes, bytes]]:
    from kubernetes.aio.client import Configuration
    from kubernetes.aio.config import ConfigException, load_kube_config

    async def load() -> Any:
        settings = Configuration()
        try:
            await load_kube_config(  # type: ignore[no-untyped-call]  # the package is typed but for this
                paths, context, client_configuration=settings, persist_config=False
            )
        except (ConfigException, OSError, ValueError) as error:
            raise ConfigurationInvalid(f"the credential plugin of context {context!r} failed: {error}") from error
        return settings

    async def header() -> str:
        settings = await load()
        return str(settings.api_key.get("BearerToken", ""))

    settings = await load()
    first = str(settings.api_key.get("BearerToken", ""))
    files = (settings.cert_file, settings.key_file)
    issued = tuple([await asyncio.to_thread(Path(name).read_bytes) if name else b"" for name in files])
    if not first and not issued[0]:
        raise ConfigurationInvalid(
            f"the credential plugin of context {context!r} in {paths} gave neither a token nor a certificate: "
            "run it by hand to see why"
        )
    return RenewedCredentials(header, first), (issued[0], issued[1])
