"""The eswitch mode of a card, through devlink."""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping
from typing import Protocol

from cni.device_plugin.errors import PreparationError
from cni.device_plugin.preparation import generic_netlink
from cni.device_plugin.preparation.generic_netlink import Refused
from cni.device_plugin.preparation.state import Mode

# include/uapi/linux/devlink.h
_ESWITCH_GET, _ESWITCH_SET = 29, 30
_BUS_NAME, _DEV_NAME, _ESWITCH_MODE = 1, 2, 25
_MODES: dict[int, Mode] = {0: "legacy", 1: "switchdev"}
_NUMBERS = {mode: number for number, mode in _MODES.items()}
# No devlink in the kernel, none for this device, or a device whose driver has no eswitch.
_ABSENT = (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP)


class Eswitch(Protocol):
    """What preparation needs of a card's switch. Blocking."""

    def mode(self, address: str) -> Mode | None:
        """None for a function without an eswitch. Raises PreparationError."""

    def set_mode(self, address: str, mode: Mode) -> None:
        """Raises PreparationError."""


class DevlinkEswitch:
    """The kernel's devlink."""

    def mode(self, address: str) -> Mode | None:
        try:
            return mode_in(generic_netlink.ask("devlink", _ESWITCH_GET, attributes(address)))
        except OSError as error:
            if isinstance(error, Refused) and error.errno in _ABSENT:
                return None
            raise PreparationError(f"{address}: devlink does not tell the eswitch mode: {_text(error)}") from error

    def set_mode(self, address: str, mode: Mode) -> None:
        try:
            generic_netlink.ask("devlink", _ESWITCH_SET, attributes(address, mode))
        except OSError as error:
            raise PreparationError(f"{address}: eswitch mode {mode} is refused: {_text(error)}") from error


def attributes(address: str, mode: Mode | None = None) -> list[tuple[int, bytes]]:
    """Attributes of a request about the PCI function `address`."""
    found = [(_BUS_NAME, b"pci\0"), (_DEV_NAME, address.encode() + b"\0")]
    if mode is not None:
        found.append((_ESWITCH_MODE, struct.pack("=H", _NUMBERS[mode])))
    return found


def mode_in(answer: Mapping[int, bytes]) -> Mode | None:
    """The mode that an answer to ESWITCH_GET names."""
    if _ESWITCH_MODE not in answer:
        return None
    return _MODES.get(struct.unpack_from("=H", answer[_ESWITCH_MODE])[0])


def _text(error: OSError) -> str:
    return error.strerror or type(error).__name__
