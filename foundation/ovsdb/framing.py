"""Cuts an OVSDB byte stream into JSON-RPC messages.

OVSDB sends JSON objects back to back, with no length and no separator. Two facts make cutting cheap: outside of
strings the bytes `}{` occur only between two messages, and a proper prefix of a JSON object is never itself valid JSON.
So a piece between two candidate cuts is a message exactly when it decodes, and the decoder does all the scanning in C.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from foundation.ovsdb.errors import ProtocolViolation

_CUT = re.compile(rb"\}[ \t\r\n]*\{")


class Message(msgspec.Struct, gc=False):
    """One JSON-RPC 1.0 message: a request or notification (`method`), or a reply (`result`, `error`)."""

    id: Any = None
    method: str | None = None
    params: msgspec.Raw = msgspec.Raw(b"null")
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: Any = None


_DECODER = msgspec.json.Decoder(Message)


class Framer:
    """Takes chunks, returns whole messages; an incomplete tail waits for the next chunk.

    `limit` bounds the bytes of one message (default 1 GiB).
    """

    def __init__(self, limit: int = 1 << 30) -> None:
        self._buffer = bytearray()
        self._scanned = 0
        self._limit = limit

    def feed(self, chunk: bytes) -> list[Message]:
        """Messages completed by this chunk, in order. Raises ProtocolViolation on a stream that holds no object."""
        buffer = self._buffer
        buffer += chunk
        messages: list[Message] = []
        start = 0
        # A cut may straddle the chunk border: `}` was the last byte seen.
        position = max(0, self._scanned - 1)
        while True:
            cut = _CUT.search(buffer, position)
            if cut is None:
                break
            end = cut.start() + 1
            position = end
            message = self._decode(buffer, start, end)
            if message is not None:  # else `}{` stood inside a string
                messages.append(message)
                start = end
        tail = buffer.rstrip() if buffer[-1:].isspace() else buffer
        if tail.endswith(b"}") and len(tail) > start:
            message = self._decode(buffer, start, len(tail))
            if message is not None:
                messages.append(message)
                start = len(buffer)
        if start:
            del buffer[:start]
        self._scanned = len(buffer)
        if buffer and not buffer[:1].isspace() and buffer[:1] != b"{":
            raise ProtocolViolation(f"the peer does not speak OVSDB JSON-RPC: its message begins with {buffer[:40]!r}")
        if len(buffer) > self._limit:
            raise ProtocolViolation(f"a message of more than {self._limit} bytes")
        return messages

    @staticmethod
    def _decode(buffer: bytearray, start: int, end: int) -> Message | None:
        try:
            with memoryview(buffer) as view:
                # Raw fields borrow the decoded bytes, so they must not be the buffer that shrinks.
                return _DECODER.decode(bytes(view[start:end]))
        except msgspec.ValidationError as error:
            raise ProtocolViolation(f"a message that is no JSON-RPC: {error}") from None
        except msgspec.DecodeError:
            return None
