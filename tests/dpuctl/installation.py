"""A healthy installation in small: API server, OVN's and OVS' databases with a real ovn-controller, an SPDK target,
a DPU's sysfs, certificates and endpoints. What runs on machines is looked at as dpuctl does it there."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc.aio
import msgspec
import yaml

from cni.node.assignment import Assignment
from cni.node.attachments import Attachment, FunctionRef
from csi import identity
from dpu_offload_stubs.attacher.v1 import attacher_pb2, attacher_pb2_grpc
from dpuctl.doctor.check import Verdict, View, examine
from dpuctl.doctor.checks import ALL
from dpuctl.inspection import daemons, machine
from dpuctl.inspection.facts import Machine
from dpuctl.machines import wanted_dials
from dpuctl.snapshot import Snapshot, read
from foundation.daemon.serving import ErrorTable, TlsFiles, listen_tls, listen_unix, make_server
from foundation.kube.client import KubeClient
from foundation.ovsdb import OvsdbSession, Uuid, fresh_name
from foundation.ovsdb import operations as op
from foundation.spdk.client import SpdkClient
from lab import objects
from lab.apiserver.server import ApiServer
from lab.certificates import Authority
from lab.hardware.sysfs import PciEntry, SysfsTree
from lab.layout import DPU_NODE, HOST_NODE
from lab.network.commands import run
from lab.ports import free_port
from lab.setting import create_objects
from tests.csi_rig.target import LVSTORE, Target
from tests.dpuctl.cluster_objects import ATTACHMENT, PF, POD, REPRESENTOR, VF, VOLUME, ClusterObjects


class StandInAttacher(attacher_pb2_grpc.VolumeAttacherServicer):
    """volume-attacher's contract with a list of volumes that a test may change."""

    def __init__(self) -> None:
        self.volumes: dict[str, attacher_pb2.Attachment] = {}
        self.detached: list[str] = []

    async def List(self, request: attacher_pb2.ListRequest, context: object) -> attacher_pb2.ListResponse:
        return attacher_pb2.ListResponse(attachments=self.volumes.values())

    async def Detach(self, request: attacher_pb2.DetachRequest, context: object) -> attacher_pb2.DetachResponse:
        self.volumes.pop(request.volume_id, None)
        self.detached.append(request.volume_id)
        return attacher_pb2.DetachResponse()

    async def Inventory(
        self, request: attacher_pb2.InventoryRequest, context: object
    ) -> attacher_pb2.InventoryResponse:
        return attacher_pb2.InventoryResponse(card="spdk_vfiouser", functions_total=8, functions_free=7)


def disk(volume: str = VOLUME, *, connected: bool = True) -> attacher_pb2.Attachment:
    path = attacher_pb2.Path(transport=attacher_pb2.TRANSPORT_TCP, address="192.0.2.10", port=4420)
    state = attacher_pb2.ATTACHMENT_STATE_ATTACHED if connected else attacher_pb2.ATTACHMENT_STATE_DEGRADED
    return attacher_pb2.Attachment(
        volume_id=volume,
        state=state,
        reason="" if connected else "1 of 1 paths is down",
        function=attacher_pb2.Function(physical_function=0, virtual_function=1),
        paths=[attacher_pb2.PathState(path=path, connected=connected)],
    )


