"""The cluster's volume controllers and CSI sidecars as one process."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
from pathlib import Path
from typing import Any

import grpc.aio

from foundation.kube.client import KubeClient
from foundation.kube.reflector import Reflector
from lab.cluster.attacher import Attacher
from lab.cluster.controllers import VolumeControllers
from lab.cluster.provisioner import Provisioner


async def _serve(kubeconfig: Path, csi_socket: Path, driver: str) -> None:
    client = await KubeClient.connect(kubeconfig=str(kubeconfig))
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with grpc.aio.insecure_channel(f"unix:{csi_socket}") as channel:
        provisioner = Provisioner(client, channel, driver)
        attacher = Attacher(client, channel, driver)
        controllers = VolumeControllers(client, driver)
        reflectors: list[Reflector[Any]] = [*provisioner.reflectors, *attacher.reflectors, *controllers.reflectors]
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(reflector.run()) for reflector in reflectors]
        # A cluster need not have the snapshots' definitions; what asks for one meanwhile is tried again.
        optional = provisioner.snapshotter.reflectors
        for reflector in reflectors:
            if reflector not in optional:
                await reflector.synced()
        queues = (
            *(provisioner.claims_queue, provisioner.volumes_queue, provisioner.snapshotter.queue),
            *(attacher.queue, controllers.queue),
        )
        tasks += [asyncio.create_task(queue.run()) for queue in queues]
        tasks.append(asyncio.create_task(stopping.wait()))
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await client.close()
    for task in done:
        task.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--csi-socket", type=Path, required=True)
    parser.add_argument("--driver", default="csi.dpu-offload.io")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run(_serve(arguments.kubeconfig, arguments.csi_socket, arguments.driver))


if __name__ == "__main__":
    main()
