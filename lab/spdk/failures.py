"""Refusals with SPDK's codes and words."""

from __future__ import annotations

import errno
import os

INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
PARSE_ERROR = -32700


class RpcFailure(Exception):
    """Ends a method with an error reply."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def refused(number: int, code: int | None = None) -> RpcFailure:
    """strerror's text for errno ``number``, under ``-number`` unless the method answers with another ``code``."""
    return RpcFailure(-number if code is None else code, os.strerror(number))


def no_device() -> RpcFailure:
    return refused(errno.ENODEV)


def invalid_parameters() -> RpcFailure:
    """What nvmf methods say to nearly everything."""
    return RpcFailure(INVALID_PARAMS, "Invalid parameters")
