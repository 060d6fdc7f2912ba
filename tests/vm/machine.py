"""The guest with the words that these tests use of it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from lab.vm.guest import Guest

INSIDE = Path(__file__).parent / "inside"
PREPARE, LOOK, NODE = INSIDE / "prepare.py", INSIDE / "look.py", INSIDE / "node.py"
# Without udev nobody loads a driver for a device that appears.
_MODULES = (
    *("igb", "vfio-pci", "openvswitch", "vport_geneve", "sch_ingress", "cls_flower"),
    *("act_mirred", "act_gact", "act_csum", "act_pedit", "act_skbedit", "act_tunnel_key", "act_vlan", "act_ct"),
)
# By a quirk of the driver's table (NVME_QUIRK_BOGUS_NID) the kernel shows no uuid of a namespace of QEMU's. An id added
# by hand, with all its seven fields, has no quirks; it has to be there before the driver sees a controller.
_NVME = (
    "echo 0 > /sys/bus/pci/drivers_autoprobe; modprobe nvme; "
    "echo 1b36 0010 ffffffff ffffffff 0 0 0 > /sys/bus/pci/drivers/nvme/new_id; echo 1 > /sys/bus/pci/drivers_autoprobe"
)
SMARTNIC, PLAIN_NIC, NVME = "0000:01:00.0", "0000:02:00.0", "0000:03:00.0"


class Machine:
    """`guest` as booted has no driver loaded."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest

    async def load(self, *scripts: Path) -> None:
        """Load the drivers, and beside them what these scripts import; make a SmartNIC of the first card."""
        await asyncio.gather(self._load_drivers(), self.guest.warm_up(*scripts, seconds=240))

    async def _load_drivers(self) -> None:
        await self.guest.run("modprobe", "-a", *_MODULES)
        await self.sh(_NVME)
        await self.guest.run("insmod", self.guest.module, f"pf={SMARTNIC}")
        # After ours, which is then asked first, and leaves the other card's functions to this one.
        await self.guest.run("modprobe", "igbvf")

    async def sh(self, command: str) -> str:
        return (await self.guest.run("sh", "-ec", command)).output.strip()

    async def prepare(self, **wanted: Any) -> dict[str, Any]:
        """Bring one physical function to a declared state."""
        found: dict[str, Any] = await self.guest.script(PREPARE, json.dumps([wanted]), seconds=200)
        return found

    async def look(self, *pools: dict[str, Any]) -> dict[str, Any]:
        """What foundation.pci and the device plugin see."""
        found: dict[str, Any] = await self.guest.script(LOOK, json.dumps(pools), seconds=200)
        return found

    async def links(self) -> dict[str, dict[str, Any]]:
        """Links of the guest by name."""
        return {link["ifname"]: link for link in json.loads(await self.sh("ip -j -d link show"))}
