"""Emulated cards as arguments for QEMU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Device:
    """What QEMU is told, and the PCI address at which the guest finds the function ("" for no function).

    `descriptors` are those that the arguments speak of: QEMU inherits them.
    """

    arguments: tuple[str, ...]
    address: str = ""
    descriptors: tuple[int, ...] = ()


def iommu() -> Device:
    """VT-d, so that functions come in IOMMU groups and vfio-pci takes them."""
    return Device(("-device", "intel-iommu,intremap=off"))


def root_ports(*, count: int, first: int = 1) -> Device:
    """PCI Express slots `slot1`, `slot2`, .. into which functions can be plugged, the guest's buses 1, 2, .."""
    arguments: list[str] = []
    for number in range(first, first + count):
        arguments += ["-device", f"pcie-root-port,id=slot{number},chassis={number},slot={number},addr={number + 2:#x}"]
    return Device(tuple(arguments))


def igb(slot: int, *, wire: int | None = None) -> Device:
    """An Intel 82576 with up to eight virtual functions; `wire`: an open tap, to which its cable leads."""
    network = f"wire{slot}"
    end = f"hubport,id={network},hubid={slot}" if wire is None else f"tap,id={network},fd={wire}"
    return Device(
        ("-netdev", end, "-device", f"igb,bus=slot{slot},netdev={network}"),
        f"0000:{slot:02x}:00.0",
        () if wire is None else (wire,),
    )


def subsystem(name: str, *, nqn: str) -> Device:
    """An NVMe subsystem, to which several controllers may belong; QEMU appends `nqn` to a prefix of its own."""
    prefix = "nqn.2019-08.org.qemu:"
    return Device(("-device", f"nvme-subsys,id={name},nqn={nqn.removeprefix(prefix)}"))


def nvme(slot: int, *, serial: str, size: int, uuid: str = "", subsystem: str = "") -> Device:
    """An NVMe controller with one namespace of zeros, which all controllers of its subsystem show."""
    disk = f"disk{slot}"
    options = f",uuid={uuid}" if uuid else ""
    belongs = f",subsys={subsystem}" if subsystem else ""
    options += ",shared=on" if subsystem else ""
    return Device(
        (
            *("-drive", f"if=none,id={disk},file.driver=null-co,file.size={size},file.read-zeroes=on,format=raw"),
            *("-device", f"nvme,id=nvme{slot},serial={serial},bus=slot{slot}{belongs}"),
            *("-device", f"nvme-ns,drive={disk},bus=nvme{slot}{options}"),
        ),
        f"0000:{slot:02x}:00.0",
    )


def loopback() -> Device:
    """A virtio card in a network of QEMU's own, 10.0.2.0/24, where 10.0.2.2 is the machine's loopback address."""
    return Device(("-netdev", "user,id=loopback,ipv6=off", "-device", "virtio-net-pci,netdev=loopback,romfile="))


def tap(name: str, *, mac: str) -> Device:
    """A virtio card on a tap that exists already."""
    network = f"tap-{name}"
    return Device(
        (
            *("-netdev", f"tap,id={network},ifname={name},script=no,downscript=no"),
            *("-device", f"virtio-net-pci,netdev={network},mac={mac},romfile="),
        )
    )


def block(path: str, *, name: str = "block") -> Device:
    """A virtio disk on a file or a block device of the machine, written through."""
    kind = "host_device" if Path(path).is_block_device() else "file"
    drive = f"if=none,id={name},file.driver={kind},file.filename={path},format=raw,cache.direct=on"
    return Device(("-drive", drive, "-device", f"virtio-blk-pci,drive={name},serial={name}"))


def vfio(address: str) -> Device:
    """A function of the machine that is bound to vfio-pci."""
    return Device(("-device", f"vfio-pci,host={address},rombar=0"))


def arguments(devices: Sequence[Device]) -> list[str]:
    return [word for device in devices for word in device.arguments]
