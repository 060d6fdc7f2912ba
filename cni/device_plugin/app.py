"""sriov-device-plugin: advertises a node's PCI functions to kubelet."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

from cni.device_plugin.allocation import Allocator
from cni.device_plugin.config import DevicePluginConfig
from cni.device_plugin.device_info import DeviceInfoFiles
from cni.device_plugin.inventory import Inventory
from cni.device_plugin.kubelet import Patience, refuse_long_paths
from cni.device_plugin.plugin import DevicePlugin
from cni.device_plugin.pools import Pools
from cni.device_plugin.preparation.attributes import Attributes
from cni.device_plugin.preparation.eswitch import DevlinkEswitch
from cni.device_plugin.preparation.keeper import Keeper
from cni.device_plugin.preparation.links import NetlinkLinks
from cni.device_plugin.preparation.preparer import Preparer
from foundation.daemon.running import Daemon, run
from foundation.pci import Sysfs
from foundation.pci.uevents import Uevents

NAME = "sriov-device-plugin"


async def start(config: DevicePluginConfig, daemon: Daemon) -> None:
    """Prepare the cards, look at the machine, then serve. Raises BadSelector, BadDirectory, OSError."""
    pools = Pools(config.pools, domain=config.resource_domain)
    refuse_long_paths(Path(config.plugins_directory), pools.resources.keys())
    sysfs, devfs = Sysfs(Path(config.sysfs)), Path(config.devfs)
    stack = AsyncExitStack()
    daemon.on_stop(stack.aclose)
    events = stack.enter_context(Uevents())
    keeper = Keeper(
        Preparer(
            sysfs,
            devfs=devfs,
            pod_resources=Path(config.pod_resources) if config.pod_resources else None,
            attributes=Attributes(),
            eswitch=DevlinkEswitch(),
            links=NetlinkLinks(),
            events=events,
        ),
        config.physical_functions,
        set_health=daemon.health.set,
        beat_seconds=config.resync_seconds,
    )
    await keeper.once()
    information = Path(config.device_info_directory) if config.device_info_directory else None
    plugin = DevicePlugin(
        pools,
        Inventory(sysfs, procfs=Path(config.procfs)),
        Allocator(
            sysfs,
            devfs=devfs,
            device_info=DeviceInfoFiles(information) if information else None,
            cdi_directory=Path(config.cdi_directory),
        ),
        directory=Path(config.plugins_directory),
        resync_seconds=config.resync_seconds,
    )
    await plugin.start(daemon, events, patience=Patience())
    daemon.spawn(keeper.run(), name="preparation")


def main() -> None:
    run(NAME, DevicePluginConfig, start)


if __name__ == "__main__":
    main()
