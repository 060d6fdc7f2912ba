"""What can be wrong with a PCI function as sysfs shows it."""


class PciError(Exception):
    """Root of this package's exceptions; the message names the object and the reason."""


class BadAddress(PciError, ValueError):
    """The text is no PCI address (`domain:bus:device.function`, domain optional, all hexadecimal)."""


class NoSuchDevice(PciError, LookupError):
    """sysfs shows no device of that address or name."""


class NotVirtualFunction(PciError):
    """The operation needs an SR-IOV virtual function, or a physical function that can have some."""
