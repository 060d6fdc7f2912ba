"""Certificate files, read anew when they change."""

from __future__ import annotations

import logging
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

_log = logging.getLogger(__name__)


class TlsError(Exception):
    """The certificate files cannot be used."""


@dataclass(frozen=True)
class TlsFiles:
    """Paths of PEM files: the CA that peers are checked against, our certificate (with its chain), its private key."""

    ca: str
    certificate: str
    key: str


@dataclass(frozen=True)
class Material:
    """The contents of `TlsFiles`, which belong together."""

    ca: bytes
    certificate: bytes
    key: bytes


class WatchedFiles:
    """`TlsFiles` and what was last read from them.

    Kubernetes swaps a mounted secret by one rename of a link, but a reader may still see one file before it and one
    after: a certificate and a key that do not match are not taken, and the next look finds the rest.
    """

    def __init__(self, files: TlsFiles) -> None:
        self.files = files
        self._lock = threading.Lock()
        self._stamp, self._material = _read(files)

    @property
    def material(self) -> Material:
        """What was read last."""
        return self._material

    def refresh(self) -> bool:
        """Look at the files; whether new material was taken. Unusable files leave the old material in use."""
        with self._lock:
            if _stamp(self.files) == self._stamp:
                return False
            try:
                self._stamp, material = _read(self.files)
            except TlsError as error:
                _log.warning("keeping the certificate in use: %s", error)
                return False
            if material == self._material:
                return False
            self._material = material
            _log.info("certificate files were read anew", extra={"certificate": self.files.certificate})
            return True


def _stamp(files: TlsFiles) -> tuple[object, ...]:
    """What changes when one of the files does."""
    stamp: list[object] = []
    for path in (files.ca, files.certificate, files.key):
        try:
            status = Path(path).stat()
        except OSError as error:
            stamp.append(error.errno)
        else:
            stamp.append((status.st_mtime_ns, status.st_ino, status.st_dev, status.st_size))
    return tuple(stamp)


def _read(files: TlsFiles) -> tuple[tuple[object, ...], Material]:
    stamp = _stamp(files)
    contents = []
    for role, path in (("CA", files.ca), ("certificate", files.certificate), ("private key", files.key)):
        try:
            contents.append(Path(path).read_bytes())
        except OSError as error:
            raise TlsError(f"TLS {role} file {path}: {error.strerror}") from None
    check = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        check.load_verify_locations(cadata=contents[0].decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise TlsError(f"TLS CA file {files.ca}: holds no usable PEM certificate") from None
    try:
        # Without a password OpenSSL would ask the terminal for one, and wait.
        check.load_cert_chain(files.certificate, files.key, password="")
    except (ssl.SSLError, OSError):
        raise TlsError(f"TLS certificate {files.certificate}: not a PEM certificate for the key {files.key}") from None
    if _stamp(files) != stamp:
        # What was checked may not be what was read.
        raise TlsError(f"TLS files of {files.certificate}: they changed while being read; read them again")
    return stamp, Material(*contents)


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials that demand a client certificate of the CA and follow changed files with each new connection.

    :raises TlsError: the files cannot be used now.
    """
    watched = WatchedFiles(files)

    def configuration() -> grpc.ServerCertificateConfiguration:
        material = watched.material
        return grpc.ssl_server_certificate_configuration([(material.key, material.certificate)], material.ca)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        # gRPC calls this from its own thread before each handshake; None keeps what it has.
        return configuration() if watched.refresh() else None

    # types-grpcio leaves out the None that gRPC documents.
    fetcher: Any = fetch
    return grpc.dynamic_ssl_server_credentials(configuration(), fetcher, require_client_authentication=True)


def channel_credentials(material: Material) -> grpc.ChannelCredentials:
    """Credentials of a client, fixed for the life of its channel."""
    return grpc.ssl_channel_credentials(material.ca, material.key, material.certificate)
