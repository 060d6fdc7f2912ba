"""Lists in pages: sorted by id, and a token that stays good while entries come and go."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from csi.errors import Aborted, InvalidArgument

T = TypeVar("T")
_PREFIX = "after:"


def page(entries: Sequence[T], key: Callable[[T], str], *, token: str, limit: int) -> tuple[list[T], str]:
    """At most `limit` entries (0: all) after the one that `token` names, and the token of the next page or "".

    Raises Aborted for a token we never gave out (the code that the CSI specification asks for), InvalidArgument for a
    negative limit.
    """
    if limit < 0:
        raise InvalidArgument(f"max_entries {limit} is negative")
    if token and not token.startswith(_PREFIX):
        raise Aborted(f"starting_token {token[:80]!r} is not known: begin the list anew")
    after = token.removeprefix(_PREFIX)
    rest = sorted((entry for entry in entries if key(entry) > after), key=key)
    if not limit or len(rest) <= limit:
        return rest, ""
    return rest[:limit], _PREFIX + key(rest[limit - 1])
