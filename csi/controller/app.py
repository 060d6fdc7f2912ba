"""csi-controller: where it is put together."""

import asyncio

from csi.calls import Calls
from csi.controller.config import CsiControllerConfig
from csi.controller.directory import Directory
from csi.controller.dpus import Dpus
from csi.controller.parts import Parts
from csi.controller.service import ControllerService, GroupControllerService
from csi.errors import CODES
from csi.framework.registry import BadSection, Registry
from csi.identity_service import IdentityService
from dpu_offload_stubs.csi import csi_pb2_grpc
from foundation.daemon.running import Daemon, StartError, run
from foundation.daemon.serving import ErrorTable, TlsFiles, listen_unix, make_server
from foundation.kube.client import KubeClient
from foundation.kube.errors import ConfigurationInvalid
from foundation.kube.reflector import Reflector
from foundation.kube.resources import NODES


async def start(config: CsiControllerConfig, daemon: Daemon) -> None:
    try:
        registry = Registry.open(config.backends, default=config.default_backend)
        kube = await KubeClient.connect(config.kubeconfig, config.context)
    except (BadSection, ConfigurationInvalid) as error:
        raise StartError(str(error)) from error
    daemon.on_stop(kube.close)
    nodes = Reflector(kube, NODES)
    dpus = Dpus(TlsFiles(ca=config.tls.ca, certificate=config.tls.certificate, key=config.tls.key), config.dpu)
    daemon.on_stop(dpus.close)
    calls = Calls()
    parts = Parts(registry=registry, directory=Directory(nodes.store), dpus=dpus, calls=calls)
    for backend in registry.backends.values():
        await backend.start()
        daemon.on_stop(backend.close)
    daemon.on_stop(calls.stop)

    ready = asyncio.Event()
    daemon.health.set("nodes", False, "the list of nodes has not been read yet")

    async def follow() -> None:
        await nodes.synced()
        ready.set()
        daemon.health.set("nodes", True)

    daemon.spawn(nodes.run(), name="nodes")
    daemon.spawn(follow(), name="first list of nodes")

    server = make_server(errors=ErrorTable(CODES), service="csi-controller")
    csi_pb2_grpc.add_IdentityServicer_to_server(IdentityService(ready.is_set), server)
    csi_pb2_grpc.add_ControllerServicer_to_server(ControllerService(parts), server)
    csi_pb2_grpc.add_GroupControllerServicer_to_server(GroupControllerService(parts), server)
    listen_unix(server, config.socket)
    await server.start()
    daemon.on_stop(lambda: server.stop(5))


def main() -> None:
    run("csi-controller", CsiControllerConfig, start)
