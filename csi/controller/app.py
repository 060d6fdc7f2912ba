"""csi-controller: where it is put together."""

from csi.calls import Calls
from csi.controller.classes import Classes
from csi.controller.cluster import Cluster
from csi.controller.config import CsiControllerConfig
from csi.controller.converge import Converger
from csi.controller.directory import Directory
from csi.controller.dpus import Dpus
from csi.controller.fences import Fences
from csi.controller.first_lists import FirstLists
from csi.controller.garbage import Garbage
from csi.controller.parts import Parts
from csi.controller.service import ControllerService, GroupControllerService
from csi.controller.uses import Uses
from csi.errors import CODES
from csi.framework.registry import BadSection, Registry
from csi.identity_service import IdentityService
from dpu_offload_stubs.csi import csi_pb2_grpc
from foundation.daemon.running import Daemon, StartError, run
from foundation.daemon.serving import ErrorTable, TlsFiles, listen_unix, make_server
from foundation.daemon.tls import TlsError, WatchedFiles
from foundation.kube.client import KubeClient
from foundation.kube.errors import ConfigurationInvalid
from foundation.kube.reflector import Reflector
from foundation.kube.resources import NODES, PERSISTENT_VOLUMES, VOLUME_ATTACHMENTS, VOLUME_ATTRIBUTES_CLASSES


async def start(config: CsiControllerConfig, daemon: Daemon) -> None:
    try:
        registry = Registry.open(config.backends, default=config.default_backend)
        tls = TlsFiles(ca=config.tls.ca, certificate=config.tls.certificate, key=config.tls.key)
        # Read once here, so that a wrong path is known now and not with the first publish.
        WatchedFiles(tls)
        kube = await KubeClient.connect(config.kubeconfig, config.context)
    except (BadSection, ConfigurationInvalid, TlsError) as error:
        raise StartError(str(error)) from error
    daemon.on_stop(kube.close)
    nodes = Reflector(kube, NODES)
    volumes = Reflector(kube, PERSISTENT_VOLUMES)
    attachments = Reflector(kube, VOLUME_ATTACHMENTS)
    classes = Reflector(kube, VOLUME_ATTRIBUTES_CLASSES)
    directory = Directory(nodes.store)
    dpus = Dpus(tls, config.dpu)
    daemon.on_stop(dpus.close)
    calls = Calls()
    cluster = Cluster(volumes=volumes.store, attachments=attachments.store, classes=classes.store, directory=directory)
    fences, lists = Fences(cluster.attached), FirstLists()
    parts = Parts(
        registry=registry,
        directory=directory,
        dpus=dpus,
        calls=calls,
        uses=Uses(cluster.uses),
        fences=fences,
        lists=lists,
        named=cluster.named,
        classes=Classes(cluster.context_of),
    )
    converger = Converger(
        registry=registry, cluster=cluster, fences=fences, kube=kube, every_seconds=config.converge_seconds
    )
    garbage = Garbage(registry=registry, cluster=cluster, directory=directory, calls=calls, config=config.garbage)
    for backend in registry.backends.values():
        backend.on_return(converger.soon)
        await backend.start()
        daemon.on_stop(backend.close)
    daemon.on_stop(calls.stop)

    daemon.health.set("kubernetes", False, "nodes, volumes and attachments have not been read yet")

    async def follow() -> None:
        # Without all of them, everything on the storage would look like a leftover, and every host like a stranger.
        for reflector in (nodes, volumes, attachments):
            await reflector.synced()
        lists.note()
        daemon.health.set("kubernetes", True)
        daemon.spawn(converger.run(), name="converge")
        daemon.spawn(garbage.run(), name="garbage")
        # Kubernetes before 1.34 never has them.
        await classes.synced()
        await converger.soon()

    for reflector, what in ((nodes, "nodes"), (volumes, "volumes"), (attachments, "attachments"), (classes, "classes")):
        daemon.spawn(reflector.run(), name=what)
    daemon.spawn(follow(), name="first lists")

    server = make_server(errors=ErrorTable(CODES), service="csi-controller")
    csi_pb2_grpc.add_IdentityServicer_to_server(IdentityService(lambda: lists.read), server)
    csi_pb2_grpc.add_ControllerServicer_to_server(ControllerService(parts), server)
    csi_pb2_grpc.add_GroupControllerServicer_to_server(GroupControllerService(parts), server)
    listen_unix(server, config.socket)
    await server.start()
    daemon.on_stop(lambda: server.stop(5))


def main() -> None:
    run("csi-controller", CsiControllerConfig, start)
