"""The device plugin as a whole: from the machine's events to what kubelet is told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from cni.device_plugin.allocation import Allocator
from cni.device_plugin.candidates import Device
from cni.device_plugin.config import Pool
from cni.device_plugin.errors import CannotWrite
from cni.device_plugin.inventory import Inventory
from cni.device_plugin.kubelet import Patience, Registration
from cni.device_plugin.link_events import LinkEvents
from cni.device_plugin.pools import Pools
from cni.device_plugin.resource_server import ResourceServer
from foundation.daemon import metrics
from foundation.daemon.running import Daemon
from foundation.daemon.work import Backoff
from foundation.inotify import DirectoryWatch
from foundation.pci.uevents import OVERFLOW, Uevent, Uevents

log = logging.getLogger(__name__)

# Events come in bursts (256 VFs at once, a PF with all its representors): one look serves a whole burst.
_GATHER_SECONDS = 0.02

_DEVICES = metrics.gauge("device_plugin_devices", "Devices advertised.", ("resource", "health"))


class DevicePlugin:
    """Looks at the machine when an event says so, divides functions among pools, serves each pool to kubelet."""

    def __init__(
        self, pools: Pools, inventory: Inventory, allocator: Allocator, *, directory: Path, resync_seconds: float
    ) -> None:
        self._pools = pools
        self._inventory = inventory
        self._allocator = allocator
        self._directory = directory
        self._resync_seconds = resync_seconds
        self._servers: dict[str, ResourceServer] = {}
        self._registrations: dict[str, Registration] = {}
        self._devices: Mapping[str, tuple[Device, ...]] = {}
        self._stale: set[str] = set()
        self._all_stale = True
        self._changed = asyncio.Event()

    @property
    def devices(self) -> Mapping[str, tuple[Device, ...]]:
        """Devices by resource, as kubelet was last told."""
        return self._devices

    async def start(self, daemon: Daemon, events: Uevents, *, patience: Patience) -> None:
        """Returns when the machine has been looked at; registration goes on by itself."""
        stack = AsyncExitStack()
        daemon.on_stop(stack.aclose)
        stack.callback(events.subscribe(self.on_uevent))
        stack.enter_context(LinkEvents(self.on_link))
        for resource, pool in self._pools.resources.items():
            server = ResourceServer(resource, pool, self._allocator, on_streams=self._waker(resource))
            self._servers[resource] = server
            self._registrations[resource] = Registration(
                server, self._directory, set_health=daemon.health.set, patience=patience
            )
        await self._look()
        await asyncio.to_thread(self._allocator.tidy, self._devices)
        daemon.spawn(self._follow(), name="inventory")
        for resource, registration in self._registrations.items():
            daemon.on_stop(registration.stop)
            daemon.spawn(registration.run(), name=f"registration of {resource}")
        daemon.spawn(self._watch_directory(), name="kubelet's directory")

    # --- events --------------------------------------------------------------------------------------------------

    def on_uevent(self, event: Uevent) -> None:
        """Note what an event makes worth a look."""
        address = event.pci_address
        if event.action == OVERFLOW:
            self._mark_all()
        elif not address:
            return
        elif event.subsystem == "pci":
            if address in self._inventory.candidates:
                self._mark(address)
            elif event.action in ("add", "remove", "bind", "unbind"):
                # New VFs, or a neighbour in an IOMMU group.
                self._mark_all()
        elif event.subsystem == "nvme" or (event.subsystem == "net" and self._serves_vfs(address)):
            self._mark(address)

    def on_link(self, name: str) -> None:
        """A physical function went up or down; "" when any may have."""
        if not name:
            self._mark_all()
        for pf in {candidate.physical for candidate in self._inventory.candidates.values()}:
            if pf.netdev == name:
                self._mark(pf.address)

    def _serves_vfs(self, address: str) -> bool:
        """Whether network devices below this function are an uplink or representors, not a VF on its way to a pod."""
        candidate = self._inventory.candidates.get(address)
        return candidate is not None and not candidate.function.is_vf

    def _mark(self, address: str) -> None:
        self._stale.add(address)
        self._changed.set()

    def _mark_all(self) -> None:
        self._all_stale = True
        self._changed.set()

    # --- the machine ---------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._resync_seconds):
                    await self._changed.wait()
                await asyncio.sleep(_GATHER_SECONDS)
            except TimeoutError:
                self._all_stale = True
            await self._look()

    async def _look(self) -> None:
        self._changed.clear()
        stale, everything = self._stale, self._all_stale
        self._stale, self._all_stale = set(), False
        if everything:
            await asyncio.to_thread(self._inventory.scan)
        else:
            await asyncio.to_thread(self._inventory.refresh, stale)
        before, self._devices = self._devices, self._pools.divide(self._inventory.candidates)
        for resource, devices in self._devices.items():
            _report(resource, before.get(resource, ()), devices)
            pool = self._pools.resources[resource]
            if pool.cdi and (everything or devices != before.get(resource)):
                await self._describe(resource, pool, devices)
            self._servers[resource].update(devices)

    async def _describe(self, resource: str, pool: Pool, devices: Sequence[Device]) -> None:
        try:
            await asyncio.to_thread(self._allocator.describe, resource, pool, {device.id: device for device in devices})
        except CannotWrite as error:
            log.warning("%s", error, extra={"resource": resource})

    # --- kubelet -------------------------------------------------------------------------------------------------

    async def _watch_directory(self) -> None:
        """Wake the registrations on each change of kubelet's socket or ours; outlives the directory itself."""
        for delay in Backoff(0.1, 1.0):
            lost = asyncio.Event()
            try:
                with DirectoryWatch(self._directory, partial(self._on_entry, lost)):
                    self._wake_all()
                    await lost.wait()
            except OSError as error:
                log.warning("kubelet's device plugin directory cannot be watched: %s", error)
            await asyncio.sleep(delay)

    def _on_entry(self, lost: asyncio.Event, name: str) -> None:
        if not name:
            lost.set()
        if not name or name.endswith(".sock"):
            self._wake_all()

    def _wake_all(self) -> None:
        for registration in self._registrations.values():
            registration.wake()

    def _waker(self, resource: str) -> Callable[[], None]:
        return lambda: self._registrations[resource].wake()


def _report(resource: str, before: Sequence[Device], devices: Sequence[Device]) -> None:
    """Count the devices, and log each one that came, went or changed its health."""
    healthy = sum(device.healthy for device in devices)
    _DEVICES.labels(resource=resource, health="healthy").set(healthy)
    _DEVICES.labels(resource=resource, health="unhealthy").set(len(devices) - healthy)
    earlier = {device.id: device for device in before}
    for device in devices:
        known = earlier.pop(device.id, None)
        fields = {"resource": resource, "device": device.id}
        if device.reason and (known is None or known.reason != device.reason):
            log.warning("unhealthy: %s", device.reason, extra=fields)
        elif known is None:
            log.info("found", extra=fields)
        elif known.reason and not device.reason:
            log.info("healthy again", extra=fields)
    for gone in earlier:
        log.info("gone", extra={"resource": resource, "device": gone})
