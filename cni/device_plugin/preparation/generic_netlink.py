"""One request to a family of generic netlink, with the driver's own words when it refuses."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

_NETLINK_GENERIC, _SOL_NETLINK, _EXT_ACK, _CAP_ACK = 16, 270, 11, 10
_REQUEST, _ACK = 1, 4
_ERROR, _CONTROL = 2, 16
_CAPPED, _HAS_TLVS = 0x100, 0x200
_GET_FAMILY, _FAMILY_ID, _FAMILY_NAME = 3, 1, 2
_ERROR_TEXT = 1
_TYPE_MASK = 0x3FFF
_HEADER: Final = struct.Struct("=IHHII")
_GENERIC: Final = struct.Struct("=BBxx")
_ATTRIBUTE: Final = struct.Struct("=HH")
_SECONDS = 30.0  # a change of mode rebuilds the card's tables
_DATAGRAM = 65536


class Refused(OSError):
    """The kernel answered with an error: `errno`, and in `strerror` the driver's words where it has any."""


def ask(family: str, command: int, attributes: Iterable[tuple[int, bytes]], *, version: int = 1) -> dict[int, bytes]:
    """Send one command; the attributes of the answer, empty for a bare acknowledgement. Blocking.

    Raises Refused (ENOENT: no such family), TimeoutError.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_GENERIC) as kernel:
        kernel.settimeout(_SECONDS)
        kernel.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
        kernel.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
        kernel.bind((0, 0))
        name = [(_FAMILY_NAME, family.encode() + b"\0")]
        answer = _exchange(kernel, encode(_CONTROL, _GET_FAMILY, name, version=2, sequence=1))
        (number,) = struct.unpack_from("=H", answer[_FAMILY_ID])
        return _exchange(kernel, encode(number, command, attributes, version=version, sequence=2))


def encode(kind: int, command: int, attributes: Iterable[tuple[int, bytes]], *, version: int, sequence: int) -> bytes:
    """A request that asks for an acknowledgement."""
    body = _GENERIC.pack(command, version)
    for number, value in attributes:
        body += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), number) + value + b"\0" * (-len(value) % 4)
    return _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | _ACK, sequence, 0) + body


def decode(datagram: bytes) -> Iterator[tuple[int, Mapping[int, bytes]]]:
    """(message type, attributes) of each answer; ends at an acknowledgement. Raises Refused."""
    at = 0
    while at + _HEADER.size <= len(datagram):
        length, kind, flags, _, _ = _HEADER.unpack_from(datagram, at)
        body = datagram[at + _HEADER.size : at + length]
        if kind == _ERROR:
            _acknowledged(body, flags)
            yield kind, {}
            return
        yield kind, dict(_attributes(body[_GENERIC.size :]))
        at += (length + 3) & ~3


def _exchange(kernel: socket.socket, request: bytes) -> dict[int, bytes]:
    kernel.send(request)
    found: dict[int, bytes] = {}
    while True:
        for kind, attributes in decode(kernel.recv(_DATAGRAM)):
            if kind == _ERROR:
                return found
            found |= attributes


def _acknowledged(body: bytes, flags: int) -> None:
    (code,) = struct.unpack_from("=i", body)
    if not code:
        return
    text = os.strerror(-code)
    if flags & _HAS_TLVS:
        # The request's header is echoed; its body too, unless the kernel left it out.
        (echoed,) = struct.unpack_from("=I", body, 4)
        skipped = 4 + (_HEADER.size if flags & _CAPPED else (echoed + 3) & ~3)
        words = dict(_attributes(body[skipped:])).get(_ERROR_TEXT, b"")
        text = words.rstrip(b"\0").decode("utf-8", "replace") or text
    raise Refused(-code, text)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, number = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            return
        yield number & _TYPE_MASK, data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
