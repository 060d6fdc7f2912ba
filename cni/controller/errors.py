"""Why the controller cannot give an object its rows: one exception a cause, each with the reason of its Event."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from cni.controller.rows import EMPTY, State


class ControllerError(Exception):
    """Root of the controller's errors."""


class InvalidPlan(ControllerError):
    """The settings' ranges of addresses cannot be used."""


class Refused(ControllerError):
    """An object cannot be served as it is. `reason` is the Event's; the message says what, why, and what to do.

    `waits_for`: the thing whose change may help (see `Engine.wake`); without one only a change of the object does.
    `instead`: the rows that can be made all the same; none of the part that is at fault.
    """

    reason = "NetworkRefused"

    def __init__(self, message: str, *, waits_for: Hashable = None, instead: State = EMPTY) -> None:
        super().__init__(message)
        self.waits_for = waits_for
        self.instead = instead

    def with_instead(self, instead: State) -> Refused:
        """The same with other rows that can be made."""
        return type(self)(str(self), waits_for=self.waits_for, instead=instead)


class AnyOf(frozenset[Hashable]):
    """Things of which each one's change may help."""


def together(problems: Sequence[Refused], *, instead: State) -> Refused:
    """What is wrong with several parts of an object, as one problem of the first one's kind."""
    waited = (each.waits_for for each in problems)
    tokens = AnyOf(
        token for each in waited if each is not None for token in (each if isinstance(each, AnyOf) else (each,))
    )
    return type(problems[0])("; ".join(dict.fromkeys(map(str, problems))), waits_for=tokens or None, instead=instead)


class InvalidAnnotation(Refused):
    """An annotation is no JSON, or not of the form it must have."""

    reason = "InvalidNetworkAnnotation"


class InvalidAddressRequest(Refused):
    """The addresses asked for cannot be given to anybody on that network."""

    reason = "InvalidAddressRequest"


class AddressConflict(Refused):
    """The address asked for is in use."""

    reason = "AddressConflict"


class AddressesExhausted(Refused):
    """A subnet has no free address."""

    reason = "AddressesExhausted"


class NodeNotReady(Refused):
    """A pod's node is unknown, or has no subnet yet."""

    reason = "NodeHasNoSubnet"


class InvalidNode(Refused):
    """A node's subnets cannot be used."""

    reason = "InvalidNodeSubnet"


class InvalidPolicy(Refused):
    """A policy has a part that cannot be: a port, a block of addresses, a selector."""

    reason = "InvalidNetworkPolicy"


class InvalidNamespaceAnnotation(Refused):
    """A namespace's annotation cannot be read."""

    reason = "InvalidNamespaceAnnotation"


class InvalidService(Refused):
    """A service has a part that cannot be: a port, an address, a protocol."""

    reason = "InvalidService"


class InvalidGateway(Refused):
    """A node's gateway annotation cannot be used."""

    reason = "InvalidGateway"


class InvalidNetwork(Refused):
    """A NetworkAttachmentDefinition of ours has a part that cannot be."""

    reason = "InvalidNetwork"


class NetworkMissing(Refused):
    """A pod asks for a network that does not exist (yet)."""

    reason = "NetworkMissing"


class InvalidBandwidth(Refused):
    """A bandwidth annotation is no quantity."""

    reason = "InvalidBandwidth"


class MachineUnknown(Refused):
    """A virt-launcher pod is there, and the instance that it runs is not known yet."""

    reason = "VirtualMachineInstanceMissing"


class MigrationBarred(Refused):
    """A virtual machine cannot move to where its target's pod is."""

    reason = "MigrationBarred"
