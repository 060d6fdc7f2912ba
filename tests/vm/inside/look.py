"""Runs in the guest: what foundation.pci and the device plugin see of the machine.

Arguments: pools in JSON. The last line of output holds functions, representors, NVMe disks, and each pool's devices.
"""

from __future__ import annotations

import sys

import msgspec

from cni.device_plugin.config import Pool
from cni.device_plugin.inventory import Inventory
from cni.device_plugin.pools import Pools
from foundation.pci import Sysfs


def main(text: str) -> None:
    sysfs, inventory = Sysfs(), Inventory(Sysfs())
    inventory.scan()
    pools = Pools(msgspec.json.decode(text, type=tuple[Pool, ...]), domain="lab")
    seen = {
        "functions": {one.address: one for one in sysfs.functions()},
        "representors": {
            f"c{port.controller}pf{port.pf}vf{port.vf}": name for port, name in sysfs.representors().items()
        },
        "controllers": sysfs.nvme_controllers(),
        "namespaces": sysfs.nvme_namespaces(),
        "vfio": {one.address: path for one in sysfs.functions() if (path := sysfs.vfio_device(one.address))},
        "devices": {
            resource: {
                device.id: {"reason": device.reason, "representor": device.candidate.representor} for device in devices
            }
            for resource, devices in pools.divide(inventory.candidates).items()
        },
    }
    sys.stdout.write(msgspec.json.encode(seen).decode() + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
