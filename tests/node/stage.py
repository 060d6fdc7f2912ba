"""One machine room for cni-node's tests: real OVN in namespaces, an API server, cni-node processes in all three modes.

The logical network is one switch, `lan` (10.77.0.0/16, fd77::/64), written here as cni-controller would write it, so
that these tests need no controller.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from foundation.kube.client import KubeClient
from foundation.kube.errors import NotFound
from foundation.kube.resources import NODES, PODS
from foundation.ovsdb import OvsdbSession, fresh_name
from foundation.ovsdb import operations as op
from lab.certificates import Authority
from lab.hardware.sysfs import NETWORK_CLASS, PciEntry, SysfsTree
from lab.network import Network, NetworkSpec, NodeSpec, VirtualFunction, namespaces
from lab.ports import free_port

DEFAULT, HOST, DPU = "node-default", "node-host", "node-dpu"
MODES = {DEFAULT: "default", HOST: "host", DPU: "dpu"}
SWITCH_ID = "e2a1c4000300bf03"
PF = "0000:03:00.0"
ROOT = Path(__file__).parents[2]
BINARY = ROOT / "cni/bin/dpu-offload"


def vf_address(index: int) -> str:
    return f"0000:03:{(index + 2) >> 3:02x}.{(index + 2) & 7}"


def vf_netdev(index: int) -> str:
    return f"enp3s0f0v{index}"


@dataclasses.dataclass
class Answer:
    status: int
    output: dict[str, Any]

    @property
    def code(self) -> int:
        return int(self.output.get("code", 0))

    @property
    def message(self) -> str:
        return f"{self.output.get('msg', '')} ({self.output.get('details', '')})"


@dataclasses.dataclass
class Pod:
    """A pod that exists in Kubernetes and OVN, with one sandbox."""

    node: str
    name: str
    uid: str
    ip: str
    ip6: str
    mac: str
    container: str
    device: str = ""
    ifname: str = "eth0"
    namespace: str = "default"
    result: dict[str, Any] = dataclasses.field(default_factory=dict)
    mtu: int = 1400

    @property
    def netns(self) -> str:
        return f"cni-{self.container[:12]}"

    @property
    def netns_path(self) -> str:
        return f"/run/netns/{self.netns}"

    @property
    def port(self) -> str:
        return f"{self.namespace}_{self.name}"

    def next_sandbox(self) -> Pod:
        return dataclasses.replace(self, container=secrets.token_hex(32), result={})


class Stage:
    """`vfs` functions on the host, the last `vfio` of them bound to vfio-pci; `module` is run as cni-node."""

    def __init__(self, directory: Path, *, vfs: int = 8, vfio: int = 2, module: str = "tests.node.faulty_node") -> None:
        self.directory = directory
        self.vfs = vfs
        self.vfio = vfio
        self.module = module
        self.prefix = f"nt{os.getpid()}"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.sysfs = {node: SysfsTree(directory / "sys" / node) for node in MODES}
        self._numbers = itertools.count(10)
        self._pods: list[Pod] = []

    # --- up and down -----------------------------------------------------------------------------------------------

    async def up(self) -> None:
        run = Path("/run") / self.prefix
        nodes = (NodeSpec(DEFAULT), NodeSpec(DPU), NodeSpec(HOST, "plain"))
        self.network = await Network.up(NetworkSpec(directory=run, prefix=self.prefix, nodes=nodes))
        await self.network.add_virtual_functions(*(self._vf(index) for index in range(self.vfs)))
        self._lay_out()
        self.northbound = OvsdbSession(self.network.central.nb, "OVN_Northbound")
        self.northbound.monitor({"Logical_Switch": ["name", "ports"], "Logical_Switch_Port": ["name", "up"]})
        await self.northbound.start()
        await self.northbound.transact(op.insert("Logical_Switch", {"name": "lan"}))
        self.authority = Authority(self.directory / "pki")
        await self._start_api_server()
        self.client = await KubeClient.connect(str(self.directory / "kubeconfig"))
        for node in MODES:
            labels = {"dpu-offload.io/mode": MODES[node]}
            if node == DPU:
                labels["dpu-offload.io/host-node"] = HOST
            await self.client.create(NODES, {"metadata": {"name": node, "labels": labels}})

    async def down(self) -> None:
        for name in tuple(self.processes):
            self.stop(name)
        for pod in self._pods:
            await namespaces.remove(pod.netns)
        await self.client.close()
        await self.northbound.stop()
        await self.network.down()

    def _vf(self, index: int) -> VirtualFunction:
        return VirtualFunction(
            host=HOST, netdev=vf_netdev(index), dpu=DPU, representor=f"pf0vf{index}", mac=f"02:bf:03:00:00:{index:02x}"
        )

    def _lay_out(self) -> None:
        host, dpu = self.sysfs[HOST], self.sysfs[DPU]
        for tree in self.sysfs.values():
            tree.root.mkdir(parents=True, exist_ok=True)
        host.add_function(PciEntry(PF, vendor="0x15b3", device="0xa2dc", class_code=NETWORK_CLASS, driver="mlx5_core"))
        addresses = [vf_address(index) for index in range(self.vfs)]
        for index, address in enumerate(addresses):
            entry = PciEntry(
                address,
                vendor="0x15b3",
                device="0x101e",
                class_code=NETWORK_CLASS,
                driver="mlx5_core" if index < self.vfs - self.vfio else "vfio-pci",
                iommu_group=40 + index,
            )
            host.add_function(entry)
        host.add_virtual_functions(PF, addresses)
        for index in range(self.vfs - self.vfio):
            host.add_netdev(vf_netdev(index), pci=addresses[index])
        dpu.add_function(PciEntry(PF, vendor="0x15b3", device="0xa2d6", class_code=NETWORK_CLASS, driver="mlx5_core"))
        for index in range(self.vfs):
            dpu.add_netdev(f"pf0vf{index}", pci=PF, port_name=f"c1pf0vf{index}", switch_id=SWITCH_ID)

    async def _start_api_server(self) -> None:
        port = free_port()
        pki = self.authority.issue_names("127.0.0.1", file="apiserver")
        token = self.directory / "token"
        token.write_text("examiner,examiner,examiner,system:masters\n")
        command = [*("-m", "lab.apiserver", "--address", f"127.0.0.1:{port}")]
        command += ["--tls-cert", str(pki.certificate), "--tls-key", str(pki.key), "--token-file", str(token)]
        self._spawn("apiserver", command)
        await listening("127.0.0.1", port)
        cluster = {"server": f"https://127.0.0.1:{port}", "certificate-authority": str(pki.ca)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lab", "cluster": cluster}],
            "users": [{"name": "lab", "user": {"token": "examiner"}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
            "current-context": "lab",
        }
        (self.directory / "kubeconfig").write_text(yaml.safe_dump(config))

    def _spawn(self, name: str, arguments: Iterable[str], **environment: str) -> None:
        with open(self.directory / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, *arguments], cwd=ROOT, stdout=log, stderr=log, env={**os.environ, **environment}
            )

    # --- cni-node --------------------------------------------------------------------------------------------------

    def config(self, node: str, **more: Any) -> dict[str, Any]:
        identity = self.authority.issue(node=node, component="cni-node")
        tls = {"ca": str(identity.ca), "certificate": str(identity.certificate), "key": str(identity.key)}
        config: dict[str, Any] = {
            "mode": MODES[node],
            "node_name": node,
            "kubeconfig": str(self.directory / "kubeconfig"),
            "cni_socket": str(self.socket(node)),
            "state_dir": str(self.directory / "state" / node),
            "node_netns": str(self.network.namespace_path(node)),
            "sysfs_root": str(self.sysfs[node].root),
            "http": f"unix:{self.socket(node)}.http",
            "assignment_seconds": 20.0,
            "flows_seconds": 20.0,
            "representor_seconds": 1.0,
            "unplug_seconds": 10.0,
            "offload": {"report_seconds": 1.0},
            "pod_resources": {"socket": str(self.directory / "pod-resources.sock")},
            "link": {"tls": tls, "accept_seconds": 10.0, "listen": "127.0.0.1:0", "advertise": ""},
        }
        if node != HOST:
            chassis = self.network.chassis[node]
            directory = str(chassis.directory)
            config |= {"ovsdb": chassis.ovs, "ovs_run_dir": directory, "ovn_run_dir": directory}
        if node == DPU:
            self.link_port = getattr(self, "link_port", None) or free_port()
            config["link"] |= {
                "listen": f"127.0.0.1:{self.link_port}",
                "advertise": f"127.0.0.1:{self.link_port}",
            }
        return config | more

    def socket(self, node: str) -> Path:
        return Path("/run") / self.prefix / f"{node}.sock"

    async def start(self, node: str, *, wait: bool = True, **more: Any) -> None:
        """Starts a node's cni-node, with fault points that do nothing until asked. Returns when it is ready."""
        path = self.directory / f"{node}.yaml"
        path.write_text(yaml.safe_dump(self.config(node, **more)))
        self._spawn(
            node,
            ["-m", self.module, "--config", str(path)],
            CNI_NODE_FAULT=str(self.directory / f"{node}.fault"),
        )
        if wait:
            await self.ready(node)

    async def start_again(self, node: str, **more: Any) -> None:
        self.stop(node)
        await self.start(node, **more)

    def fault(self, node: str, text: str) -> None:
        """What happens next at a point of a faulty cni-node (tests/node/faulty_node.py); "" is nothing."""
        path = self.directory / f"{node}.fault"
        fresh = path.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(path)

    async def ready(self, node: str, *, seconds: float = 45.0) -> None:
        connector = aiohttp.UnixConnector(f"{self.socket(node)}.http")
        async with aiohttp.ClientSession(connector=connector) as session, asyncio.timeout(seconds):
            while True:
                if self.processes[node].poll() is not None:
                    raise AssertionError(f"cni-node on {node} ended: {self.log(node)[-2000:]}")
                try:
                    async with session.get("http://cni-node/readyz") as answer:
                        if answer.status == 200:
                            return
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.05)

    async def get(self, node: str, path: str) -> tuple[int, str]:
        """Status and body of a page of a cni-node's HTTP endpoint."""
        connector = aiohttp.UnixConnector(f"{self.socket(node)}.http")
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get(f"http://cni-node{path}") as answer,
        ):
            return answer.status, await answer.text()

    async def settled(self, *, seconds: float = 30.0) -> None:
        """Every daemon runs, and says that pods can be attached."""
        await asyncio.gather(*(self.start(node) for node in MODES if node not in self.processes))
        async with asyncio.timeout(seconds):
            for node in MODES:
                while (await self.call("STATUS", None, self.conf(), node=node)).status:
                    await asyncio.sleep(0.05)

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text()

    def kill(self, name: str) -> None:
        """SIGKILL."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def stop(self, name: str) -> int:
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    # --- pods ------------------------------------------------------------------------------------------------------

    async def pod(self, node: str, *, device: str = "", assigned: bool = True, port: bool = True) -> Pod:
        """A pod with an address and a sandbox, not yet attached."""
        number = next(self._numbers)
        pod = Pod(
            node=node,
            name=f"p{number}",
            uid=f"00000000-0000-4000-8000-{number:012x}",
            ip=f"10.77.{number >> 8}.{number & 255}",
            ip6=f"fd77::{number:x}",
            mac=f"0a:58:0a:4d:{number >> 8:02x}:{number & 255:02x}",
            container=secrets.token_hex(32),
            device=device,
        )
        if port:
            await self.add_port(pod)
        body: dict[str, Any] = {
            "metadata": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
            "spec": {"nodeName": node, "containers": [{"name": "c", "image": "none"}]},
        }
        if assigned:
            body["metadata"]["annotations"] = {"dpu-offload.io/pod-networks": self.annotation(pod)}
        made = await self.client.create(PODS, body, pod.namespace)
        pod.uid = made.metadata.uid
        await self.sandbox(pod)
        return pod

    async def add_port(self, pod: Pod) -> None:
        name = fresh_name()
        lan = next(row for row in self.northbound.rows("Logical_Switch").values() if row["name"] == "lan")
        row = {
            "name": pod.port,
            "addresses": f"{pod.mac} {pod.ip} {pod.ip6}",
            "port_security": f"{pod.mac} {pod.ip} {pod.ip6}",
        }
        await self.northbound.transact(
            op.insert("Logical_Switch_Port", row, uuid_name=name),
            op.mutate("Logical_Switch", lan.uuid, [("ports", "insert", name)]),
        )

    async def expect_uid(self, pod: Pod) -> None:
        """As cni-controller does: the port is for this very pod."""
        (port,) = [one for one in self.northbound.rows("Logical_Switch_Port").values() if one["name"] == pod.port]
        await self.northbound.transact(
            op.update("Logical_Switch_Port", port.uuid, {"options": {"iface-id-ver": pod.uid}})
        )

    async def remove_port(self, pod: Pod) -> None:
        rows = [row for row in self.northbound.rows("Logical_Switch_Port").values() if row["name"] == pod.port]
        lan = next(row for row in self.northbound.rows("Logical_Switch").values() if row["name"] == "lan")
        for row in rows:
            await self.northbound.transact(op.mutate("Logical_Switch", lan.uuid, [("ports", "delete", row.uuid)]))

    def annotation(self, pod: Pod) -> str:
        network = {
            "ips": [f"{pod.ip}/16", f"{pod.ip6}/64"],
            "mac": pod.mac,
            "mtu": pod.mtu,
            "gateways": ["10.77.255.1"],
        }
        return json.dumps({"default": network})

    async def assign(self, pod: Pod) -> None:
        body = {"metadata": {"annotations": {"dpu-offload.io/pod-networks": self.annotation(pod)}}}
        await self.client.merge_patch(PODS, pod.name, pod.namespace, body)

    async def sandbox(self, pod: Pod) -> None:
        await namespaces.create(pod.netns)
        self._pods.append(pod)

    async def forget(self, *pods: Pod) -> None:
        """The pods leave Kubernetes, OVN and the machine."""
        for pod in pods:
            if await self.links(pod.netns):
                # After a failed test: a function must not die with the namespace, or every later test misses it.
                await self.call("DEL", pod)
            await namespaces.remove(pod.netns)
            await self.remove_port(pod)
            with contextlib.suppress(NotFound):
                await self.client.delete(PODS, pod.name, pod.namespace, grace_seconds=0)

    # --- calls -----------------------------------------------------------------------------------------------------

    def conf(self, pod: Pod | None = None, **more: Any) -> dict[str, Any]:
        conf: dict[str, Any] = {"cniVersion": "1.1.0", "name": "lan", "type": "dpu-offload"}
        if pod is not None and pod.device:
            conf["deviceID"] = pod.device
        return conf | more

    async def call(
        self,
        verb: str,
        pod: Pod | None,
        conf: Mapping[str, Any] | bytes | None = None,
        *,
        node: str = "",
        environment: Mapping[str, str | None] | None = None,
        command: Iterable[str] = (str(BINARY),),
    ) -> Answer:
        """One run of cni-bin, as the runtime does it."""
        variables = self.variables(verb, pod, node=node) | (environment or {})
        text = conf if isinstance(conf, bytes) else json.dumps(self.conf(pod) if conf is None else conf).encode()
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={key: value for key, value in variables.items() if value is not None},
            cwd=ROOT,
        )
        output, _ = await asyncio.wait_for(process.communicate(text), 50)
        return Answer(process.returncode or 0, json.loads(output) if output.strip() else {})

    def variables(self, verb: str, pod: Pod | None, *, node: str = "") -> dict[str, str | None]:
        """The environment that the runtime gives."""
        variables: dict[str, str | None] = {"CNI_COMMAND": verb, "CNI_PATH": str(BINARY.parent)}
        if pod is not None:
            variables |= {
                "CNI_CONTAINERID": pod.container,
                "CNI_NETNS": pod.netns_path,
                "CNI_IFNAME": pod.ifname,
                "CNI_ARGS": f"K8S_POD_UID={pod.uid};IgnoreUnknown=1;K8S_POD_NAMESPACE={pod.namespace};"
                f"K8S_POD_NAME={pod.name};K8S_POD_INFRA_CONTAINER_ID={pod.container}",
            }
        variables["DPU_OFFLOAD_CNI_SOCKET"] = str(self.socket(node or (pod.node if pod else DEFAULT)))
        return variables

    async def add(self, pod: Pod, **more: Any) -> Pod:
        answer = await self.call("ADD", pod, self.conf(pod, **more))
        assert answer.status == 0, answer.message
        pod.result = answer.output
        return pod

    async def check(self, pod: Pod) -> None:
        answer = await self.call("CHECK", pod, self.conf(pod, prevResult=pod.result))
        assert answer.status == 0, answer.message

    async def delete(self, pod: Pod) -> None:
        conf = self.conf(pod, **({"prevResult": pod.result} if pod.result else {}))
        answer = await self.call("DEL", pod, conf)
        assert answer.status == 0, answer.message

    # --- looking ---------------------------------------------------------------------------------------------------

    async def ping(self, source: Pod, target: str, *, seconds: float = 10) -> bool:
        """Whether an echo comes back within `seconds`; the first of a pair of nodes may be lost to tunnel ARP."""
        end = asyncio.get_running_loop().time() + seconds
        while not (answered := await shell(f"ip netns exec {source.netns} ping -n -q -c 1 -W 1 {target}")):
            if asyncio.get_running_loop().time() > end:
                break
        return answered

    async def links(self, netns: str) -> list[dict[str, Any]]:
        """`ip -j address` of a namespace, loopback left out."""
        found = json.loads(await output(f"ip -n {netns} -j -d address show") or "[]")
        return [link for link in found if link and link["ifname"] != "lo"]

    async def ports(self, node: str) -> list[str]:
        """Interfaces of ours in a node's OVS."""
        session = OvsdbSession(self.network.chassis[node].ovs, "Open_vSwitch")
        session.monitor({"Interface": ["name", "external_ids"]})
        async with session:
            rows = session.rows("Interface").values()
            return [row["name"] for row in rows if "dpu-offload/attachment" in row["external_ids"]]

    def records(self, node: str) -> list[str]:
        directory = self.directory / "state" / node / "attachments"
        return sorted(path.name for path in directory.iterdir() if path.suffix == ".json") if directory.exists() else []

    async def leftovers(self, *pods: Pod) -> list[str]:
        """All that is still there of attachments, on every node."""
        found: list[str] = []
        for node in MODES:
            found += [f"record {name} on {node}" for name in self.records(node)]
            names = [link["ifname"] for link in await self.links(self.network.namespace(node))]
            found += [f"link {name} on {node}" for name in names if name.startswith("dpo")]
            if node != HOST:
                found += [f"port {name} on {node}" for name in await self.ports(node)]
        host = {link["ifname"]: link for link in await self.links(self.network.namespace(HOST))}
        for index in range(self.vfs):
            link = host.get(vf_netdev(index))
            if link is None:
                found.append(f"VF {vf_netdev(index)} is missing on the host")
            elif (link["address"], link["mtu"], link.get("ifalias", "")) != (f"02:bf:03:00:00:{index:02x}", 1500, ""):
                found.append(f"VF {vf_netdev(index)} is not restored: {link}")
        for pod in pods:
            found += [f"link {link['ifname']} in {pod.netns}" for link in await self.links(pod.netns)]
        return found

    async def clean(self, *pods: Pod, seconds: float = 20.0) -> None:
        """Nothing is left, now or after the background has finished within `seconds`."""
        end = asyncio.get_running_loop().time() + seconds
        while found := await self.leftovers(*pods):
            if asyncio.get_running_loop().time() > end:
                raise AssertionError(f"left behind: {found}")
            await asyncio.sleep(0.05)


async def listening(host: str, port: int) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            return


async def shell(command: str) -> bool:
    process = await asyncio.create_subprocess_exec(
        *command.split(), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    return await process.wait() == 0


async def output(command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command.split(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    found, _ = await process.communicate()
    return found.decode()
