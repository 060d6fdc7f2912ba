"""Taking the steps of a preparation, one physical function at a time."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cni.device_plugin.config import PhysicalFunction
from cni.device_plugin.errors import NetdevGone, PreparationError
from cni.device_plugin.preparation.attributes import Attributes
from cni.device_plugin.preparation.eswitch import Eswitch
from cni.device_plugin.preparation.links import Links
from cni.device_plugin.preparation.plan import plan_card, plan_functions
from cni.device_plugin.preparation.state import (
    Bind,
    PfState,
    SetAutoprobe,
    SetEswitch,
    SetMac,
    SetMtu,
    SetVfs,
    Step,
    Unbind,
    VfState,
)
from cni.device_plugin.preparation.users import evidence, holders
from foundation.daemon.work import Backoff
from foundation.pci import PciFunction, Sysfs
from foundation.pci.address import normalised
from foundation.pci.errors import BadAddress, NoSuchDevice, NotVirtualFunction
from foundation.pci.uevents import OVERFLOW, Uevent, Uevents

log = logging.getLogger(__name__)

# After a change of mode the driver makes the network device anew, which udev then renames.
_NETDEV_SECONDS = 10.0
# Waits for the name that follows one which has just gone.
_RENAMES = tuple(itertools.islice(Backoff(0.05, 1.0), 5))


class Preparer:
    """Every step can be repeated, and what is right already is left alone: a killed run is finished by the next one.

    `events` must be entered for as long as `prepare` runs.
    """

    def __init__(
        self,
        sysfs: Sysfs,
        *,
        devfs: Path,
        pod_resources: Path | None,
        attributes: Attributes,
        eswitch: Eswitch,
        links: Links,
        events: Uevents,
    ) -> None:
        self._sysfs = sysfs
        self._devfs = devfs
        self._pod_resources = pod_resources
        self._attributes = attributes
        self._eswitch = eswitch
        self._links = links
        self._events = events

    async def prepare(self, wanted: PhysicalFunction) -> int:
        """Bring one PF to its declared state; the number of steps that took. Raises PreparationError."""
        try:
            address = self.address(wanted.pf)
            steps = await self._plan(address, wanted, plan_card)
            await self._take(address, steps)
            further = await self._plan(address, wanted, plan_functions)
            await self._take(address, further)
        except (BadAddress, NoSuchDevice, NotVirtualFunction) as error:
            raise PreparationError(f"physical function {wanted.pf}: {error}") from error
        return len(steps) + len(further)

    async def _plan(
        self, address: str, wanted: PhysicalFunction, plan: Callable[[PfState, PhysicalFunction], tuple[Step, ...]]
    ) -> tuple[Step, ...]:
        """Users are looked for only where something is to do: a VM that starts would find its VFIO group busy."""
        if not plan(await asyncio.to_thread(self._state, address, None), wanted):
            return ()
        users = await holders(self._pod_resources)
        return plan(await asyncio.to_thread(self._state, address, users), wanted)

    def address(self, pf: str) -> str:
        """Of the PF that a name or an address means. Raises BadAddress, NoSuchDevice."""
        if ":" in pf:
            return normalised(pf)
        netdev = self._sysfs.netdev(pf)
        if not netdev.pci:
            raise NoSuchDevice(f"network device {pf} is no PCI function")
        return netdev.pci

    def _state(self, address: str, users: Mapping[str, str] | None) -> PfState:
        """Raises NoSuchDevice, NotVirtualFunction. `users` by VF address; None: do not look for any."""
        pf = self._sysfs.function(address, vpd=False)
        netdev = self._uplink(pf)
        addresses = self._sysfs.virtual_functions(address)
        macs = self._links.vf_macs(netdev) if netdev and addresses else {}
        vfs = []
        for index, vf in enumerate(addresses):
            function = self._sysfs.function(vf, vpd=False)
            user = "" if users is None else users.get(vf, "") or evidence(function, self._devfs)
            vfs.append(VfState(vf, index, driver=function.driver, mac=macs.get(index, ""), user=user))
        return PfState(
            address=address,
            driver=pf.driver,
            total_vfs=pf.vf_total,
            netdev=netdev,
            mtu=self._mtu(netdev) if netdev else 0,
            eswitch=self._eswitch.mode(address),
            autoprobe=self._autoprobe(address),
            vfs=tuple(vfs),
        )

    def _mtu(self, netdev: str) -> int:
        """0 for one that has another name by now: it is set anew then."""
        try:
            return self._sysfs.netdev(netdev).mtu
        except NoSuchDevice:
            return 0

    def _autoprobe(self, address: str) -> bool:
        try:
            return (self._sysfs.path(address) / "sriov_drivers_autoprobe").read_text().strip() != "0"
        except OSError:
            return True

    def _uplink(self, pf: PciFunction) -> str:
        """The PF's own network device, "" when it has none here; representors hang below the same function."""
        for name in pf.netdevs:
            try:
                port = self._sysfs.netdev(name).port
            except NoSuchDevice:
                continue  # udev has just given it another name.
            if port is None or port.kind == "uplink":
                return name
        return ""

    # --- steps ---------------------------------------------------------------------------------------------------

    async def _take(self, address: str, steps: Sequence[Step]) -> None:
        for step in steps:
            log.info("preparing", extra={"pf": address, "step": repr(step)})
            if isinstance(step, SetMtu | SetMac):
                await self._set_renamed(address, step)
            else:
                await asyncio.to_thread(self._set, address, step)

    async def _set_renamed(self, address: str, step: SetMtu | SetMac) -> None:
        """The name may change between its reading and its use, as udev renames what a change of mode has made."""
        for delay in _RENAMES:
            try:
                await asyncio.to_thread(self._set_link, await self._netdev(address), step)
                return
            except NetdevGone:
                await asyncio.sleep(delay)
        await asyncio.to_thread(self._set_link, await self._netdev(address), step)

    def _set_link(self, netdev: str, step: SetMtu | SetMac) -> None:
        if isinstance(step, SetMtu):
            self._links.set_mtu(netdev, step.mtu)
        else:
            self._links.set_vf_mac(netdev, step.vf, step.mac)

    def _set(self, address: str, step: SetAutoprobe | SetVfs | SetEswitch | Unbind | Bind) -> None:
        path = self._sysfs.path(address)
        match step:
            case SetAutoprobe(on):
                self._attributes.write(path / "sriov_drivers_autoprobe", str(int(on)))
            case SetVfs(count):
                self._attributes.write(path / "sriov_numvfs", str(count))
            case SetEswitch(mode):
                self._eswitch.set_mode(address, mode)
            case Unbind(vf):
                self._unbind(self._sysfs.virtual_function(address, vf))
            case Bind(vf, driver):
                self._bind(self._sysfs.virtual_function(address, vf), driver)

    def _unbind(self, vf: str) -> None:
        self._attributes.write(self._sysfs.path(vf) / "driver/unbind", vf)

    def _bind(self, vf: str, driver: str) -> None:
        """With autoprobe off the kernel refuses drivers/X/bind unless driver_override names X."""
        function, path = self._sysfs.function(vf, vpd=False), self._sysfs.path(vf)
        self._attributes.write(path / "driver_override", f"{driver}\n")
        if function.driver and function.driver != driver:
            self._unbind(vf)
        self._attributes.write(self._sysfs.root / "bus/pci/drivers_probe", vf)
        bound = self._sysfs.function(vf, vpd=False).driver
        if bound != driver and (driver or not bound):
            raise PreparationError(
                f"VF {vf} is bound to {bound or 'no driver'} after a probe for {driver or 'any driver'}; is the "
                f"driver's module loaded (modprobe {driver or 'of the card'})?"
            )

    async def _netdev(self, address: str) -> str:
        """The PF's network device, waited for. Raises PreparationError."""
        seen = asyncio.Event()

        def note(event: Uevent) -> None:
            if event.action == OVERFLOW or (event.subsystem == "net" and event.pci_address == address):
                seen.set()

        end = self._events.subscribe(note)
        try:
            async with asyncio.timeout(_NETDEV_SECONDS):
                while True:
                    seen.clear()
                    name = self._uplink(await asyncio.to_thread(self._sysfs.function, address, vpd=False))
                    if name:
                        return name
                    await seen.wait()
        except TimeoutError:
            raise PreparationError(
                f"{address} has no network device {_NETDEV_SECONDS:g} s after its change of mode"
            ) from None
        finally:
            end()
