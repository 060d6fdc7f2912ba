"""PCI addresses as the kernel writes them."""

import re
from typing import NamedTuple

from foundation.pci.errors import BadAddress

_PATTERN = re.compile(r"(?:([0-9a-fA-F]{4,8}):)?([0-9a-fA-F]{2}):([0-9a-fA-F]{2})\.([0-7])")


class PciAddress(NamedTuple):
    """One function's place on the bus; `str()` gives the kernel's form, e.g. `0000:03:00.2`."""

    domain: int
    bus: int
    device: int
    function: int

    @classmethod
    def parse(cls, text: str) -> "PciAddress":
        """`0000:03:00.2` or `03:00.2` (domain 0). Raises BadAddress."""
        match = _PATTERN.fullmatch(text)
        if match is None or int(match[3], 16) > 0x1F:
            raise BadAddress(f"{text!r} is no PCI address; expected domain:bus:device.function such as 0000:03:00.2")
        return cls(int(match[1] or "0", 16), int(match[2], 16), int(match[3], 16), int(match[4]))

    @property
    def routing_id(self) -> int:
        """Bus, device and function as the 16 bits that SR-IOV offset and stride count in."""
        return self.bus << 8 | self.device << 3 | self.function

    def __str__(self) -> str:
        return f"{self.domain:04x}:{self.bus:02x}:{self.device:02x}.{self.function}"


def normalised(text: str) -> str:
    """The kernel's spelling of a PCI address. Raises BadAddress."""
    return str(PciAddress.parse(text))


def is_address(text: str) -> bool:
    """Whether the text is a PCI address in the kernel's spelling."""
    try:
        return normalised(text) == text
    except BadAddress:
        return False
