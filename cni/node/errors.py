"""What can go wrong with a CNI call, each kind with its CNI error code.

Codes 1 to 99 are the specification's (section "Error"), those from 100 on are ours.
"""


class CniNodeError(Exception):
    """Root of the tree. The message says what, which object, why and what to do; `details` may add the cause."""

    def __init__(self, message: str, *, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class IncompatibleVersion(CniNodeError):
    """The configuration's cniVersion is not one of ours, or is too old for the verb."""


class UnsupportedField(CniNodeError):
    """The configuration asks for something that this mode cannot do."""


class UnknownContainer(CniNodeError):
    """The container's network namespace does not exist (any more)."""


class BadEnvironment(CniNodeError):
    """A CNI_ variable is missing or malformed."""


class InputFailed(CniNodeError):
    """Reading or writing failed where the node itself is at fault."""


class NotJson(CniNodeError):
    """The configuration on standard input cannot be decoded."""


class BadConfiguration(CniNodeError):
    """The configuration is JSON but cannot be right: missing or unknown device, malformed field."""


class TryLater(CniNodeError):
    """Something that passes: the pod has no addresses yet, a peer is away, other work runs for this sandbox."""


class NotAvailable(CniNodeError):
    """STATUS: ADD would fail now."""


class DeviceInUse(CniNodeError):
    """The function belongs to another pod's attachment."""


class InterfaceTaken(CniNodeError):
    """The pod already has another interface of that name."""


class Mismatch(CniNodeError):
    """CHECK: something is not as ADD left it."""


class LinkFailed(CniNodeError):
    """The kernel refused a change to a link, an address or a route."""


class SwitchFailed(CniNodeError):
    """OVS refused a port, or OVN did not install its flows in time."""


class DpuRefused(CniNodeError):
    """The DPU answered a Plug with a failure."""


CODES: dict[type[CniNodeError], int] = {
    IncompatibleVersion: 1,
    UnsupportedField: 2,
    UnknownContainer: 3,
    BadEnvironment: 4,
    InputFailed: 5,
    NotJson: 6,
    BadConfiguration: 7,
    TryLater: 11,
    NotAvailable: 50,
    DeviceInUse: 100,
    InterfaceTaken: 101,
    Mismatch: 102,
    LinkFailed: 110,
    SwitchFailed: 111,
    DpuRefused: 112,
    CniNodeError: 999,
}


def code_of(error: BaseException) -> int:
    """The CNI code of an exception, by its nearest class in the table; 999 for a fault of ours."""
    return next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), 999)
