"""vfio-user: the socket ``DIR/cntrl`` on which a guest finds a controller.

The real protocol maps memory; this one tells, one JSON object a line, what the guest's kernel would come to know:
{"event":"controller","nqn","serial","model","cntlid","firmware"}, then {"event":"namespace_add","nsid","uuid","nguid",
"eui64" if any,"size","block_size","file","offset","encrypted","read_only"} for each namespace, and later
namespace_add, {"event":"namespace_remove","nsid"}, {"event":"namespace_resize","nsid","size"}.
One guest at a time; the end of the connection is the end of the controller.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.spdk.subsystems import Listener, Subsystem

if TYPE_CHECKING:
    from lab.spdk.instance import Instance

_log = logging.getLogger(__name__)

_ZERO_UUID = "00000000-0000-0000-0000-000000000000"


class GuestPortal:
    """One directory. A second subsystem on the same one is not refused, and never sees a guest."""

    def __init__(self, instance: Instance, directory: str) -> None:
        self.instance = instance
        self.directory = directory
        self.subsystems: list[Subsystem] = []
        self.guest: GuestSession | None = None
        path = os.path.join(directory, "cntrl")
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            # A file that a killed process left is in the way: the real one refuses until it is unlinked.
            self._socket.bind(path)
            self._socket.listen(8)
            self._socket.setblocking(False)
        except OSError:
            self._socket.close()
            raise
        self._path = path
        asyncio.get_running_loop().add_reader(self._socket, self._accept)
        instance.on_exit.append(self.close)

    def _accept(self) -> None:
        try:
            accepted, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError):
            return
        if self.guest is not None or not self.subsystems:
            _log.info("a second guest on %s is refused", self.directory)
            accepted.close()
            return
        accepted.setblocking(False)
        session = GuestSession(self, self.subsystems[0])
        self.guest = session
        loop = asyncio.get_running_loop()
        task = loop.create_task(loop.connect_accepted_socket(lambda: session, accepted))
        self.instance.background.add(task)
        task.add_done_callback(self.instance.background.discard)

    def forget(self, subsystem: Subsystem) -> None:
        self.subsystems.remove(subsystem)
        if not self.subsystems:
            self.instance.directories.pop(self.directory, None)
            self.close()

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            Path(self._path).unlink(missing_ok=True)


class GuestSession(asyncio.Protocol):
    hostnqn = ""
    hostid = _ZERO_UUID

    def __init__(self, portal: GuestPortal, subsystem: Subsystem) -> None:
        self._portal = portal
        self._subsystem = subsystem
        self._transport: asyncio.Transport | None = None
        self.cntlid = 0
        self.listener: Listener = next(it for it in subsystem.listeners if it.portal is portal)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        subsystem = self._subsystem
        if not subsystem.admits(""):
            _log.info("subsystem %s does not allow host ''", subsystem.nqn)
            transport.close()
            return
        self.cntlid = subsystem.new_cntlid()
        subsystem.sessions.append(self)
        self.push(subsystem.greeting(self.cntlid))
        for nsid in sorted(subsystem.namespaces):
            self.push(subsystem.namespaces[nsid].event("namespace_add"))

    def connection_lost(self, exc: Exception | None) -> None:
        if self in self._subsystem.sessions:
            self._subsystem.sessions.remove(self)
        if self._portal.guest is self:
            self._portal.guest = None

    def push(self, event: dict[str, Any]) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(json.dumps(event).encode() + b"\n")

    def disconnect(self) -> None:
        if self in self._subsystem.sessions:
            self._subsystem.sessions.remove(self)
        if self._transport is not None:
            self._transport.close()

    def qpair(self) -> dict[str, Any]:
        return {
            "cntlid": self.cntlid,
            "qid": 0,
            "state": "enabled",
            "thread": "nvmf_tgt_poll_group_000",
            "hostnqn": "",
            "listen_address": self.listener.address,
        }
