"""What an OVSDB session can raise, one class a cause the caller may treat differently."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class OvsdbError(Exception):
    """Root of every error of this package."""


class RemoteInvalid(OvsdbError):
    """A remote string that is not `unix:PATH`, `tcp:HOST:PORT` or `ssl:HOST:PORT`."""


class Unavailable(OvsdbError):
    """No server could be reached in time; nothing was sent, so the caller may repeat freely."""


class ConnectionLost(OvsdbError):
    """The connection went away after a request was sent: whether it took effect is not known."""


class RequestTimedOut(OvsdbError):
    """A request was sent but not answered before its deadline: whether it took effect is not known."""


class WaitTimedOut(OvsdbError):
    """`until` saw no row that fits before its deadline."""


class ProtocolViolation(OvsdbError):
    """The peer sent something that is no OVSDB message."""


class SchemaMismatch(OvsdbError):
    """A table or a column asked for is not in the server's schema."""


class RequestRefused(OvsdbError):
    """The server answered a request with an error object (RFC 7047 section 4, "error")."""


class LockLost(OvsdbError):
    """Another client has taken the session's lock: it must not write any more."""


class TransactionFailed(OvsdbError):
    """One operation of a transaction failed, so none of it took effect (RFC 7047 section 4.1.3).

    `index` is the failing operation's position; it equals the number of operations when the commit itself failed.
    """

    def __init__(self, error: str, details: str, index: int, operation: Mapping[str, Any] | None) -> None:
        where = f"operation {index}"
        if operation is not None:
            where += f" ({operation.get('op')} on {operation.get('table', '-')})"
        super().__init__(f"OVSDB refused {where}: {error}" + (f": {details}" if details else ""))
        self.error = error
        self.details = details
        self.index = index


class ConstraintViolation(TransactionFailed):
    """A unique index, a range or an enum forbids the rows."""


class ReferenceViolation(TransactionFailed):
    """A strong reference points to a row that does not exist, or a row still referred to was deleted."""


class WaitFailed(TransactionFailed):
    """A `wait` operation's condition did not hold within its time-out: what was read before is stale."""


class NotLeader(TransactionFailed):
    """A cluster member that lost (or never had) the leadership refused the commit; nothing took effect."""


_KINDS: dict[str, type[TransactionFailed]] = {
    "constraint violation": ConstraintViolation,
    "referential integrity violation": ReferenceViolation,
    "timed out": WaitFailed,
    "not leader": NotLeader,
    "cluster error": NotLeader,
}


def transaction_error(
    error: str, details: str, *, index: int, operation: Mapping[str, Any] | None = None
) -> TransactionFailed:
    """The exception for an error name of RFC 7047 section 5 (or of a cluster member)."""
    return _KINDS.get(error, TransactionFailed)(error, details, index, operation)
