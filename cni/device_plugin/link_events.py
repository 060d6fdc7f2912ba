"""Network devices whose state changed, as the kernel announces them (rtnetlink, RTNLGRP_LINK)."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

log = logging.getLogger(__name__)

_RTMGRP_LINK = 1
_NEWLINK, _DELLINK = 16, 17
_IFLA_IFNAME = 3
_HEADER = struct.Struct("=IHHII")
_IFINFO = struct.Struct("=BxHiII")
_ATTRIBUTE = struct.Struct("=HH")
_BUFFER = 1 << 20
_DATAGRAM = 65536


def names(datagram: bytes) -> Iterator[str]:
    """Names of the network devices that a datagram's link messages are about."""
    at = 0
    while at + _HEADER.size <= len(datagram):
        length, kind, _, _, _ = _HEADER.unpack_from(datagram, at)
        if length < _HEADER.size:
            return
        if kind in (_NEWLINK, _DELLINK):
            yield from _interface_name(datagram[at + _HEADER.size + _IFINFO.size : at + length])
        at += _aligned(length)


def _interface_name(attributes: bytes) -> Iterator[str]:
    at = 0
    while at + _ATTRIBUTE.size <= len(attributes):
        length, kind = _ATTRIBUTE.unpack_from(attributes, at)
        if length < _ATTRIBUTE.size:
            return
        if kind == _IFLA_IFNAME:
            yield attributes[at + _ATTRIBUTE.size : at + length].rstrip(b"\0").decode("utf-8", "replace")
            return
        at += _aligned(length)


def _aligned(length: int) -> int:
    return (length + 3) & ~3


class LinkEvents:
    """Calls `on_change(name)` for each change of a network device in this namespace; "" when events were lost."""

    def __init__(self, on_change: Callable[[str], None]) -> None:
        self._on_change = on_change
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        self._socket.bind((0, _RTMGRP_LINK))
        asyncio.get_running_loop().add_reader(self._socket, self._drain, self._socket)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def _drain(self, listener: socket.socket) -> None:
        while True:
            try:
                datagram = listener.recv(_DATAGRAM)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                log.warning("the kernel dropped link events: the socket's buffer was full")
                self._on_change("")
                continue
            for name in names(datagram):
                self._on_change(name)
