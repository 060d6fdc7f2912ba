"""The bridge's exceptions with the gRPC code of each."""

from collections.abc import Mapping
from typing import Final

import grpc

from foundation.spdk.errors import SpdkError, SpdkRequestTooLarge, SpdkTimeout, SpdkUnavailable


class OpiError(Exception):
    """Anything this bridge refuses or fails at; the message is for the caller."""


class InvalidArgument(OpiError):
    """The request itself cannot be right, whatever the state of the card."""


class OutOfRange(InvalidArgument):
    """A number of the request lies outside what the card has."""


class NotFound(OpiError):
    """The named resource, or its parent, does not exist."""


class AlreadyExists(OpiError):
    """A resource of this name exists with another specification, or its NQN or function belongs to another one."""


class Different(AlreadyExists):
    """It exists, and was compared already: with another specification."""


class FailedPrecondition(OpiError):
    """The request is sound but the state of the card does not allow it: children, claims, missing parts."""


class Exhausted(OpiError):
    """The card has no room left for this."""


class Unimplemented(OpiError):
    """This card cannot do it."""


class Unavailable(OpiError):
    """The card's process, or the remote target, does not answer now."""


class TargetAway(Unavailable):
    """The remote target could not be reached, so that nothing was made."""


class CardRefused(OpiError):
    """The card answered with an error that has no better name."""


# The card said no: nothing was made. After any other exception, a cancelled call's too, the request may have been
# carried out, so that whatever names its object has to stay.
DEFINITE: Final = (
    InvalidArgument,
    NotFound,
    AlreadyExists,
    FailedPrecondition,
    Exhausted,
    Unimplemented,
    TargetAway,
    CardRefused,
    SpdkError,
)

CODES: Final[Mapping[type[BaseException], grpc.StatusCode]] = {
    OpiError: grpc.StatusCode.INTERNAL,
    InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    OutOfRange: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    Exhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Unimplemented: grpc.StatusCode.UNIMPLEMENTED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    CardRefused: grpc.StatusCode.INTERNAL,
    SpdkError: grpc.StatusCode.INTERNAL,
    SpdkUnavailable: grpc.StatusCode.UNAVAILABLE,
    SpdkRequestTooLarge: grpc.StatusCode.INVALID_ARGUMENT,
    SpdkTimeout: grpc.StatusCode.DEADLINE_EXCEEDED,
}
