"""`python -m lab.vm COMMAND..`: runs a command in a fresh guest with one of each card, and leaves with its code."""

from __future__ import annotations

import asyncio
import sys
import time

from lab.vm import devices
from lab.vm.guest import Guest, Parts

SECONDS = 600.0


async def main(command: list[str]) -> int:
    cards = (
        devices.iommu(),
        devices.root_ports(count=4),
        devices.igb(1),
        devices.nvme(2, serial="lab2", size=64 << 20),
    )
    parts = await Parts.prepare()
    started = time.monotonic()
    async with Guest(parts, name="command", devices=cards) as guest:
        print(f"guest up after {time.monotonic() - started:.1f} s", file=sys.stderr)
        done = await guest.run(*command, seconds=SECONDS, check=False)
    sys.stdout.write(done.output)
    sys.stderr.write(done.errors)
    return done.code


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:] or ["uname", "-a"])))
