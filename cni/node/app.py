"""cni-node: puts the rooms of this package together for one machine, in the mode it is configured for."""

import asyncio
import logging
from pathlib import Path

from cni.link.service import LinkService, error_table
from cni.node import health_checks, management_port
from cni.node.adding import Adding, Limits, is_older_sandbox
from cni.node.attachments import AttachmentStore
from cni.node.config import CniNodeConfig
from cni.node.container import ContainerSide
from cni.node.devices import usable
from cni.node.dpus import ANNOTATION, HOST_LABEL, Dpus, server_name
from cni.node.errors import CniNodeError
from cni.node.hardware_offload import HardwareOffload
from cni.node.health_checks import HealthChecks
from cni.node.heaps import give_back, limit_heaps
from cni.node.held_devices import HeldDevices
from cni.node.host_pods import HostPods
from cni.node.keeper import Keeper
from cni.node.keyed_locks import KeyedLocks
from cni.node.link_events import LinkEvents
from cni.node.link_messages import to_message
from cni.node.management_port import ManagementPort
from cni.node.modes import MODES
from cni.node.netns import NetworkNamespace, node_namespace
from cni.node.offload_figures import ANNOTATION as OFFLOAD_ANNOTATION
from cni.node.offload_figures import OffloadFigures
from cni.node.offload_page import PATH, OffloadPage
from cni.node.ovn_controller import OvnController
from cni.node.ovs_side import LocalOvsSide, OvsSide
from cni.node.own_node import OwnNode
from cni.node.own_pods import OwnPods
from cni.node.pods import Pods
from cni.node.remote_side import RemoteOvsSide
from cni.node.removing import Removing
from cni.node.representors import Representors
from cni.node.request import Call
from cni.node.server import CniServer
from cni.node.switch import Switch
from cni.node.switch_flows import SwitchFlows
from cni.node.vswitchd import Vswitchd
from dpu_offload_stubs.link.v1 import link_pb2, link_pb2_grpc
from foundation.daemon.running import Daemon, StartError, run
from foundation.daemon.serving import TlsFiles, listen_tls, make_server
from foundation.kube.client import KubeClient
from foundation.kube.errors import KubeError
from foundation.kube.resources import NODES
from foundation.ovsdb import OvsdbError
from foundation.pci import Sysfs

_log = logging.getLogger(__name__)
_OVS_START_SECONDS = 30.0
_ANNOUNCE_SECONDS = 1.0


async def start(config: CniNodeConfig, daemon: Daemon) -> None:
    try:
        await _Assembly(config, daemon).start()
    except (CniNodeError, OvsdbError, KubeError) as error:
        raise StartError(str(error)) from error


