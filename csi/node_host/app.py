"""csi-node-host: where it is put together."""

import asyncio
import contextlib
from pathlib import Path
from typing import Final

from csi.announcement import HOST_NODE_LABEL, announced
from csi.calls import Calls
from csi.errors import CODES
from csi.identity_service import IdentityService
from csi.node_host.config import CsiNodeHostConfig
from csi.node_host.disks import Disks
from csi.node_host.fabrics import Fabrics
from csi.node_host.filesystems import FileSystems
from csi.node_host.host import Host
from csi.node_host.passthrough import Passthrough
from csi.node_host.records import Records
from csi.node_host.service import NodeService
from dpu_offload_stubs.csi import csi_pb2_grpc
from foundation.daemon.running import Daemon, StartError, run
from foundation.daemon.serving import ErrorTable, listen_unix, make_server
from foundation.kube.client import KubeClient
from foundation.kube.errors import ConfigurationInvalid
from foundation.kube.reflector import Reflector
from foundation.kube.resources import NODES
from foundation.pci.sysfs import Sysfs
from foundation.pci.uevents import Uevents

_FIRST_LIST_SECONDS: Final = 10.0


async def start(config: CsiNodeHostConfig, daemon: Daemon) -> None:
    sysfs_root = Path(config.sysfs_root)
    if not sysfs_root.is_dir():
        raise StartError(f"sysfs_root {sysfs_root} is not a directory: mount the host's /sys there")
    try:
        functions = {int(number): address for number, address in config.physical_functions.items()}
    except ValueError as error:
        raise StartError(f"physical_functions: keys are numbers of physical functions ({error})") from error
    try:
        kube = await KubeClient.connect(config.kubeconfig, config.context)
    except ConfigurationInvalid as error:
        raise StartError(str(error)) from error
    daemon.on_stop(kube.close)
    # Label values of node names longer than 63 characters do not exist, so no further check is needed.
    dpus = Reflector(kube, NODES, label_selector=f"{HOST_NODE_LABEL}={config.node_name}")
    daemon.spawn(dpus.run(), name="DPU nodes")

    uevents = Uevents()
    uevents.__enter__()

    async def close_uevents() -> None:
        uevents.__exit__(None, None, None)

    daemon.on_stop(close_uevents)
    calls = Calls()
    sysfs, dev_root, state = Sysfs(sysfs_root), Path(config.dev_root), Path(config.state_directory)
    host = Host(
        config=config,
        disks=Disks(sysfs=sysfs, dev_root=dev_root, physical_functions=functions, uevents=uevents),
        fabrics=Fabrics(sysfs=sysfs, dev_root=dev_root, node=config.node_name),
        file_systems=FileSystems(format_options=config.format_options, seconds=config.command_seconds),
        passthrough=Passthrough(sysfs=sysfs, dev_root=dev_root, directory=state / "passthrough"),
        records=Records(state),
        calls=calls,
    )
    daemon.on_stop(calls.stop)

    async def max_volumes() -> int:
        # kubelet asks as soon as it sees the socket, and takes 0 for no limit.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_LIST_SECONDS):
                await dpus.synced()
        known = [announcement for node in dpus.store.values() if (announcement := announced(node)) is not None]
        return sum(announcement.functions.total for announcement in known)

    server = make_server(errors=ErrorTable(CODES), service="csi-node-host")
    csi_pb2_grpc.add_IdentityServicer_to_server(IdentityService(lambda: True), server)
    csi_pb2_grpc.add_NodeServicer_to_server(
        NodeService(host, max_volumes=max_volumes, topology=config.topology), server
    )
    listen_unix(server, config.socket)
    await server.start()
    daemon.on_stop(lambda: server.stop(5))


def main() -> None:
    run("csi-node-host", CsiNodeHostConfig, start)
