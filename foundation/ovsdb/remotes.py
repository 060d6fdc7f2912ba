"""Reads OVSDB remote strings, the form that OVS and OVN tools take."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from foundation.ovsdb.errors import RemoteInvalid


@dataclass(frozen=True, slots=True)
class OvsdbTls:
    """Paths of PEM files for `ssl:` remotes: the authority, our certificate and our key.

    OVN's certificates carry no host names, so unless `check_host` is set the peer is checked
    against the authority only.
    """

    ca: str
    certificate: str
    key: str
    check_host: bool = False


@dataclass(frozen=True, slots=True)
class Remote:
    """One server: a unix socket's path, or a host, a port and whether to speak TLS."""

    path: str = ""
    host: str = ""
    port: int = 0
    tls: bool = False

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'ssl' if self.tls else 'tcp'}:{host}:{self.port}"


def _one(text: str) -> Remote:
    kind, _, rest = text.partition(":")
    if kind == "unix" and rest:
        return Remote(path=rest)
    host, _, port = rest.rpartition(":")
    if kind in ("tcp", "ssl") and host and port.isdigit() and 0 < int(port) < 65536:
        return Remote(host=host.strip("[]"), port=int(port), tls=kind == "ssl")
    raise RemoteInvalid(f"{text!r} is no OVSDB remote: write unix:PATH, tcp:HOST:PORT or ssl:HOST:PORT")


def parse(text: str) -> tuple[Remote, ...]:
    """Comma-separated remotes, such as `ssl:10.0.0.1:6641,ssl:10.0.0.2:6641`. Raises RemoteInvalid."""
    remotes = tuple(_one(part.strip()) for part in text.split(",") if part.strip())
    if not remotes:
        raise RemoteInvalid("no OVSDB remote given: write unix:PATH, tcp:HOST:PORT or ssl:HOST:PORT")
    return remotes


def tls_context(tls: OvsdbTls) -> ssl.SSLContext:
    """A client context for `ssl:` remotes; reads the files now, so a rotated certificate counts on the next connect."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = tls.check_host
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(tls.ca)
    context.load_cert_chain(tls.certificate, tls.key)
    return context
