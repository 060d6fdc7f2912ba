"""Keeping one resource registered with kubelet, through restarts of either side."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio

from cni.device_plugin.errors import ERRORS, BadDirectory
from cni.device_plugin.resource_server import ResourceServer
from dpu_offload_stubs.kubelet.deviceplugin.v1beta1 import api_pb2, api_pb2_grpc
from foundation.daemon import metrics
from foundation.daemon.serving import dial, listen_unix, make_server
from foundation.daemon.sockets import LONGEST_PATH, claim_unix_path
from foundation.daemon.work import Backoff

log = logging.getLogger(__name__)

API_VERSION = "v1beta1"
KUBELET_SOCKET = "kubelet.sock"

_SOCKET_MODE = 0o660
_LONGEST_STEM = 40

_REGISTRATIONS = metrics.counter("device_plugin_registrations", "Attempts to register.", ("resource", "outcome"))

SetHealth = Callable[[str, bool, str], None]


@dataclass(frozen=True)
class _Identity:
    """One life of kubelet, known by its socket."""

    device: int
    inode: int
    made: int

    @classmethod
    def of(cls, socket: Path) -> _Identity | None:
        try:
            status = socket.stat()
        except OSError:
            return None
        return cls(status.st_dev, status.st_ino, status.st_ctime_ns)


@dataclass(frozen=True)
class Patience:
    """How long each step of a registration may take, in seconds.

    `register`: kubelet dials back before it answers, for ten seconds at most. `dial_back`: after its answer it opens
    a stream to us; one that did not has given us up.
    """

    register: float = 12.0
    dial_back: float = 5.0
    farewell: float = 1.0
    backoff: Backoff = field(default_factory=lambda: Backoff(0.05, 10.0))


class Registration:
    """A resource's gRPC server, its socket in kubelet's directory, the registration by which kubelet finds it.

    `run` is the whole of it; `wake` tells it that something in the directory, or among the streams, has changed.
    """

    def __init__(self, servicer: ResourceServer, directory: Path, *, set_health: SetHealth, patience: Patience) -> None:
        self._resource = servicer.resource
        self._servicer = servicer
        self._directory = directory
        self._set_health = set_health
        self._patience = patience
        self._wake = asyncio.Event()
        self._server: grpc.aio.Server | None = None
        self._socket: Path | None = None
        self._kubelet: _Identity | None = None
        self._registered = False
        self._failures = 0
        self._complaint = ""
        self._dial_back_by = self._not_before = 0.0

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        """Serve and register, again whenever kubelet or our socket is new; until cancelled."""
        remove_leftovers(self._directory, self._resource)
        while True:
            self._wake.clear()
            pause = await self._step()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()

    async def stop(self) -> None:
        """Take the devices back, then the socket. To be called when `run` has ended."""
        self._servicer.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience.farewell):
                while self._servicer.streams:
                    self._wake.clear()
                    await self._wake.wait()
        await self._close_server()

    async def _step(self) -> float | None:
        """Bring things one step further; seconds until the next look is due, None when only a change asks for one."""
        now = asyncio.get_running_loop().time()
        kubelet = _Identity.of(self._directory / KUBELET_SOCKET)
        if kubelet != self._kubelet:
            self._kubelet, self._registered, self._failures, self._not_before = kubelet, False, 0, 0.0
        if kubelet is None:
            self._unwell(f"kubelet is not there: no socket {self._directory / KUBELET_SOCKET}")
            return None
        if self._socket is None or not self._socket.exists():
            self._registered = False
        if self._registered:
            if self._servicer.streams:
                self._failures, self._complaint = 0, ""
                self._set_health(self._check, True, "")
                return None
            if now < self._dial_back_by:
                return self._dial_back_by - now
            self._registered = False
            self._failed("kubelet does not watch the devices, though it took the registration")
        if now < self._not_before:
            return self._not_before - now
        await self._attempt()
        return 0.0

    @property
    def _check(self) -> str:
        return f"kubelet:{self._resource}"

    async def _attempt(self) -> None:
        """Serve on a socket of its own, then register it."""
        try:
            if self._socket is None or not self._socket.exists():
                await self._serve()
            await self._register()
        except (OSError, grpc.aio.AioRpcError) as error:
            reason = error.details() or error.code().name if isinstance(error, grpc.aio.AioRpcError) else str(error)
            self._failed(f"registration with kubelet failed: {reason}")
            return
        _REGISTRATIONS.labels(resource=self._resource, outcome="ok").inc()
        log.info("registered with kubelet", extra={"resource": self._resource})
        self._registered = True
        self._dial_back_by = asyncio.get_running_loop().time() + self._patience.dial_back

    async def _serve(self) -> None:
        """A new name each time: the end of the old server may remove its path later than the new one appears."""
        await self._close_server()
        path = socket_path(self._directory, self._resource)
        server = make_server(errors=ERRORS, service="device-plugin")
        api_pb2_grpc.add_DevicePluginServicer_to_server(self._servicer, server)
        # Known before it exists, so that a stop in the middle removes it.
        self._server, self._socket = server, path
        listen_unix(server, path, _SOCKET_MODE)
        await server.start()

    async def _close_server(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None
        if self._socket is not None:
            self._socket.unlink(missing_ok=True)
            self._socket = None

    async def _register(self) -> None:
        """Raises AioRpcError."""
        assert self._socket is not None
        request = api_pb2.RegisterRequest(
            version=API_VERSION,
            endpoint=self._socket.name,
            resource_name=self._resource,
            options=self._servicer.options(),
        )
        channel = dial(f"unix:{self._directory / KUBELET_SOCKET}", name="kubelet")
        try:
            await api_pb2_grpc.RegistrationStub(channel).Register(request, timeout=self._patience.register)
        finally:
            await channel.close()

    def _failed(self, reason: str) -> None:
        self._failures += 1
        self._not_before = asyncio.get_running_loop().time() + self._patience.backoff.delay(self._failures)
        _REGISTRATIONS.labels(resource=self._resource, outcome="error").inc()
        self._unwell(reason)

    def _unwell(self, reason: str) -> None:
        if reason != self._complaint:
            log.warning("%s", reason, extra={"resource": self._resource})
        self._complaint = reason
        self._set_health(self._check, False, reason)


def remove_leftovers(directory: Path, resource: str) -> None:
    """Remove sockets that earlier processes of ours left behind. Raises SocketTaken when one of them still serves."""
    for path in directory.glob(f"{_stem(resource)}.*.sock"):
        claim_unix_path(path, mode=_SOCKET_MODE)


def socket_path(directory: Path, resource: str) -> Path:
    """A new one for the resource's server."""
    return directory / f"{_stem(resource)}.{secrets.token_hex(4)}.sock"


def refuse_long_paths(directory: Path, resources: Collection[str]) -> None:
    """Raises BadDirectory where the kernel would not take the sockets' paths."""
    for resource in resources:
        path = socket_path(directory, resource)
        if (length := len(os.fsencode(path))) > LONGEST_PATH:
            raise BadDirectory(
                f"plugins_directory {directory} is too long: {path.name} in it makes {length} bytes, a socket's path "
                f"has at most {LONGEST_PATH}; name kubelet's directory by a shorter path"
            )


def _stem(resource: str) -> str:
    """How the names of a resource's sockets begin: a path of the kernel's has room for 107 bytes with its directory.

    The hash keeps those apart that differ in nothing else, such as `vf.fast` and `vf_fast`.
    """
    readable = re.sub(r"[^A-Za-z0-9_-]", "_", resource)[: _LONGEST_STEM - 9]
    return f"{readable}-{hashlib.sha256(resource.encode()).hexdigest()[:8]}"
