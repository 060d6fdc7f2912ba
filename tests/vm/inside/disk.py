"""Runs in the guest: csi-node-host's finder waits for a disk behind one PCI function.

Arguments: namespace uuid, subsystem NQN, PCI address, a file to make when the wait begins. The last line of output is
the disk, with the seconds from the function's own uevent to its discovery.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import msgspec

from csi.node_host.disks import Disks
from csi.publication import PublishContext
from foundation.pci import Sysfs
from foundation.pci.uevents import Uevent, Uevents

SECONDS = 60.0


async def main(uuid: str, nqn: str, address: str, waiting: str) -> None:
    events: list[tuple[float, str]] = []

    def note(event: Uevent) -> None:
        if event.pci_address == address or event.subsystem in ("nvme", "nvme-subsystem", "block"):
            events.append((time.monotonic(), f"{event.action} {event.subsystem} {event.devpath.rsplit('/', 1)[-1]}"))

    with Uevents() as uevents:
        uevents.subscribe(note)
        disks = Disks(sysfs=Sysfs(), dev_root=Path("/dev"), physical_functions={}, uevents=uevents)
        wanted = PublishContext(
            dpu_node="dpu",
            vuid="",
            port=0,
            pf=0,
            vf=0,
            pci_address=address,
            namespace_uuid=uuid,
            nsid=1,
            subsystem_nqn=nqn,
            size_bytes=1,
        )
        Path(waiting).touch()
        disk = await disks.wait(wanted, seconds=SECONDS, rescan_after=SECONDS)
        found = time.monotonic()
    first = events[0][0] if events else found
    seen = {
        "disk": msgspec.to_builtins(disk),
        "events": [text for _, text in events],
        "seconds": found - first,
    }
    sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