class Installation(ClusterObjects):
    """`await up()`, `await down()`; `examine()` does what `dpuctl doctor` does."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = Authority(directory / "pki")
        self.target = Target(directory)
        self.tree = SysfsTree(directory / "sys")
        self.attacher = StandInAttacher()
        self.settings: dict[str, dict[str, Any]] = {}
        self.kubeconfig = directory / "kubeconfig"
        self._stack = contextlib.AsyncExitStack()
        self._controller: subprocess.Popen[bytes] | None = None

    # --- life -------------------------------------------------------------------------------------------------------

    async def up(self) -> None:
        self._sysfs()
        await asyncio.gather(self._databases(), self._storage(), self._cluster())
        await self._endpoints()
        self._settings()
        await self.make_objects()
        self.keep_attachment()

    async def down(self) -> None:
        await self._stack.aclose()

    async def _cluster(self) -> None:
        server = await self._stack.enter_async_context(ApiServer())
        server.kubeconfig(self.kubeconfig)
        client = await KubeClient.connect(kubeconfig=str(self.kubeconfig))
        self.client = await self._stack.enter_async_context(client)
        await create_objects(self.client, class_parameters={})

    async def _databases(self) -> None:
        """One server for all three databases; a real ovn-controller makes br-int and the chassis."""
        names = {"conf": "/usr/share/openvswitch/vswitch.ovsschema", "sb": "/usr/share/ovn/ovn-sb.ovsschema"}
        names["nb"] = "/usr/share/ovn/ovn-nb.ovsschema"
        for name, schema in names.items():
            await run("ovsdb-tool", "create", self.directory / f"{name}.db", schema)
        self.database = f"unix:{self.directory}/ovsdb.sock"
        self._serve_databases(*names)
        self.ovs = OvsdbSession(self.database, "Open_vSwitch")
        self.ovs.monitor({"Interface": ["name"], "Bridge": ["name", "ports"], "Open_vSwitch": ["external_ids"]})
        self.sb = OvsdbSession(self.database, "OVN_Southbound")
        self.sb.monitor({"Chassis": ["name"]})
        for session in (self.ovs, self.sb):
            await session.start(deadline=20)
            self._stack.push_async_callback(session.stop)
        await self.sb.transact(op.insert("SB_Global", {}))
        ids = {
            "system-id": DPU_NODE,
            "hostname": DPU_NODE,
            "ovn-remote": self.database,
            "ovn-encap-type": "geneve",
            "ovn-encap-ip": "127.0.0.1",
        }
        settings = {"hw-offload": "true"}
        await self.ovs.transact(op.insert("Open_vSwitch", {"external_ids": ids, "other_config": settings}))
        self.start_controller()
        self._stack.push_async_callback(self.stop_controller)
        await self.sb.until("Chassis", lambda row: bool(row["name"] == DPU_NODE), deadline=30)
        await self.ovs.until("Bridge", lambda row: bool(row["name"] == "br-int"), deadline=30)
        await self.add_port(REPRESENTOR, attachment=ATTACHMENT, port=f"{objects.NAMESPACE}_{POD}", uid="")

    def _serve_databases(self, *names: str) -> None:
        server = subprocess.Popen(
            [
                "ovsdb-server",
                *(f"{self.directory}/{name}.db" for name in names),
                f"--remote=punix:{self.directory}/ovsdb.sock",
                f"--unixctl={self.directory}/ovsdb.ctl",
                "-vconsole:off",
            ],
            stdin=subprocess.DEVNULL,
        )
        self._stack.callback(server.wait)
        self._stack.callback(server.kill)

    def start_controller(self) -> None:
        text = str(self.directory)
        keep_here = dict.fromkeys(("OVN_RUNDIR", "OVN_LOGDIR", "OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR"), text)
        self._controller = subprocess.Popen(
            ["ovn-controller", self.database, "-vconsole:off"],
            stdin=subprocess.DEVNULL,
            env={**os.environ, **keep_here},
        )

    async def stop_controller(self) -> None:
        """At once, as a crash: what it has written stays."""
        process, self._controller = self._controller, None
        if process is not None:
            process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(process.wait)
            for left in self.directory.glob("ovn-controller*.ctl"):
                left.unlink()

    async def add_port(self, interface: str, *, attachment: str, port: str, uid: str) -> None:
        """A port as cni-node plugs it, with what ovs-vswitchd and ovn-controller would add."""
        ids = {"iface-id": port, "dpu-offload/attachment": attachment, "ovn-installed": "true"}
        ids |= {"iface-id-ver": uid} if uid else {}
        (bridge,) = (key for key, row in self.ovs.rows("Bridge").items() if row["name"] == "br-int")
        row = {"name": interface, "external_ids": ids, "mtu": 1400, "ofport": 5}
        inner, outer = fresh_name(), fresh_name()
        await self.ovs.transact(
            op.insert("Interface", row, uuid_name=inner),
            op.insert("Port", {"name": interface, "interfaces": inner}, uuid_name=outer),
            op.mutate("Bridge", bridge, [("ports", "insert", outer)]),
        )

    async def set_interface(self, name: str, **columns: Any) -> None:
        await self.ovs.transact(op.update("Interface", [("name", "==", name)], columns))

    async def remove_port(self, name: str) -> None:
        (bridge,) = (key for key, row in self.ovs.rows("Bridge").items() if row["name"] == "br-int")
        (found,) = await self.ovs.transact(op.select("Port", [("name", "==", name)], ["_uuid"]))
        for row in found.rows:
            await self.ovs.transact(op.mutate("Bridge", bridge, [("ports", "delete", Uuid(row["_uuid"][1]))]))

    def _sysfs(self) -> None:
        self.tree.add_function(PciEntry(PF, vendor="0x15b3", device="0xa2dc", class_code="0x020000"))
        self.tree.add_function(PciEntry(VF, vendor="0x15b3", device="0x101e", class_code="0x020000"))
        self.tree.add_virtual_functions(PF, [VF])
        self.tree.add_netdev("p0", pci=PF, port_name="p0", switch_id="aa01")
        self.tree.add_netdev(REPRESENTOR, pci=PF, port_name="c1pf0vf0", switch_id="aa01")

    async def _storage(self) -> None:
        await self.target.start()
        self._stack.push_async_callback(self.target.stop)
        self.port = free_port()
        self.nqn = identity.subsystem_nqn(VOLUME)
        self.host_nqn = identity.host_nqn(DPU_NODE)
        lvol = VOLUME.rpartition(".")[2]
        async with SpdkClient(self.target.address) as client:
            await client.call("nvmf_create_transport", {"trtype": "TCP"})
            created = {"lvs_name": LVSTORE, "lvol_name": lvol, "size_in_mib": 4, "thin_provision": True}
            await client.call("bdev_lvol_create", created)
            await client.call("nvmf_create_subsystem", {"nqn": self.nqn, "allow_any_host": False})
            namespace = {"bdev_name": f"{LVSTORE}/{lvol}", "nsid": 1}
            await client.call("nvmf_subsystem_add_ns", {"nqn": self.nqn, "namespace": namespace})
            address = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": str(self.port)}
            await client.call("nvmf_subsystem_add_listener", {"nqn": self.nqn, "listen_address": address})
        await self.spdk("nvmf_subsystem_add_host", nqn=self.nqn, host=self.host_nqn)

    async def spdk(self, method: str, **params: Any) -> None:
        async with SpdkClient(self.target.address) as client:
            await client.call(method, params)

    async def _endpoints(self) -> None:
        """What the DPU serves: the link and csi-node-dpu (TLS only matters here), volume-attacher's socket."""
        self.ports = {}
        for component in ("cni-node", "csi-node-dpu"):
            server = make_server(errors=ErrorTable({}), service=component)
            self.ports[component] = listen_tls(server, "127.0.0.1:0", self.tls(DPU_NODE, component))
            await self._serve(server)
        server = make_server(errors=ErrorTable({}), service="volume-attacher")
        attacher_pb2_grpc.add_VolumeAttacherServicer_to_server(self.attacher, server)
        listen_unix(server, self.directory / "attacher.sock")
        await self._serve(server)
        self.attacher.volumes = {VOLUME: disk()}

    async def _serve(self, server: grpc.aio.Server) -> None:
        await server.start()
        self._stack.push_async_callback(server.stop, 0)

    def tls(self, node: str, component: str) -> TlsFiles:
        files = self.authority.issue(node=node, component=component)
        return TlsFiles(str(files.ca), str(files.certificate), str(files.key))

    # --- configuration ----------------------------------------------------------------------------------------------

    def _settings(self) -> None:
        def tls(node: str, component: str) -> dict[str, str]:
            files = self.tls(node, component)
            return {"ca": files.ca, "certificate": files.certificate, "key": files.key}

        spdk, kubeconfig = self.target.address, str(self.kubeconfig)
        portal = {"transport": "tcp", "address": "127.0.0.1", "port": self.port}
        pools = {"p0": {"address": spdk, "lvstore": LVSTORE, "portals": [portal]}}
        self.settings = {
            "cni-controller": {"kubeconfig": kubeconfig, "northbound": {"remotes": self.database}},
            "cni-node": {
                "mode": "dpu",
                "node_name": DPU_NODE,
                "kubeconfig": kubeconfig,
                "state_dir": str(self.directory / "state"),
                "sysfs_root": str(self.tree.root),
                "ovsdb": self.database,
                "ovn_run_dir": str(self.directory),
                "link": {"tls": tls(DPU_NODE, "cni-node")},
            },
            "cni-node@host": {
                "mode": "host",
                "node_name": HOST_NODE,
                "kubeconfig": kubeconfig,
                "state_dir": str(self.directory / "none"),
                "sysfs_root": str(self.directory / "none"),
                "link": {"tls": tls(HOST_NODE, "cni-node")},
            },
            "csi-node-dpu": {
                "node_name": DPU_NODE,
                "kubeconfig": kubeconfig,
                "tls": tls(DPU_NODE, "csi-node-dpu"),
                "attacher": f"unix:{self.directory}/attacher.sock",
            },
            "volume-attacher": {
                "socket": f"{self.directory}/attacher.sock",
                "bridge": f"unix:{self.directory}/opi.sock",
            },
            "opi-bridge": {"socket": f"{self.directory}/opi.sock", "spdk": spdk},
            "csi-controller": {
                "kubeconfig": kubeconfig,
                "tls": tls("lab", "csi-controller"),
                "backends": {"main": {"kind": "spdk", "pools": pools}},
            },
        }

    def files(self) -> dict[str, Path]:
        """The configuration files of all daemons, written anew."""
        found = {}
        for name, settings in self.settings.items():
            found[name] = self.directory / f"{name}.yaml"
            found[name].write_text(yaml.safe_dump(settings))
        return found

    def keep_attachment(self, *, vf: int = 0) -> None:
        """The pod's attachment as cni-node writes it down; `vf` of the host's function."""
        attachment = Attachment(
            id=ATTACHMENT,
            generation=1,
            phase="ready",
            kind="vf",
            container_id="c",
            ifname="eth0",
            network="default",
            pod_namespace=objects.NAMESPACE,
            pod_name=POD,
            pod_uid="",
            port=f"{objects.NAMESPACE}_{POD}",
            assignment=Assignment(),
            function=FunctionRef(address=VF, pf=0, vf=vf),
            link=REPRESENTOR,
            host=HOST_NODE,
        )
        body = msgspec.json.encode(attachment)
        path = self.directory / "state" / "attachments" / f"{ATTACHMENT}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)

    # --- looking ----------------------------------------------------------------------------------------------------

    async def machine(self, seen: Snapshot) -> Machine:
        """What `dpuctl inspect` says, with the daemons named by their files."""
        installed = [daemons.named(name.partition("@")[0], file) for name, file in self.files().items()]
        return await machine.inspect(installed, wanted_dials(seen))

    async def view(self, changed: Mapping[str, Any] | None = None) -> View:
        """`changed`: fields of the machine that differ from what it shows, e.g. its clock."""
        found = await self.machine(await read(self.client))
        return View(await read(self.client), [msgspec.structs.replace(found, **(changed or {}))])

    async def examine(self, changed: Mapping[str, Any] | None = None) -> list[Verdict]:
        return examine(await self.view(changed), ALL)
