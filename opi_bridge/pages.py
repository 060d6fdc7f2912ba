"""Pages of a list: cutting, and tokens that only fit the list they came from (AIP-158)."""

import base64
import binascii
import hashlib
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from opi_bridge.errors import InvalidArgument

T = TypeVar("T")
DEFAULT_SIZE: Final = 50
MAXIMUM_SIZE: Final = 1000


def cut(items: Sequence[T], *, key: Callable[[T], str], scope: str, size: int, token: str) -> tuple[Sequence[T], str]:
    """Return one page of `items` (any order in, sorted by `key` out) with the token of the next, "" at the end.

    `scope` is the list's own name, e.g. "nvmeSubsystems/s0/nvmeNamespaces". An item removed between two pages does
    not shift the rest, because a token names the last key seen. Raises InvalidArgument for a negative size or a token
    that is damaged or belongs to another list.
    """
    if size < 0:
        raise InvalidArgument(f"page_size {size} is negative: use 0 for the default, {DEFAULT_SIZE}")
    size = min(size or DEFAULT_SIZE, MAXIMUM_SIZE)
    rest = sorted(items, key=key)
    if token:
        last = _read(token, scope)
        rest = [item for item in rest if key(item) > last]
    page = rest[:size]
    return page, _write(key(page[-1]), scope) if len(rest) > size else ""


def _digest(last: str, scope: str) -> bytes:
    return hashlib.blake2s(f"{scope}\0{last}".encode(), digest_size=6).digest()


def _write(last: str, scope: str) -> str:
    return base64.urlsafe_b64encode(_digest(last, scope) + last.encode()).decode().rstrip("=")


def _read(token: str, scope: str) -> str:
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        last = raw[6:].decode()
    except (binascii.Error, ValueError):
        raise InvalidArgument("page_token is damaged: pass next_page_token of the page before, unchanged") from None
    if raw[:6] != _digest(last, scope):
        raise InvalidArgument(f"page_token does not belong to the list of {scope}")
    return last
