"""csi-node-dpu: where it is put together."""

from csi.node_dpu.announcing import Announcer
from csi.node_dpu.calls import RecentCalls
from csi.node_dpu.config import CsiNodeDpuConfig
from csi.node_dpu.convergence import Convergence, hosts_of
from csi.node_dpu.health import Health
from csi.node_dpu.mirror import Mirror
from csi.node_dpu.service import ERRORS, NodeDpuService
from csi.node_dpu.users import Users
from csi.node_dpu.volumes import Volumes
from dpu_offload_stubs.attacher.v1 import attacher_pb2_grpc
from foundation.daemon.running import Daemon, StartError, run
from foundation.daemon.serving import ErrorTable, TlsFiles, dial, listen_tls, make_server
from foundation.kube.client import KubeClient
from foundation.kube.errors import ConfigurationInvalid
from foundation.kube.events import EventRecorder
from foundation.kube.reflector import Reflector
from foundation.kube.resources import NODES, VOLUME_ATTACHMENTS


async def start(config: CsiNodeDpuConfig, daemon: Daemon) -> None:
    """Serve csi-controller; ready once volume-attacher and the API server have been read."""
    try:
        kube = await KubeClient.connect(config.kubeconfig, config.context)
    except ConfigurationInvalid as error:
        raise StartError(str(error)) from error
    daemon.on_stop(kube.close)
    channel = dial(config.attacher, name="volume-attacher")
    daemon.on_stop(channel.close)
    mirror = Mirror(channel)
    calls = RecentCalls(config.orphan_grace_seconds)

    server = make_server(errors=ErrorTable(ERRORS), service="csi-node-dpu", callers={"csi-controller"})
    attacher_pb2_grpc.add_VolumeAttacherServicer_to_server(NodeDpuService(mirror, calls), server)
    tls = TlsFiles(ca=config.tls.ca, certificate=config.tls.certificate, key=config.tls.key)
    port = listen_tls(server, config.listen, tls)
    await server.start()
    # Streams of events never end by themselves, and all calls may be repeated.
    daemon.on_stop(lambda: server.stop(0.3))

    nodes = Reflector(kube, NODES, field_selector=f"metadata.name={config.node_name}")
    attachments = Reflector(kube, VOLUME_ATTACHMENTS)
    volumes = Volumes(kube)
    events = EventRecorder(kube, "csi-node-dpu", instance=config.node_name)
    daemon.on_stop(events.close)
    users = Users(kube, volumes, events, hosts=lambda: hosts_of(nodes.store.get(config.node_name)))
    health = Health(
        kube=kube,
        mirror=mirror,
        users=users,
        node=config.node_name,
        pause=config.announce_seconds,
    )
    convergence = Convergence(
        node=config.node_name,
        nodes=nodes,
        attachments=attachments,
        volumes=volumes,
        mirror=mirror,
        calls=calls,
        users=users,
        beat=config.beat_seconds,
        grace=config.orphan_grace_seconds,
    )
    announcer = Announcer(
        kube=kube,
        nodes=nodes,
        mirror=mirror,
        node=config.node_name,
        advertise=config.advertise,
        port=port,
        pause=config.announce_seconds,
        beat=config.beat_seconds,
    )
    daemon.health.set("attacher", False, "volume-attacher was not read yet")
    daemon.health.set("kubernetes", False, "the API server was not read yet")
    mirror.subscribe(lambda _volume: daemon.health.set("attacher", mirror.synced, "volume-attacher does not answer"))

    async def kubernetes_read() -> None:
        await nodes.synced()
        await attachments.synced()
        daemon.health.set("kubernetes", True)

    daemon.spawn(nodes.run(), name="own node")
    daemon.spawn(attachments.run(), name="volume attachments")
    daemon.spawn(kubernetes_read(), name="first reading of Kubernetes")
    daemon.spawn(mirror.run(), name="attachments here")
    daemon.spawn(convergence.run(), name="convergence")
    daemon.spawn(users.run(), name="telling pods")
    daemon.spawn(announcer.run(), name="announcement")
    daemon.spawn(health.run(), name="health of the attachments")


def main() -> None:
    run("csi-node-dpu", CsiNodeDpuConfig, start)
