"""The published disk: found by what it is (namespace UUID, subsystem NQN, PCI function), never by a device's name.

Device names say nothing: /dev/nvmeXnY has Y in the order of probing and, with native multipath, X of the subsystem.
Nothing here opens a disk; sysfs tells first whether its controller lives.
"""

import asyncio
import contextlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

import msgspec

from csi.errors import DeadlineExceeded, Unavailable
from csi.publication import PublishContext
from foundation.pci.errors import PciError
from foundation.pci.nvme import NvmeNamespace
from foundation.pci.sysfs import Sysfs
from foundation.pci.uevents import Uevent, Uevents

LIVE, DEAD = "live", "dead"


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """A disk that may be touched now. `path` is its device node, `device` its major:minor."""

    name: str
    path: str
    device: str
    size: int
    read_only: bool
    subsystem_nqn: str


class NotYet(Exception):
    """The disk is not there, or not fit for use; the message says what is missing."""


class Disks:
    """`physical_functions`: PCI address on this host by the card's number of the physical function."""

    def __init__(
        self, *, sysfs: Sysfs, dev_root: Path, physical_functions: Mapping[int, str], uevents: Uevents
    ) -> None:
        self._sysfs = sysfs
        self._dev = dev_root
        self._functions = physical_functions
        self._uevents = uevents

    def look(self, wanted: PublishContext, *, function: bool = True) -> Disk:
        """One look, no wait; `function`: it must be behind the function that `wanted` names.

        Raises NotYet, and Unavailable for a dead controller.
        """
        namespace = self._sysfs.namespace_by_uuid(wanted.namespace_uuid)
        if namespace is None:
            raise NotYet(f"no disk with namespace uuid {wanted.namespace_uuid}")
        if namespace.wwid and namespace.wwid.lower() not in (
            f"uuid.{wanted.namespace_uuid}",
            f"eui.{wanted.namespace_uuid.replace('-', '')}",
        ):
            raise NotYet(f"disk {namespace.name} shows wwid {namespace.wwid}, not uuid.{wanted.namespace_uuid}")
        if wanted.subsystem_nqn and namespace.subsystem_nqn != wanted.subsystem_nqn:
            raise NotYet(
                f"disk {namespace.name} is of subsystem {namespace.subsystem_nqn}, not of {wanted.subsystem_nqn}"
            )
        if function:
            self._confirm_function(namespace, wanted)
        state = self.state(namespace)
        if state == DEAD:
            raise Unavailable(f"the controller of disk {namespace.name} is dead; the DPU has to bring it back")
        if state != LIVE:
            raise NotYet(f"the controller of disk {namespace.name} is {state or 'gone'}")
        if namespace.size == 0 or namespace.size < wanted.size_bytes:
            raise NotYet(f"disk {namespace.name} shows {namespace.size} of {wanted.size_bytes} bytes")
        return self._disk(namespace)

    def by_uuid(self, uuid: str) -> NvmeNamespace | None:
        return self._sysfs.namespace_by_uuid(uuid)

    def others_behind(self, address: str, uuid: str) -> list[str]:
        """Disks of a PCI function beside the one with that namespace UUID."""
        return [other.name for other in self._sysfs.nvme_namespaces(address) if other.uuid != uuid]

    def disk(self, namespace: NvmeNamespace) -> Disk:
        """Raises NotYet while its device node is missing."""
        return self._disk(namespace)

    def state(self, namespace: NvmeNamespace) -> str:
        """`live` when any controller of it lives, else the best of the others, "" when it has none."""
        controllers = {each.name: each for each in self._sysfs.nvme_controllers()}
        states = [controllers[name].state for name in namespace.controllers if name in controllers]
        if LIVE in states:
            return LIVE
        return next((state for state in states if state != DEAD), DEAD if states else "")

    async def wait(self, wanted: PublishContext, *, seconds: float, rescan_after: float, function: bool = True) -> Disk:
        """Looks at every uevent; once after `rescan_after` seconds the controller is told to look as well.

        Raises DeadlineExceeded with the last reason.
        """
        changed = asyncio.Event()

        def notice(event: Uevent) -> None:
            if event.subsystem in ("block", "nvme", "pci", ""):
                changed.set()

        end_of_subscription = self._uevents.subscribe(notice)
        loop = asyncio.get_running_loop()
        end, rescan_at = loop.time() + seconds, loop.time() + rescan_after
        rescanned = False
        try:
            while True:
                changed.clear()
                try:
                    return self.look(wanted, function=function)
                except NotYet as reason:
                    now = loop.time()
                    if now >= end:
                        raise DeadlineExceeded(
                            f"the disk did not become usable within {seconds:g} s: {reason}"
                        ) from reason
                    if not rescanned and now >= rescan_at:
                        rescanned = True
                        await asyncio.to_thread(self._nudge, wanted)
                        continue
                    until = end if rescanned else min(end, rescan_at)
                    # udev may make the node a moment after the kernel's event, without one of its own.
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(changed.wait(), min(until - now, rescan_after))
        finally:
            end_of_subscription()

    def function(self, wanted: PublishContext) -> str:
        """PCI address of the function as this host sees it, "" when that cannot be told."""
        if wanted.vuid:
            return self._sysfs.by_vuid(wanted.vuid) or ""
        physical = self._functions.get(wanted.pf, "")
        if physical and wanted.vf == 0:
            return physical
        if physical:
            try:
                return self._sysfs.virtual_function(physical, wanted.vf - 1)
            except PciError:
                return ""
        return wanted.pci_address

    def _confirm_function(self, namespace: NvmeNamespace, wanted: PublishContext) -> None:
        controllers = {each.name: each for each in self._sysfs.nvme_controllers()}
        addresses = [controllers[name].address for name in namespace.controllers if name in controllers]
        if wanted.vuid:
            if not any(self._sysfs.vpd(address).vuid == wanted.vuid for address in addresses):
                raise NotYet(f"disk {namespace.name} is not behind the function with VUID {wanted.vuid}")
            return
        expected = self.function(wanted)
        if expected and expected not in addresses:
            raise NotYet(f"disk {namespace.name} is behind {', '.join(addresses) or 'no function'}, not {expected}")

    def _nudge(self, wanted: PublishContext) -> None:
        """Bind the NVMe driver where nobody has, and have the controllers list their namespaces again."""
        address = self.function(wanted)
        if address and self._sysfs.exists(address) and not self._sysfs.function(address, vpd=False).driver:
            path = self._sysfs.path(address)
            with contextlib.suppress(OSError):
                (path / "driver_override").write_text("nvme")
                (self._sysfs.root / "bus/pci/drivers_probe").write_text(address)
        for controller in self._sysfs.nvme_controllers():
            if controller.address == address or controller.subsystem_nqn == wanted.subsystem_nqn:
                with contextlib.suppress(OSError):
                    self._sysfs.rescan_path(controller.name).write_text("1")

    def _disk(self, namespace: NvmeNamespace) -> Disk:
        path = self._dev / namespace.name
        try:
            found = os.stat(path)
        except OSError as error:
            raise NotYet(f"device node {path} is missing") from error
        device = f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
        if not stat.S_ISBLK(found.st_mode) or (namespace.dev and device != namespace.dev):
            raise NotYet(f"{path} is device {device}, sysfs says {namespace.dev}")
        return Disk(
            name=namespace.name,
            path=str(path),
            device=device,
            size=namespace.size,
            read_only=namespace.read_only,
            subsystem_nqn=namespace.subsystem_nqn,
        )
