"""Whether another node's daemon answers to the certificate of one that is installed here."""

from __future__ import annotations

import asyncio
import ssl
from typing import Final

import msgspec

from dpuctl.inspection.certificates import files_of
from dpuctl.inspection.daemons import Installed
from dpuctl.inspection.facts import DialFacts

SECONDS: Final = 3.0


class Dial(msgspec.Struct, frozen=True, kw_only=True):
    """`daemon` (of `node`, "" for any) shall reach `endpoint`, whose certificate must name `server_name`.

    As text: `daemon/node=host:port/server.name`.
    """

    daemon: str
    node: str
    endpoint: str
    server_name: str

    def __str__(self) -> str:
        return f"{self.daemon}/{self.node}={self.endpoint}/{self.server_name}"

    @classmethod
    def parse(cls, text: str) -> Dial:
        """Raises ValueError."""
        who, _, where = text.partition("=")
        (daemon, _, node), (endpoint, _, name) = who.partition("/"), where.partition("/")
        if not daemon or not endpoint or not name:
            raise ValueError(f"{text!r}: expected daemon/node=host:port/server.name")
        return cls(daemon=daemon, node=node, endpoint=endpoint, server_name=name)

    def concerns(self, daemon: Installed) -> bool:
        """Whether the daemon is the one that has to get through."""
        node = getattr(daemon.config, "node_name", "")
        return daemon.name == self.daemon and daemon.config is not None and self.node in ("", node)


async def attempt(dial: Dial, daemon: Installed) -> DialFacts:
    """One TLS connection, until the other side has said something."""
    problem = ""
    try:
        async with asyncio.timeout(SECONDS):
            await _attempt(dial, daemon)
    except TimeoutError:
        problem = f"no answer within {SECONDS:g} s"
    except ssl.SSLCertVerificationError as error:
        problem = f"its certificate is refused here: {error.verify_message}"
    except (OSError, ValueError) as error:
        problem = str(error.strerror if isinstance(error, OSError) and error.strerror else error)
    return DialFacts(
        daemon=dial.daemon, node=dial.node, endpoint=dial.endpoint, server_name=dial.server_name, problem=problem
    )


async def _attempt(dial: Dial, daemon: Installed) -> None:
    files = files_of(daemon.config) if daemon.config is not None else None
    if files is None:
        raise ValueError(f"{daemon.name} has no certificate configured")
    host, _, port = dial.endpoint.rpartition(":")
    context = ssl.create_default_context(cafile=files.ca)
    context.load_cert_chain(files.certificate, files.key)
    context.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection(
        host.strip("[]"), int(port), ssl=context, server_hostname=dial.server_name
    )
    try:
        # TLS 1.3 lets a client finish before the server has looked at its certificate; HTTP/2 servers speak first.
        if not await reader.read(1):
            raise ConnectionError("it closed the connection: it may not trust the certificate of this side")
    finally:
        writer.transport.abort()
