"""Machines on real OVN: cni-controller and three cni-nodes as processes, with stand-ins for KubeVirt and guests."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from foundation.kube.models.core import Pod as KubePod
from foundation.kube.resources import PODS, VIRTUAL_MACHINE_INSTANCES
from foundation.ovsdb import OvsdbSession, Row
from lab.kubevirt.cluster import Machine
from lab.kubevirt.guest import Guest
from lab.network import namespaces
from tests.node.stage import DEFAULT, DPU, HOST, MODES, Pod, Stage, vf_address

CONTROLLER = "controller"
RANGES = ["10.244.0.0/16", "fd44::/48"]
PORT_BINDING = ["logical_port", "chassis", "additional_chassis", "up", "options"]


class Rig:
    """`stage` has the network, the API server, the cni-nodes; `binding` shows where OVN has a port."""

    def __init__(self, directory: Path) -> None:
        self.stage = Stage(directory, vfs=6, vfio=1, module="cni.node.app")
        self.stage.prefix = f"kv{os.getpid()}"  # cni-node's own tests may have a stage in this process
        self._numbers = 0
        self._sandboxes: dict[str, Pod] = {}

    async def up(self) -> None:
        await self.stage.up()
        self.southbound = OvsdbSession(self.stage.network.central.sb, "OVN_Southbound")
        self.southbound.monitor({"Port_Binding": PORT_BINDING, "Chassis": ["name"]})
        await self.southbound.start()
        self._write_controller()
        self.start_controller()
        await asyncio.gather(*(self.stage.start(node) for node in MODES))
        await self.stage.settled(seconds=90)
        await self.controller_ready()

    async def down(self) -> None:
        await self.southbound.stop()
        await self.stage.down()

    # The controller

    def _write_controller(self) -> None:
        config = {
            "kubeconfig": str(self.stage.directory / "kubeconfig"),
            "northbound": {"remotes": self.stage.network.central.nb},
            # The one replica keeps its identity through a restart: no wait for the lease.
            "leader_election": {"namespace": "default", "identity": "rig"},
            "cluster": {"ranges": RANGES, "dns": {"servers": ["10.96.0.10", "fd96::a"]}},
            "http": f"unix:{self._http}",
        }
        (self.stage.directory / "controller.yaml").write_text(yaml.safe_dump(config))

    @property
    def _http(self) -> Path:
        return Path("/run") / self.stage.prefix / "controller.http"

    def start_controller(self) -> None:
        script = Path(sys.executable).parent / "cni-controller"
        self.stage._spawn(CONTROLLER, [str(script), "--config", str(self.stage.directory / "controller.yaml")])

    async def controller_ready(self) -> None:
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self._http))) as session:
            async with asyncio.timeout(45):
                while True:
                    if self.stage.processes[CONTROLLER].poll() is not None:
                        raise AssertionError(f"cni-controller ended: {self.stage.log(CONTROLLER)[-2000:]}")
                    try:
                        async with session.get("http://cni-controller/readyz") as answer:
                            if answer.status == 200:
                                return
                    except aiohttp.ClientError:
                        pass
                    await asyncio.sleep(0.05)

    # Machines

    async def machine(self, body: Mapping[str, Any]) -> Machine:
        machine = Machine(self.stage.client, body)
        await machine.create()
        return machine

    def name(self, of: str) -> str:
        """A name that no other test has."""
        self._numbers += 1
        return f"{of}{self._numbers}"

    def guest(self, mac: str) -> Guest:
        return Guest(f"{self.stage.prefix}-{self.name('g')}", mac=mac)

    async def add(self, pod: KubePod, **more: Any) -> Pod:
        """What kubelet does for a new pod on its node; on the host it has a VF."""
        node, key = pod.spec.node_name, pod.metadata.name
        device = vf_address(self._free_vf()) if node == HOST else ""
        sandbox = Pod(
            node=node,
            name=key,
            uid=pod.metadata.uid,
            ip="",
            ip6="",
            mac="",
            container=secrets.token_hex(32),
            device=device,
            namespace=pod.metadata.namespace,
        )
        await self.stage.sandbox(sandbox)
        self._sandboxes[key] = sandbox
        return await self.stage.add(sandbox, **more)

    async def add_network(self, pod: KubePod, network: Mapping[str, Any], *, device: str = "", info: str = "") -> Pod:
        """What Multus does for one more network of a pod, under the interface name that KubeVirt has chosen."""
        meta = network["metadata"]
        first = self._sandboxes[pod.metadata.name]
        chosen = json.loads(pod.metadata.annotations["k8s.v1.cni.cncf.io/networks"])
        (interface,) = (each["interface"] for each in chosen if each["name"] == meta["name"])
        conf = json.loads(network["spec"]["config"])
        if device:
            conf |= {"deviceID": device, "runtimeConfig": {"deviceID": device, "CNIDeviceInfoFile": info}}
        sandbox = dataclasses.replace(first, ifname=interface, device=device, result={})
        answer = await self.stage.call("ADD", sandbox, conf)
        assert answer.status == 0, answer.message
        sandbox.result = answer.output
        return sandbox

    async def delete_network(self, sandbox: Pod, network: Mapping[str, Any]) -> None:
        """What Multus does when a network leaves a pod."""
        conf = {**json.loads(network["spec"]["config"]), "prevResult": sandbox.result}
        answer = await self.stage.call("DEL", sandbox, conf)
        assert answer.status == 0, answer.message

    def _free_vf(self) -> int:
        taken = {sandbox.device for sandbox in self._sandboxes.values()}
        return next(index for index in range(self.stage.vfs - self.stage.vfio) if vf_address(index) not in taken)

    async def add_at_last(self, pod: KubePod, *, seconds: float = 60.0) -> Pod:
        """As `add`, with a new sandbox after each failure, as kubelet tries."""
        async with asyncio.timeout(seconds):
            while True:
                try:
                    return await self.add(pod)
                except AssertionError:
                    await self.delete(pod)

    async def delete(self, pod: KubePod, *, seconds: float = 60.0) -> None:
        """What kubelet does for a pod that ends, until it succeeds."""
        sandbox = self._sandboxes.pop(pod.metadata.name, None)
        if sandbox is None:
            return
        async with asyncio.timeout(seconds):
            while (await self.stage.call("DEL", sandbox)).status:
                await asyncio.sleep(0.1)
        await remove(sandbox)

    async def given(self, pod: KubePod) -> dict[str, Any]:
        """Annotation pod-networks."""
        found = await self.stage.client.get(PODS, pod.metadata.name, pod.metadata.namespace)
        return dict(json.loads(found.metadata.annotations["dpu-offload.io/pod-networks"]))

    async def instance(self, machine: Machine) -> Any:
        return await self.stage.client.get(VIRTUAL_MACHINE_INSTANCES, machine.name, machine.namespace)

    async def peer(self, node: str = DPU) -> tuple[Pod, str]:
        """A plain pod on a node, with its address."""
        name = self.name("peer")
        made = await self.stage.client.create(
            PODS,
            {
                "metadata": {"name": name, "namespace": "default"},
                "spec": {"nodeName": node, "containers": [{"name": "c", "image": "none"}]},
            },
            "default",
        )
        sandbox = await self.add(made)
        return sandbox, str(sandbox.result["ips"][0]["address"]).partition("/")[0]

    # OVN's view

    async def bound(self, port: str, node: str, *, seconds: float = 30.0) -> None:
        """Returns when OVN has the port on this node's chassis, up, and on no other one."""
        chassis = {DEFAULT: DEFAULT, HOST: DPU, DPU: DPU}[node]

        def there(row: Row) -> bool:
            if row["logical_port"] != port or row["additional_chassis"] or not row["up"]:
                return False
            found = self.southbound.rows("Chassis").get(row["chassis"])
            return found is not None and found["name"] == chassis

        await self.southbound.until("Port_Binding", there, deadline=seconds)

    def bindings(self, port: str) -> list[Row]:
        return [row for row in self.southbound.rows("Port_Binding").values() if row["logical_port"] == port]


async def remove(sandbox: Pod) -> None:
    """A sandbox's namespace."""
    await namespaces.remove(sandbox.netns)
