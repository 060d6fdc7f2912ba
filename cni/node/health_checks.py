"""Answers a load balancer's health checks: at a service's healthCheckNodePort, whether this node has endpoints of it.

Kubernetes API, Service spec.healthCheckNodePort (externalTrafficPolicy Local); the answer has kube-proxy's form.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable

import msgspec

from cni.node.netns import NetworkNamespace

_log = logging.getLogger(__name__)

ANNOTATION = "dpu-offload.io/health-checks"
_REQUEST_SECONDS = 5.0
_AGAIN_SECONDS = 5.0
_LARGEST_HEAD = 16 * 1024
_BACKLOG = 128


class Service(msgspec.Struct, frozen=True):
    namespace: str
    name: str


class Check(msgspec.Struct, frozen=True, rename="camel"):
    """One entry of the annotation."""

    port: int
    service: Service
    local_endpoints: int = 0


class HealthChecks:
    """`problem` tells why the node does not forward to its pods, "" when it does. Listens in the node's namespace."""

    def __init__(self, node: NetworkNamespace, *, problem: Callable[[], str]) -> None:
        self._node = node
        self._problem = problem
        self._wanted: dict[int, Check] = {}
        self._servers: dict[int, asyncio.Server] = {}
        self._changed = asyncio.Event()

    def want(self, text: str) -> None:
        """The annotation's text, "" for none; one that cannot be read changes nothing."""
        try:
            found = msgspec.json.decode(text or "[]", type=tuple[Check, ...])
        except msgspec.MsgspecError as error:
            _log.error("the node's annotation %s is malformed: %s", ANNOTATION, error)
            return
        self._wanted = {check.port: check for check in found}
        self._changed.set()

    async def run(self) -> None:
        """For ever: listens at the ports that are wanted; a port that is taken is tried again."""
        try:
            while True:
                self._changed.clear()
                for port in self._servers.keys() - self._wanted.keys():
                    self._servers.pop(port).close()
                missing = [port for port in self._wanted.keys() - self._servers.keys() if not await self._open(port)]
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), _AGAIN_SECONDS if missing else None)
        finally:
            for server in self._servers.values():
                server.close()

    async def _open(self, port: int) -> bool:
        try:
            listener = await self._node.run(lambda _: _listener(port))
        except (OSError, OverflowError) as error:
            _log.warning("cannot answer health checks of %s at port %d: %s", self._wanted[port].service, port, error)
            return False
        self._servers[port] = await asyncio.start_server(
            lambda reader, writer: self._serve(port, reader, writer), sock=listener, limit=_LARGEST_HEAD
        )
        return True

    async def _serve(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                if (check := self._wanted.get(port)) is not None:
                    writer.write(self._answer(check, body=not head.startswith(b"HEAD ")))
                    await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass  # A client that went away or talks something else is its own affair.
        finally:
            writer.close()

    def _answer(self, check: Check, *, body: bool) -> bytes:
        healthy = not self._problem()
        status = "200 OK" if healthy and check.local_endpoints else "503 Service Unavailable"
        text = msgspec.json.encode(
            {"service": check.service, "localEndpoints": check.local_endpoints, "serviceProxyHealthy": healthy}
        )
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n"
            f"X-Content-Type-Options: nosniff\r\nX-Load-Balancing-Endpoint-Weight: {check.local_endpoints}\r\n"
            "Connection: close\r\n\r\n"
        )
        return head.encode() + (text if body else b"")


def _listener(port: int) -> socket.socket:
    """Of all the node's addresses; it stays in the namespace of the thread that makes it. Raises OSError."""
    try:
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_BACKLOG)
    except OSError as error:
        # A kernel without IPv6.
        if error.errno != errno.EAFNOSUPPORT:
            raise
        return socket.create_server(("", port), backlog=_BACKLOG)
