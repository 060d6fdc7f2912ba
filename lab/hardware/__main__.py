"""The lab's hardware as a process: ``python -m lab.hardware --run-dir DIR --prefix NAME``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
from pathlib import Path

from lab.hardware.card import Card
from lab.hardware.netdevs import NetdevKeeper
from lab.hardware.sysfs import SysfsTree
from lab.layout import DEFAULT_RUN_DIRECTORY, DPU_NODE, HOST_NODE, Layout


async def _serve(layout: Layout, *, disks: bool) -> None:
    tree = SysfsTree(layout.sysfs(HOST_NODE))
    keeper = NetdevKeeper(tree, host_netns=layout.netns_path(HOST_NODE), dpu_netns=layout.netns_path(DPU_NODE))
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    tasks = [asyncio.create_task(keeper.run())]
    if disks:
        tasks.append(asyncio.create_task(Card(layout.functions, tree, layout.devices).run()))
    waiter = asyncio.create_task(stopping.wait())
    done, _ = await asyncio.wait([*tasks, waiter], return_when=asyncio.FIRST_COMPLETED)
    for task in [*tasks, waiter]:
        task.cancel()
    await asyncio.gather(*tasks, waiter, return_exceptions=True)
    for task in done:
        if task is not waiter:
            task.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", type=Path, default=DEFAULT_RUN_DIRECTORY)
    parser.add_argument("--prefix", default="lab")
    parser.add_argument(
        "--no-disks",
        action="store_true",
        help="leave vfio-user sockets alone: a real SPDK stands still when a client connects and says nothing",
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run(_serve(Layout(run=arguments.run_dir, prefix=arguments.prefix), disks=not arguments.no_disks))


if __name__ == "__main__":
    main()
