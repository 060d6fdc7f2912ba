"""The kernel's messages on links that appear, change or vanish (rtnetlink(7), group RTNLGRP_LINK)."""

import asyncio
import contextlib
import logging
import socket
import struct
import sys
from collections.abc import Callable, Iterator

import msgspec

from cni.node.netns import NetworkNamespace

_log = logging.getLogger(__name__)

_RTMGRP_LINK = 1
_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_REQUEST, _DUMP = 0x1, 0x300
_IFNAME, _MTU, _ALIAS, _SWITCH_ID, _PORT_NAME = 3, 4, 20, 36, 38
_UP = 1
_HEADER, _INFO, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=BxHiII"), struct.Struct("=HH")
_RECEIVE_BUFFER = 4 * 1024 * 1024


class LinkEvent(msgspec.Struct, frozen=True, kw_only=True):
    """`gone` for a link deleted or moved to another namespace. `switch_id` and `port_name` are "" where not told."""

    index: int
    name: str
    gone: bool
    up: bool = False
    mtu: int = 0
    alias: str = ""
    switch_id: str = ""
    port_name: str = ""


def parse(data: bytes) -> Iterator[LinkEvent]:
    """The link events in one datagram; a cut or foreign message ends it quietly."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or at + length > len(data):
            return
        if kind in (_NEWLINK, _DELLINK) and length >= _HEADER.size + _INFO.size:
            _, _, index, flags, _ = _INFO.unpack_from(data, at + _HEADER.size)
            found = dict(_attributes(data[at + _HEADER.size + _INFO.size : at + length]))
            yield LinkEvent(
                index=index,
                name=_string(found.get(_IFNAME, b"")),
                gone=kind == _DELLINK,
                up=bool(flags & _UP),
                mtu=int.from_bytes(found.get(_MTU, b""), sys.byteorder),
                alias=_string(found.get(_ALIAS, b"")),
                switch_id=found.get(_SWITCH_ID, b"").hex(),
                port_name=_string(found.get(_PORT_NAME, b"")),
            )
        at += (length + 3) & ~3


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3


def _string(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode("utf-8", "replace")


class LinkEvents:
    """Tells subscribers of each event in the node's namespace; `on_loss` when the kernel had to drop some."""

    def __init__(self, node: NetworkNamespace) -> None:
        self._node = node
        self._subscribers: list[Callable[[LinkEvent], None]] = []
        self._on_loss: list[Callable[[], None]] = []
        self._socket: socket.socket | None = None

    def subscribe(self, callback: Callable[[LinkEvent], None], *, on_loss: Callable[[], None]) -> None:
        self._subscribers.append(callback)
        self._on_loss.append(on_loss)

    async def open(self) -> None:
        """From here on nothing is missed; links that exist already come first, as events of their own."""
        # The socket stays in the namespace of the thread that makes it.
        self._socket = await self._node.run(lambda _: _listener())

    async def run(self) -> None:
        """For ever, until cancelled."""
        assert self._socket is not None, "open() comes first"
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    data = await loop.sock_recv(self._socket, 65536)
                except OSError as error:
                    _log.warning("link events were lost (%s); looking at all links again", error.strerror)
                    _ask_for_all(self._socket)
                    for lost in self._on_loss:
                        lost()
                    continue
                for event in parse(data):
                    for callback in self._subscribers:
                        callback(event)
        finally:
            self._socket.close()


def _listener() -> socket.socket:
    listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
    with contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
    listener.bind((0, _RTMGRP_LINK))
    _ask_for_all(listener)
    return listener


def _ask_for_all(listener: socket.socket) -> None:
    """The kernel answers with a NEWLINK message for each link, on the same socket as the events."""
    size = _HEADER.size + _INFO.size
    header = _HEADER.pack(size, _GETLINK, _REQUEST | _DUMP, 1, 0)
    listener.send(header + _INFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
