"""The kubelet stand-in as a process: ``python -m lab.kubelet --node NAME --kubeconfig FILE --root DIR ...``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import signal
from pathlib import Path

import grpc.aio

from foundation.kube import resources
from foundation.kube.client import KubeClient
from foundation.kube.errors import AlreadyExists
from lab.kubelet.devices import DeviceManager
from lab.kubelet.pods import PodWorker
from lab.kubelet.sandbox import CniFailed, CniPlugin
from lab.kubelet.volumes import VolumeMounter

log = logging.getLogger(__name__)

STATUS_SECONDS = 5.0  # how often containerd asks the plugin for STATUS
REGISTRATION_SECONDS = 60.0


async def _register_driver(mounter: VolumeMounter, client: KubeClient, node: str, driver: str) -> None:
    """What node-driver-registrar and kubelet do together: NodeGetInfo, then the node's CSINode."""
    info = await mounter.node_info(seconds=REGISTRATION_SECONDS)
    entry: dict[str, object] = {"name": driver, "nodeID": info.node_id, "topologyKeys": []}
    if info.accessible_topology.segments:
        entry["topologyKeys"] = sorted(info.accessible_topology.segments)
        labels = {"metadata": {"labels": dict(info.accessible_topology.segments)}}
        await client.merge_patch(resources.NODES, node, "", labels)
    if info.max_volumes_per_node:
        entry["allocatable"] = {"count": int(info.max_volumes_per_node)}
    body = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "CSINode",
        "metadata": {"name": node},
        "spec": {"drivers": [entry]},
    }
    try:
        await client.create(resources.CSI_NODES, body)
    except AlreadyExists:
        await client.merge_patch(resources.CSI_NODES, node, "", {"spec": body["spec"]})


async def _report_network(plugin: CniPlugin, client: KubeClient, node: str) -> None:
    """The node's Ready condition follows the plugin's STATUS."""
    last = ""
    while True:
        try:
            await plugin.status()
            state, message = "True", "network plugin is ready"
        except CniFailed as error:
            state, message = "False", f"Network plugin returns error: {error}"
        if (current := f"{state} {message}") != last:
            condition = {"type": "Ready", "status": state, "reason": "KubeletStandIn", "message": message}
            body = {"status": {"conditions": [condition]}}
            await client.merge_patch(resources.NODES, node, "", body, subresource="status")
            log.info("node %s Ready=%s: %s", node, state, message)
            last = current
        await asyncio.sleep(STATUS_SECONDS)


async def _serve(arguments: argparse.Namespace) -> None:
    client = await KubeClient.connect(kubeconfig=str(arguments.kubeconfig))
    plugin = CniPlugin(arguments.cni_binary, json.loads(arguments.cni_configuration))
    devices = DeviceManager(arguments.root / "device-plugins") if arguments.device_plugins else None
    channel = grpc.aio.insecure_channel(f"unix:{arguments.csi_socket}") if arguments.csi_socket else None
    mounter = VolumeMounter(channel, arguments.root) if channel is not None else None
    worker = PodWorker(
        node=arguments.node,
        client=client,
        root=arguments.root,
        plugin=plugin,
        devices=devices,
        mounter=mounter,
        leave_disks=arguments.leave_disks,
        netns_prefix=arguments.netns_prefix,
    )
    if devices is not None:
        await devices.start()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    tasks = [
        asyncio.create_task(worker.run()),
        asyncio.create_task(_report_network(plugin, client, arguments.node)),
        asyncio.create_task(stopping.wait()),
    ]
    registration = (
        asyncio.create_task(_register_driver(mounter, client, arguments.node, arguments.driver))
        if mounter is not None
        else None
    )
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in [*tasks, *([registration] if registration else [])]:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    if devices is not None:
        await devices.stop()
    if channel is not None:
        await channel.close()
    await client.close()
    for task in done:
        task.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--node", required=True)
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--cni-binary", type=Path, required=True)
    parser.add_argument("--cni-configuration", required=True, help="network configuration as JSON")
    parser.add_argument("--csi-socket", default="")
    parser.add_argument("--driver", default="csi.dpu-offload.io")
    parser.add_argument("--netns-prefix", default="cni-", help="first part of the pods' network namespaces' names")
    parser.add_argument(
        "--leave-disks",
        action="store_true",
        help="leave pods with volumes waiting: nothing here can take the disks that the DPU emulates",
    )
    parser.add_argument("--device-plugins", action="store_true", help="serve device plugin registration below --root")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run(_serve(arguments))


if __name__ == "__main__":
    main()
