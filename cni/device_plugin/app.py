"""sriov-device-plugin: advertises a node's PCI functions to kubelet."""

from __future__ import annotations

from pathlib import Path

from cni.device_plugin.allocation import Allocator
from cni.device_plugin.config import DevicePluginConfig
from cni.device_plugin.device_info import DeviceInfoFiles
from cni.device_plugin.inventory import Inventory
from cni.device_plugin.kubelet import Patience
from cni.device_plugin.plugin import DevicePlugin
from cni.device_plugin.pools import Pools
from foundation.daemon.running import Daemon, run
from foundation.pci import Sysfs

NAME = "sriov-device-plugin"


async def start(config: DevicePluginConfig, daemon: Daemon) -> None:
    """Look at the machine, then serve. Raises BadSelector, OSError."""
    pools = Pools(config.pools, domain=config.resource_domain)
    sysfs = Sysfs(Path(config.sysfs))
    information = Path(config.device_info_directory) if config.device_info_directory else None
    allocator = Allocator(
        sysfs,
        devfs=Path(config.devfs),
        device_info=DeviceInfoFiles(information) if information else None,
        cdi_directory=Path(config.cdi_directory),
    )
    plugin = DevicePlugin(
        pools,
        Inventory(sysfs, procfs=Path(config.procfs)),
        allocator,
        directory=Path(config.plugins_directory),
        resync_seconds=config.resync_seconds,
    )
    await plugin.start(daemon, patience=Patience())


def main() -> None:
    run(NAME, DevicePluginConfig, start)


if __name__ == "__main__":
    main()
