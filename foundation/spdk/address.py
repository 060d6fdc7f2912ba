"""Where an SPDK process listens: parsing of ``unix:/path``, ``tcp:host:port`` and ``http://user@host:port/``."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

import msgspec


class UnixAddress(msgspec.Struct, frozen=True):
    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


class TcpAddress(msgspec.Struct, frozen=True):
    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp:[{self.host}]:{self.port}" if ":" in self.host else f"tcp:{self.host}:{self.port}"


class HttpAddress(msgspec.Struct, frozen=True):
    """SPDK's own HTTP proxy. A password never stands in the address: it comes from a file."""

    url: str
    user: str

    def __str__(self) -> str:
        return self.url


Address = UnixAddress | TcpAddress | HttpAddress


def parse_address(text: str) -> Address:
    """Raises ValueError with what is wrong and what would be right. A bare absolute path is a unix socket."""
    if text.startswith("/"):
        return UnixAddress(path=text)
    scheme, _, rest = text.partition(":")
    if scheme == "unix" and rest.startswith("/"):
        return UnixAddress(path=rest)
    if scheme == "tcp":
        host, _, port = rest.removeprefix("//").rstrip("/").rpartition(":")
        if host and port.isdigit() and 0 < int(port) < 65536:
            return TcpAddress(host=host.strip("[]"), port=int(port))
    if scheme in ("http", "https"):
        parts = urlsplit(text)
        if parts.password is not None:
            raise ValueError("the SPDK address holds a password: put it into a file and name the file instead")
        if parts.hostname:
            netloc = parts.netloc.rpartition("@")[2]
            return HttpAddress(
                url=urlunsplit((parts.scheme, netloc, parts.path or "/", "", "")), user=parts.username or ""
            )
    raise ValueError(f"{text!r} is no SPDK address: use unix:/path, tcp:host:port or http://user@host:port/")