class _Assembly:
    def __init__(self, config: CniNodeConfig, daemon: Daemon) -> None:
        self._config = config
        self._daemon = daemon
        self._mode = MODES[config.mode]
        self._sysfs = Sysfs(Path(config.sysfs_root))
        self._store = AttachmentStore(Path(config.state_dir) / "attachments")
        self._locks = KeyedLocks()
        self._vswitchd = Vswitchd(Path(config.ovs_run_dir))
        self._controller = OvnController(Path(config.ovn_run_dir))
        link = config.link
        self._tls = TlsFiles(ca=link.tls.ca, certificate=link.tls.certificate, key=link.tls.key)

    async def start(self) -> None:
        config, daemon, mode = self._config, self._daemon, self._mode
        await self._store.open()
        node = node_namespace(config.node_netns)
        daemon.on_stop(lambda: asyncio.to_thread(node.close))
        events = LinkEvents(node)
        await events.open()
        client = await KubeClient.connect(config.kubeconfig)
        daemon.on_stop(client.close)
        switch = await self._switch() if mode.has_switch else None
        container = ContainerSide(node, self._sysfs, events, userspace=lambda: switch is None or switch.userspace)
        local = self._local_side(node, events, switch)
        dpus = self._dpus(client) if mode.needs_dpu else None
        ovs: OvsSide = local if local is not None else self._remote_side(dpus)
        keeper = Keeper(
            store=self._store,
            locks=self._locks,
            container=container,
            ovs=ovs,
            switch=switch,
            sweep_seconds=config.sweep_seconds,
        )
        self._keeper = keeper
        pods = Pods(client, config.node_name)
        removing = Removing(store=self._store, locks=self._locks, container=container, ovs=ovs, later=keeper.add_later)
        adding = Adding(
            store=self._store,
            pods=pods,
            sysfs=self._sysfs,
            container=container,
            ovs=ovs,
            removing=removing,
            node_inode=node.inode,
            limits=Limits(assignment=config.assignment_seconds, flows=config.flows_seconds),
            held=HeldDevices(
                pods,
                socket=Path(config.pod_resources.socket),
                resource=config.pod_resources.resource,
                usable=lambda device: usable(self._sysfs, device),
                taken=self._taken,
            ),
        )
        own = OwnPods(
            store=self._store,
            locks=self._locks,
            pods=pods,
            container=container,
            ovs=ovs,
            adding=adding,
            removing=removing,
            flows_problem=self._flows_problem,
        )
        host = self._host_pods(local) if mode.serves_host and local is not None else None
        keeper.keep(removing, host)
        daemon.spawn(pods.run(), name="pods")
        events.subscribe(keeper.note, on_loss=keeper.add_all)
        if switch is not None:
            switch.subscribe(keeper.note_port, replaced=keeper.add_all)
        daemon.spawn(events.run(), name="link events")
        daemon.spawn(keeper.run(), name="keeper")
        keeper.add_all()
        offload = None
        if local is not None and switch is not None:
            offload = self._keep_offload(node, client, switch, local)
        daemon.endpoint.serve(PATH, OffloadPage(config.node_name, self._store, ovs, offload))
        self._follow_node(node, client, events, switch, ovs)
        if host is not None:
            await self._serve_host(host, client, switch)
        server = CniServer(own, keeper.add_all)
        await server.listen(Path(config.cni_socket))
        daemon.on_stop(server.stop)
        give_back()

    def _taken(self, call: Call, device: str) -> bool:
        other = self._store.using(device)
        return other is not None and not is_older_sandbox(other, call)

    async def _flows_problem(self) -> str:
        """A host's flows are its DPU's, whose health says it."""
        if not self._mode.has_switch:
            return ""
        return await self._controller.problem()

    async def _switch(self) -> Switch:
        switch = Switch(self._config.ovsdb, bridge=self._config.integration_bridge)
        await switch.start(deadline=_OVS_START_SECONDS)
        self._daemon.on_stop(switch.stop)
        return switch

    def _local_side(self, node: NetworkNamespace, events: LinkEvents, switch: Switch | None) -> LocalOvsSide | None:
        if switch is None:
            return None
        representors = Representors(self._sysfs, host_controller=self._config.link.host_controller)
        events.subscribe(representors.note, on_loss=representors.scan)
        representors.scan()
        representors.subscribe(lambda: self._keeper.add_functions())
        local = LocalOvsSide(
            switch,
            representors,
            node,
            representor_seconds=self._config.representor_seconds,
            vswitchd=self._vswitchd,
            controller=self._controller,
            flows=SwitchFlows(switch, self._vswitchd, lambda name: self._sysfs.switch_port(name)[0]),
        )
        events.subscribe(local.note, on_loss=local.note_loss)
        return local

    def _follow_node(
        self, node: NetworkNamespace, client: KubeClient, events: LinkEvents, switch: Switch | None, ovs: OvsSide
    ) -> None:
        """Does what the Node's annotations ask of the machine itself."""
        daemon, own = self._daemon, OwnNode(client, self._config.node_name)
        if switch is not None and self._config.management_port:
            port = ManagementPort(
                switch,
                node,
                name=self._config.management_port,
                changed=lambda problem: daemon.health.set("management port", not problem, problem),
            )
            own.follow(management_port.ANNOTATION, port.want)
            events.subscribe(port.note, on_loss=lambda: None)
            daemon.spawn(port.run(), name="management port")
        checks = HealthChecks(node, problem=ovs.problem)
        own.follow(health_checks.ANNOTATION, checks.want)
        daemon.spawn(checks.run(), name="health checks")
        daemon.spawn(own.run(), name="own node")

    def _keep_offload(
        self, node: NetworkNamespace, client: KubeClient, switch: Switch, local: LocalOvsSide
    ) -> HardwareOffload:
        config, daemon = self._config, self._daemon

        async def write(text: str) -> None:
            body = {"metadata": {"annotations": {OFFLOAD_ANNOTATION: text}}}
            await client.merge_patch(NODES, config.node_name, "", body)

        keeping = HardwareOffload(
            switch,
            self._vswitchd,
            node,
            store=self._store,
            ovs=local,
            hardware=config.offload.hardware,
            tc_policy=config.offload.tc_policy,
            changed=lambda problem: daemon.health.set("hardware offload", not problem, problem),
        )
        figures = OffloadFigures(self._store, local, seconds=config.offload.report_seconds, write=write)
        daemon.spawn(keeping.run(), name="hardware offload")
        daemon.spawn(figures.run(), name="offload figures")
        return keeping

    # --- host: the OVS side is a DPU's ------------------------------------------------------------------------------

    def _dpus(self, client: KubeClient) -> Dpus:
        link = self._config.link
        dpus = Dpus(
            self._config.node_name,
            tls=self._tls,
            wanted=self._wanted,
            synced=lambda: self._keeper.add_unfinished(),
            accept_seconds=link.accept_seconds,
        )
        self._daemon.on_stop(dpus.stop)
        if link.peers:
            dpus.use(link.peers)
        else:
            self._daemon.spawn(dpus.follow(client), name="DPU nodes")
        return dpus

    def _remote_side(self, dpus: Dpus | None) -> RemoteOvsSide:
        assert dpus is not None
        self._remote = RemoteOvsSide(
            dpus.clients,
            functions=self._config.link.functions,
            unplug_seconds=self._config.unplug_seconds,
            missing=dpus.missing,
        )
        return self._remote

    def _wanted(self, dpu: str) -> list[link_pb2.Attachment]:
        ready = (one for one in self._store if one.phase == "ready" and one.function is not None)
        return [to_message(one) for one in ready if self._remote.dpu_of(one) == dpu]

    # --- DPU: serves a host ----------------------------------------------------------------------------------------

    def _host_pods(self, local: LocalOvsSide) -> HostPods:
        return HostPods(
            node=self._config.node_name,
            store=self._store,
            locks=self._locks,
            ovs=local,
            host_controller=self._config.link.host_controller,
            serials=self._serials(),
            later=self._keeper.add_later,
            flows_problem=lambda: self._controller.last,
        )

    def _serials(self) -> tuple[str, ...]:
        uplinks = {self._sysfs.netdev(name).pci for _, _, name in self._sysfs.switch_ports()}
        serials = {self._sysfs.vpd(bdf).fields.get("SN", "") for bdf in uplinks if bdf}
        return tuple(sorted(serials - {""}))

    async def _serve_host(self, host: HostPods, client: KubeClient, switch: Switch | None) -> None:
        config, daemon = self._config, self._daemon
        server = make_server(errors=error_table(), service="cni-link", callers={"cni-node"})
        link_pb2_grpc.add_LinkServicer_to_server(LinkService(host), server)
        port = listen_tls(server, config.link.listen, self._tls)
        await server.start()
        daemon.on_stop(lambda: server.stop(0.5))
        daemon.health.set("host", False, "the host is not known yet")
        if switch is not None:
            switch.on_state(host.note_health)
        daemon.spawn(self._controller.watch(host.note_health), name="ovn-controller")
        daemon.spawn(self._follow_host(host, client, port), name="host")

    async def _follow_host(self, host: HostPods, client: KubeClient, port: int) -> None:
        """Learns whom to serve, announces where, then follows that host's pods; for ever."""
        name = self._config.host_node or await self._host_of_label(client)
        cluster = client
        if self._config.host_kubeconfig:
            cluster = await KubeClient.connect(self._config.host_kubeconfig)
            self._daemon.on_stop(cluster.close)
        pods = Pods(cluster, name)
        following = asyncio.create_task(pods.run(), name=f"pods of {name}")
        try:
            await asyncio.wait({asyncio.ensure_future(pods.synced()), following}, return_when=asyncio.FIRST_COMPLETED)
            host.serve(pods)
            host.note_health()
            await self._announce(client, port)
            await following
        finally:
            following.cancel()

    async def _host_of_label(self, client: KubeClient) -> str:
        while True:
            try:
                node = await client.get(NODES, self._config.node_name)
                if name := node.metadata.labels.get(HOST_LABEL, ""):
                    return name
                reason = f"node {node.metadata.name} has no label {HOST_LABEL}; set it, or host_node"
            except KubeError as error:
                reason = str(error)
            self._daemon.health.set("host", False, reason)
            await asyncio.sleep(_ANNOUNCE_SECONDS)

    async def _announce(self, client: KubeClient, port: int) -> None:
        """Tells the host by our node's annotation where we serve; tried until it is written."""
        node_name = self._config.node_name
        while True:
            try:
                address = self._config.link.advertise or f"{await self._internal_address(client)}:{port}"
                text = f'{{"endpoint":"{address}","serverName":"{server_name(node_name)}"}}'
                await client.merge_patch(NODES, node_name, "", {"metadata": {"annotations": {ANNOTATION: text}}})
            except KubeError as error:
                self._daemon.health.set("host", False, f"cannot announce the link on node {node_name}: {error}")
                await asyncio.sleep(_ANNOUNCE_SECONDS)
            else:
                self._daemon.health.set("host", True)
                return

    async def _internal_address(self, client: KubeClient) -> str:
        node = await client.get(NODES, self._config.node_name)
        addresses = node.status.addresses or ()
        found = next((one.address for one in addresses if one.type == "InternalIP"), self._config.node_name)
        return f"[{found}]" if ":" in found else found


def main() -> None:
    # A thread per pod's namespace comes and goes; with a heap each, a burst of pods would cost 10 MiB for good.
    limit_heaps()
    run("cni-node", CniNodeConfig, start)


if __name__ == "__main__":
    main()
