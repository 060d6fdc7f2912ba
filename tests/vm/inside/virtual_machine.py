"""Runs in the guest: a virtual machine of its own, with a function by vfio-pci and a disk.

Arguments: the function's PCI address, the disk, a frozen machine's file. The last line of output is what the machine
has told, in JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from lab.vm import devices
from lab.vm.tiny import TinyGuest
from lab.vm.unpacked import DIRECTORY, Unpacked

SECONDS = 150.0
# A frozen machine goes on with what it had read of another disk.
SCRIPT = """
echo "lab: waits for a card"
until [ -e /sys/class/net/eth0 ]; do sleep 0.2; done
lease eth0
echo "lab: mac $(cat /sys/class/net/eth0/address)"
blockdev --flushbufs /dev/vda
word=$(dd if=/dev/vda bs=512 count=1 2>/dev/null | tr -d '\\000'); echo "lab: found ${word:-nothing}"
echo kept > /dev/vda; sync
set -- $(ip route show default); ping -c 3 -w 20 "$3" > /dev/null && echo "lab: reached $3"
"""


def machine(disk: str, *, frozen: Path | None = None) -> TinyGuest:
    """The same but for its disk, so that what one has frozen another goes on with."""
    unpacked = Unpacked.find()
    return TinyGuest(
        unpacked,
        DIRECTORY / f"vmlinux-{unpacked.release}",
        script=SCRIPT,
        devices=(devices.block(disk),),
        drivers=("virtio_pci", "virtio_blk", "igbvf"),
        frozen=frozen,
        accelerator="kvm" if frozen else "tcg",
    )


async def life(guest: TinyGuest) -> dict[str, str]:
    """What a machine tells from its start to its end."""
    told = {word: await guest.says(word, seconds=SECONDS) for word in ("eth0", "mac", "found", "reached")}
    await guest.says("end", seconds=SECONDS)
    return told


async def main(function: str, disk: str, frozen: str) -> None:
    async with machine(disk, frozen=Path(frozen)) as guest:
        await guest.plug("vfio-pci", host=function, rombar=0)
        told = await life(guest)
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
