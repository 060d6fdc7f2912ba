"""Runs in the guest: csi-node-host gives a whole NVMe function to a virtual machine, and takes it back.

Arguments: PCI address, namespace uuid. The last line of output is what was seen, in JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from csi.node_host.disks import Disks
from csi.node_host.passthrough import Passthrough
from csi.publication import PublishContext
from foundation.pci import Sysfs
from foundation.pci.uevents import Uevents

SECONDS = 60.0


async def main(address: str, uuid: str) -> None:
    sysfs = Sysfs()
    passthrough = Passthrough(sysfs=sysfs, dev_root=Path("/dev"), directory=Path("/run/passthrough"))
    seen: dict[str, Any] = {}

    def driver() -> str:
        return sysfs.function(address, vpd=False).driver

    with Uevents() as uevents:
        disks = Disks(sysfs=sysfs, dev_root=Path("/dev"), physical_functions={}, uevents=uevents)
        wanted = PublishContext(pci_address=address, namespace_uuid=uuid, subsystem_nqn="")
        seen["before"] = [driver(), disks.by_uuid(uuid) is not None]
        passthrough.bind(address)
        passthrough.bind(address)
        seen["bound"] = [driver(), disks.by_uuid(uuid) is not None]
        seen["device"] = str(passthrough.device(address))
        seen["shown"] = sorted(path.name for path in passthrough.show("files:v1", address).iterdir())
        passthrough.release(address)
        # The kernel's NVMe driver starts its controllers in the background.
        await disks.wait(wanted, seconds=SECONDS, rescan_after=SECONDS)
        seen["after"] = [driver(), disks.by_uuid(uuid) is not None]
    sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
