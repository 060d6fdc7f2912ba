"""JSON-RPC 2.0 messages as SPDK reads and writes them. Pure: bytes in, bytes out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from foundation.spdk.errors import SpdkRequestTooLarge

# SPDK reads a connection into one buffer of this size; a request that does not fit is answered by a reset.
REQUEST_LIMIT = 256 * 1024
# Each name, scalar, opening and closing bracket counts; above this SPDK closes the connection without a word.
VALUE_LIMIT = 8192

_encoder = msgspec.json.Encoder()


class ErrorBody(msgspec.Struct, frozen=True):
    code: int
    message: str


class Reply(msgspec.Struct, frozen=True):
    """One answer. ``result`` stays raw until the caller says what it should be."""

    id: int | str | None = None
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: ErrorBody | None = None


_decoder = msgspec.json.Decoder(Reply)


def encode_request(request_id: int, method: str, params: Mapping[str, Any] | None) -> bytes:
    """The request's bytes. Empty params are left out: SPDK refuses ``{}`` where a method takes none.

    Raises SpdkRequestTooLarge above 256 KiB.
    """
    message: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "id": request_id}
    if params:
        message["params"] = params
    data = _encoder.encode(message)
    if len(data) >= REQUEST_LIMIT:
        raise SpdkRequestTooLarge(
            f"{method}: the request has {len(data)} bytes, and SPDK takes less than {REQUEST_LIMIT}; nothing was sent"
        )
    return data


def decode_reply(data: bytes) -> Reply:
    """Raises ValueError when it is not JSON or not a reply; what is in ``result`` is not looked at."""
    return _decoder.decode(data)
