"""Cutting a byte stream into JSON values.

SPDK ends each reply with a newline and writes no newline inside one; that is the fast path: a line that decodes is a
reply. Other servers of the same protocol pretty-print or leave the newline out, so where lines do not hold, brackets
are counted, each byte once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

_OUTSIDE = re.compile(rb'["{}\[\]]')
_INSIDE = re.compile(rb'["\\]')
_BLANK = b" \t\r\n"
_OPENING = b"{["
_CLOSING = b"}]"
_QUOTE = ord('"')
_NEWLINE = b"\n"


class FramingError(ValueError):
    """The stream is lost: what came is not a sequence of JSON objects and arrays."""


class Framer(Generic[T]):
    """Takes chunks as they arrive; gives back the values that are complete, decoded, in order.

    ``decode`` must accept exactly one whole JSON value and raise ValueError for anything else (msgspec's decoders do).
    ``feed`` raises FramingError as soon as a value starts with something else than ``{`` or ``[``, or is whole and does
    not decode; the framer must not be used afterwards.
    """

    def __init__(self, decode: Callable[[bytes], T]) -> None:
        self._decode = decode
        self._buffer = bytearray()
        self._counting = False
        self._at = 0
        self._depth = 0
        self._in_string = False

    @property
    def pending(self) -> int:
        """Bytes of an incomplete value."""
        return len(self._buffer)

    @property
    def doubtful(self) -> bool:
        """Whether a line has ended inside the incomplete value: a pretty-printer's, or a reply that was cut."""
        return _NEWLINE in self._buffer

    def feed(self, data: bytes) -> list[T]:
        self._buffer += data
        values: list[T] = []
        if not self._counting:
            self._by_lines(values, len(self._buffer) - len(data))
        if self._counting:
            self._by_brackets(values)
        return values

    def _by_lines(self, values: list[T], searched: int) -> None:
        buffer = self._buffer
        start = 0
        end = buffer.find(_NEWLINE, searched)
        while end >= 0:
            line = bytes(buffer[start:end])
            if line and not line.isspace():
                if line[0] not in _OPENING:
                    self._counting = True
                    break
                try:
                    values.append(self._decode(line))
                except ValueError:
                    self._counting = True
                    break
            start = end + 1
            end = buffer.find(_NEWLINE, start)
        del buffer[:start]
        if self._counting or not buffer:
            return
        last = len(buffer) - 1
        while last > 0 and buffer[last] in _BLANK:
            last -= 1
        if buffer[0] not in _OPENING or buffer[last] in _CLOSING:
            # Blanks, garbage, or a last value without its newline: only counting tells.
            self._counting = True

    def _by_brackets(self, values: list[T]) -> None:
        buffer, start = self._buffer, 0
        at, depth, in_string = self._at, self._depth, self._in_string
        while True:
            if depth == 0:
                while start < len(buffer) and buffer[start] in _BLANK:
                    start += 1
                at = start
                if start == len(buffer):
                    break
                if buffer[start] not in _OPENING:
                    raise FramingError(f"expected a JSON object, got {bytes(buffer[start : start + 20])!r}")
                at, depth = start + 1, 1
            match = (_INSIDE if in_string else _OUTSIDE).search(buffer, at)
            if match is None:
                at = len(buffer)
                break
            character, at = buffer[match.start()], match.end()
            if in_string:
                if character == _QUOTE:
                    in_string = False
                elif at < len(buffer):
                    at += 1
                else:
                    # The escaped character has not come yet: look at the backslash again together with it.
                    at -= 1
                    break
            elif character == _QUOTE:
                in_string = True
            elif character in _OPENING:
                depth += 1
            else:
                depth -= 1
                if depth == 0:
                    values.append(self._whole(bytes(buffer[start:at])))
                    start = at
        del buffer[:start]
        self._at, self._depth, self._in_string = at - start, depth, in_string
        # Empty again: the next value may come as a line.
        self._counting = bool(buffer)

    def _whole(self, data: bytes) -> T:
        try:
            return self._decode(data)
        except ValueError as error:
            raise FramingError(f"{error}: {data[:80]!r}") from error
