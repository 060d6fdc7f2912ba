"""The attacher's exceptions with the gRPC code of each."""

from collections.abc import Mapping
from typing import Final

import grpc


class AttacherError(Exception):
    """Anything the attacher refuses or fails at; the message is for the caller."""


class InvalidRequest(AttacherError):
    """The request cannot be right; nothing was changed."""


class UnknownVolume(AttacherError):
    """No attachment of this volume."""


class OtherSpecification(AttacherError):
    """The volume is attached in another way."""


class NoFunction(AttacherError):
    """Every function that the policy allows is taken."""


class FunctionTaken(AttacherError):
    """The function that the host was told of is another's."""


class RemoteTaken(AttacherError):
    """The remote subsystem is another volume's."""


class BridgeError(AttacherError):
    """The bridge did not do what it was asked."""


class BridgeAway(BridgeError):
    """The bridge, its card or the remote target does not answer now; trying again may help."""


class Missing(BridgeError):
    """The bridge knows no such resource."""


class Exists(BridgeError):
    """A resource is in the way."""


class Refused(BridgeError):
    """The bridge said no for a reason that trying again will not change."""


class Unsupported(BridgeError):
    """The bridge or its card cannot do it."""


CODES: Final[Mapping[type[BaseException], grpc.StatusCode]] = {
    AttacherError: grpc.StatusCode.INTERNAL,
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    UnknownVolume: grpc.StatusCode.NOT_FOUND,
    OtherSpecification: grpc.StatusCode.ALREADY_EXISTS,
    NoFunction: grpc.StatusCode.RESOURCE_EXHAUSTED,
    FunctionTaken: grpc.StatusCode.FAILED_PRECONDITION,
    RemoteTaken: grpc.StatusCode.FAILED_PRECONDITION,
    BridgeAway: grpc.StatusCode.UNAVAILABLE,
    Exists: grpc.StatusCode.FAILED_PRECONDITION,
    Missing: grpc.StatusCode.FAILED_PRECONDITION,
    Refused: grpc.StatusCode.FAILED_PRECONDITION,
    Unsupported: grpc.StatusCode.FAILED_PRECONDITION,
}
