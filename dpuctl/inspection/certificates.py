"""A daemon's certificate as a peer would judge it: a handshake with itself, in memory, against its own authority."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from typing import Any, Final

from dpuctl.inspection.daemons import Installed
from dpuctl.inspection.facts import CertificateFacts
from foundation.daemon.configuration import DaemonConfig
from foundation.daemon.identity import identity_of
from foundation.daemon.tls import TlsError, TlsFiles, WatchedFiles

_ROUNDS: Final = 6
_COMPONENTS: Final = {"cni-node", "csi-controller", "csi-node-dpu"}


def files_of(config: DaemonConfig) -> TlsFiles | None:
    """The files for TLS that a daemon's settings name; None for one without."""
    tls = getattr(getattr(config, "link", config), "tls", None) or getattr(config, "bridge_tls", None)
    return TlsFiles(ca=tls.ca, certificate=tls.certificate, key=tls.key) if tls is not None else None


def inspect(daemon: Installed) -> Iterator[CertificateFacts]:
    """Nothing for a daemon without TLS; cni-node has use for it only where there is a link."""
    config = daemon.config
    if config is None or getattr(config, "mode", "") == "default":
        return
    files = files_of(config)
    if files is None:
        return
    node = getattr(config, "node_name", "")
    names: tuple[str, ...] = ()
    expires, problem = 0, ""
    try:
        WatchedFiles(files)
        shown = _handshake(files)
        names = tuple(value for kind, value in shown.get("subjectAltName", ()) if kind == "DNS")
        expires = int(ssl.cert_time_to_seconds(shown["notAfter"]))
        problem = _misnamed(daemon.name, node, names)
    except TlsError as error:
        problem = str(error)
    except ssl.SSLCertVerificationError as error:
        problem = f"a peer refuses it: {error.verify_message}"
    except ssl.SSLError as error:
        problem = f"a peer refuses it: {error.reason}"
    yield CertificateFacts(
        daemon=daemon.name, node=node, file=files.certificate, expires=expires, names=names, problem=problem
    )


def _misnamed(daemon: str, node: str, names: tuple[str, ...]) -> str:
    if daemon not in _COMPONENTS:
        return ""
    found = identity_of(names)
    if found is None or found.component != daemon or (node and found.node != node):
        wanted = f"{node or '<node>'}.{daemon}.dpu-offload.io"
        return f"it names {', '.join(names) or 'nothing'}; peers expect {wanted}"
    return ""


def _handshake(files: TlsFiles) -> Mapping[str, Any]:
    """The certificate as the client's side of a handshake sees it. Raises ssl.SSLError."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(files.certificate, files.key)
    calling = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    calling.check_hostname = False
    calling.load_verify_locations(files.ca)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = serving.wrap_bio(to_server, to_client, server_side=True)
    client = calling.wrap_bio(to_client, to_server)
    for _ in range(_ROUNDS):
        done = True
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                done = False
        if done:
            break
    return client.getpeercert() or {}
