"""Runs in the guest: brings physical functions to a declared state by the device plugin's own preparation.

Arguments: the declared state in JSON, a list. The last line of output is {"steps": [n, ..], "error": text or ""}.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import msgspec

from cni.device_plugin.config import PhysicalFunction
from cni.device_plugin.errors import PreparationError
from cni.device_plugin.preparation.attributes import Attributes
from cni.device_plugin.preparation.eswitch import DevlinkEswitch
from cni.device_plugin.preparation.links import NetlinkLinks
from cni.device_plugin.preparation.preparer import Preparer
from foundation.pci import Sysfs
from foundation.pci.uevents import Uevents


async def main(text: str) -> None:
    steps: list[int] = []
    refused = ""
    with Uevents() as events:
        preparer = Preparer(
            Sysfs(),
            devfs=Path("/dev"),
            pod_resources=None,
            attributes=Attributes(),
            eswitch=DevlinkEswitch(),
            links=NetlinkLinks(),
            events=events,
        )
        declared = msgspec.json.decode(text, type=list[PhysicalFunction])
        try:
            steps = [await preparer.prepare(wanted) for wanted in declared]
        except PreparationError as error:
            refused = str(error)
    sys.stdout.write(json.dumps({"steps": steps, "error": refused}) + "\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
