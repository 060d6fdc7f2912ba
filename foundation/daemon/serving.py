"""gRPC servers over unix sockets or mutual TLS (one door to serving, dialling, identity)."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import grpc
import grpc.aio

from foundation.daemon.dialling import dial
from foundation.daemon.errors import ErrorTable
from foundation.daemon.identity import Identity, parse_identity, peer_identity
from foundation.daemon.interceptors import CallInterceptor
from foundation.daemon.sockets import SocketTaken, claim_unix_path, narrow_umask
from foundation.daemon.tls import TlsError, TlsFiles, server_credentials

__all__ = [
    "ErrorTable",
    "Identity",
    "SocketTaken",
    "TlsError",
    "TlsFiles",
    "dial",
    "listen_tls",
    "listen_unix",
    "make_server",
    "parse_identity",
    "peer_identity",
]


def make_server(
    *, errors: ErrorTable, service: str, deadline: float = 120.0, callers: Collection[str] | None = None
) -> grpc.aio.Server:
    """A server whose calls have a deadline, a log line, metrics and a status for every exception.

    `service` stands for it in logs and metrics. `deadline` (seconds) bounds calls whose caller set none, except
    streams of answers. `callers`, if given, are the components whose certificates may call over TLS; unix sockets are
    guarded by their file mode. Add servicers, listen, then `await server.start()`; stop with `daemon.on_stop(lambda:
    server.stop(5))`.
    """
    return grpc.aio.server(
        interceptors=[CallInterceptor(errors=errors, service=service, deadline=deadline, callers=callers)],
        options=[
            # A second server on a port must fail, not share its connections.
            ("grpc.so_reuseport", 0),
            # Our clients ping every 10 s, also between calls (dialling.py).
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
        ],
    )


def listen_unix(server: grpc.aio.Server, path: str | Path, mode: int = 0o600) -> None:
    """Have `server` listen on a unix socket with this file mode.

    :raises SocketTaken: another instance serves there.
    :raises ValueError: the path is relative or too long.
    :raises OSError: the path cannot be used.
    """
    path = Path(path)
    claim_unix_path(path, mode=mode)
    try:
        with narrow_umask(mode):
            server.add_insecure_port(f"unix:{path}")
    except RuntimeError:
        raise OSError(f"cannot listen on the unix socket {path}; see that its directory is writable") from None
    os.chmod(path, mode)


def listen_tls(server: grpc.aio.Server, address: str, tls: TlsFiles) -> int:
    """Have `server` listen on `host:port` with mutual TLS; returns the port (of use where 0 asked for any free one).

    Callers without a certificate of the CA are refused in the handshake. Changed files are used from the next
    connection on.

    :raises TlsError: the certificate files cannot be used.
    :raises OSError: the address cannot be listened on.
    """
    try:
        return server.add_secure_port(address, server_credentials(tls))
    except RuntimeError:
        raise OSError(f"cannot listen on {address}; see that it is an address of this machine and not taken") from None
