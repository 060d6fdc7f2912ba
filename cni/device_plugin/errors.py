"""What can go wrong in the device plugin, with the gRPC code that kubelet is told."""

import grpc

from foundation.daemon.errors import ErrorTable


class DevicePluginError(Exception):
    """Root of this component's exceptions; the message names the object, the reason and what to do."""


class BadSelector(DevicePluginError, ValueError):
    """A pool's selector cannot mean anything."""


class BadDirectory(DevicePluginError, ValueError):
    """Sockets cannot be made in a directory."""


class UnknownDevice(DevicePluginError):
    """Kubelet asks for a device that this resource does not have, or has no longer."""


class UnhealthyDevice(DevicePluginError):
    """The device is there, but cannot be given away now."""


class BadRequest(DevicePluginError):
    """The request contradicts itself."""


class ResetFailed(DevicePluginError):
    """The function did not come out of its reset, so nobody should get it."""


class CannotWrite(DevicePluginError):
    """A file by which others learn of a device cannot be written."""


class PreparationError(DevicePluginError):
    """A physical function cannot be brought to its declared state."""


class NetdevGone(PreparationError):
    """A network device has no longer the name by which it was just found."""


ERRORS = ErrorTable(
    {
        BadRequest: grpc.StatusCode.INVALID_ARGUMENT,
        UnknownDevice: grpc.StatusCode.NOT_FOUND,
        UnhealthyDevice: grpc.StatusCode.FAILED_PRECONDITION,
        ResetFailed: grpc.StatusCode.UNAVAILABLE,
        DevicePluginError: grpc.StatusCode.INTERNAL,
    }
)
