"""NVMe controllers with their namespaces, as plain data."""

import re

import msgspec

# nvme<controller or subsystem>n<head> is a disk; nvme<subsystem>c<controller>n<head> a hidden path of it.
_DISK = re.compile(r"nvme(\d+)n(\d+)")
_PATH = re.compile(r"nvme(\d+)c(\d+)n(\d+)")
_CONTROLLER = re.compile(r"nvme\d+")


class NvmeController(msgspec.Struct, frozen=True, kw_only=True):
    """`address` is the PCI address for transport pcie, else the transport's own text (`traddr=..,trsvcid=..`)."""

    name: str
    address: str
    transport: str
    state: str
    subsystem_nqn: str
    serial: str = ""
    model: str = ""
    firmware: str = ""
    controller_id: int = -1


class NvmeNamespace(msgspec.Struct, frozen=True, kw_only=True):
    """One disk. `uuid`, `nguid` are lower case with dashes, "" when absent; sizes are bytes.

    `controllers` are the names of all controllers that lead to it. `dev` is `major:minor`.
    """

    name: str
    nsid: int
    uuid: str = ""
    nguid: str = ""
    eui: str = ""
    wwid: str = ""
    size: int = 0
    logical_block: int = 512
    read_only: bool = False
    dev: str = ""
    subsystem_nqn: str = ""
    controllers: tuple[str, ...] = ()


def is_controller(name: str) -> bool:
    return _CONTROLLER.fullmatch(name) is not None


def is_disk(name: str) -> bool:
    """True for `nvme0n1`; False for a partition, a hidden path (`nvme0c1n1`) or a controller."""
    return _DISK.fullmatch(name) is not None


def disk_of(name: str) -> str:
    """The disk that a directory below a controller stands for: `nvme2c1n3` -> `nvme2n3`; "" when it is neither."""
    if _DISK.fullmatch(name):
        return name
    if match := _PATH.fullmatch(name):
        return f"nvme{match[1]}n{match[3]}"
    return ""
