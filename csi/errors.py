"""What can go wrong in the storage half, each kind with the one gRPC code it stands for.

Messages say what failed, on which object, why, and what to do. INTERNAL is never used while work may still be
going on: external-provisioner takes every code but CANCELLED, DEADLINE_EXCEEDED, UNAVAILABLE and ABORTED as
"certainly not in progress" (external-provisioner 6.3, `checkError`).
"""

from collections.abc import Mapping
from typing import Final

import grpc


class CsiError(Exception):
    """Root of the tree."""


class InvalidArgument(CsiError):
    """The request itself is wrong; nothing has been changed."""


class OutOfRange(CsiError):
    """A size lies outside of what can be served."""


class NotFound(CsiError):
    """The named volume, snapshot, node or device does not exist."""


class AlreadyExists(CsiError):
    """The object exists with another specification."""


class FailedPrecondition(CsiError):
    """The object is in a state in which this must not be done, e.g. it is in use."""


class ResourceExhausted(CsiError):
    """No space on the storage, or no free function on the DPU."""


class Unavailable(CsiError):
    """Storage, DPU or API server does not answer at present; the same call may be repeated."""


class Aborted(CsiError):
    """Other work on this object is going on, or a paging token has gone stale."""


class DeadlineExceeded(CsiError):
    """The caller's time is over, and the outcome is not known yet."""


class Unsupported(CsiError):
    """This driver or backend cannot do it."""


class Internal(CsiError):
    """A command or a backend failed for a reason of its own; nothing is in progress."""


CODES: Final[Mapping[type[BaseException], grpc.StatusCode]] = {
    InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    NotFound: grpc.StatusCode.NOT_FOUND,
    AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    Aborted: grpc.StatusCode.ABORTED,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    Unsupported: grpc.StatusCode.UNIMPLEMENTED,
    Internal: grpc.StatusCode.INTERNAL,
    TimeoutError: grpc.StatusCode.DEADLINE_EXCEEDED,
}
