"""OVSDB (RFC 7047) on asyncio: transactions, monitors and row events."""

from foundation.ovsdb.errors import (
    ConnectionLost,
    ConstraintViolation,
    LockLost,
    NotLeader,
    OvsdbError,
    RequestTimedOut,
    SchemaMismatch,
    TransactionFailed,
    Unavailable,
    WaitFailed,
    WaitTimedOut,
)
from foundation.ovsdb.remotes import OvsdbTls
from foundation.ovsdb.replica import Change, Index, Row
from foundation.ovsdb.session import OperationResult, OvsdbSession
from foundation.ovsdb.values import NamedUuid, Uuid, fresh_name

__all__ = [
    "Change",
    "ConnectionLost",
    "ConstraintViolation",
    "Index",
    "LockLost",
    "NamedUuid",
    "NotLeader",
    "OperationResult",
    "OvsdbError",
    "OvsdbSession",
    "OvsdbTls",
    "RequestTimedOut",
    "Row",
    "SchemaMismatch",
    "TransactionFailed",
    "Unavailable",
    "Uuid",
    "WaitFailed",
    "WaitTimedOut",
    "fresh_name",
]
