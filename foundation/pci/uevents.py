"""The kernel's announcements that devices came, went or changed (NETLINK_KOBJECT_UEVENT)."""

from __future__ import annotations

import asyncio
import errno
import logging
import re
import socket
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

import msgspec

log = logging.getLogger(__name__)

_NETLINK_KOBJECT_UEVENT = 15
_KERNEL_GROUP = 1  # group 2 carries udev's own rebroadcasts
_KERNEL_PORT = 0
_SO_RCVBUFFORCE = 33
_BUFFER = 4 << 20
_DATAGRAM = 16384  # the kernel's limit is 2 KiB of environment and a path
_BDF = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")

OVERFLOW = "overflow"


class Uevent(msgspec.Struct, frozen=True):
    """`action` is add, remove, change, move, bind, unbind, online or offline; `devpath` starts below `/sys`.

    The action `overflow` is ours: the kernel dropped events, so the listener has to look for itself.
    """

    action: str
    devpath: str = ""
    subsystem: str = ""
    fields: Mapping[str, str] = {}

    @property
    def pci_address(self) -> str:
        """The PCI function that the device is, or hangs below; "" for one that is on no PCI bus."""
        return next((part for part in reversed(self.devpath.split("/")) if _BDF.fullmatch(part)), "")


def parse(datagram: bytes) -> Uevent | None:
    """A kernel uevent (`ACTION@DEVPATH`, then `KEY=VALUE`, each ended by NUL); None for anything else."""
    head, *lines = datagram.rstrip(b"\0").decode("utf-8", "replace").split("\0")
    action, at, devpath = head.partition("@")
    if not at or not devpath.startswith("/"):
        return None
    fields = dict(line.split("=", 1) for line in lines if "=" in line)
    return Uevent(action, devpath, fields.get("SUBSYSTEM", ""), fields)


class Uevents:
    """Uevents of this network namespace, handed to callbacks in the order in which the kernel sent them.

    To be entered before the first look at sysfs, so that nothing falls between. PCI and block events reach every
    network namespace of the initial user namespace; those of network devices only their own.
    """

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._callbacks: list[Callable[[Uevent], None]] = []

    def subscribe(self, callback: Callable[[Uevent], None]) -> Callable[[], None]:
        """Call `callback` with each event, in the event loop; returns the way to end that."""
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    def __enter__(self) -> Self:
        """Raises OSError when the machine has no such socket."""
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_NETLINK, kind, _NETLINK_KOBJECT_UEVENT)
        try:
            self._enlarge(self._socket)
            self._socket.bind((0, _KERNEL_GROUP))
            asyncio.get_running_loop().add_reader(self._socket, self._drain, self._socket)
        except BaseException:
            self._socket.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    @staticmethod
    def _enlarge(listener: socket.socket) -> None:
        """Room for the burst of a thousand VFs appearing at once."""
        try:
            listener.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        except PermissionError:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)

    def _drain(self, listener: socket.socket) -> None:
        while True:
            try:
                datagram, (port, _) = listener.recvfrom(_DATAGRAM)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                log.warning("the kernel dropped uevents: the socket's buffer was full")
                self._tell(Uevent(OVERFLOW))
                continue
            # Any process can send here by unicast; only the kernel's own port is 0.
            event = parse(datagram) if port == _KERNEL_PORT else None
            if event is not None:
                self._tell(event)

    def _tell(self, event: Uevent) -> None:
        for callback in tuple(self._callbacks):
            try:
                callback(event)
            except Exception:
                log.exception("a listener failed on uevent %s %s", event.action, event.devpath)
