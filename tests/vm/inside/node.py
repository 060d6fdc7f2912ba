"""Runs in the guest: cni-node in mode default with a SmartNIC gives VFs to pods and takes them back.

The last line of output is what was seen, in JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from cni.node.app import start
from cni.node.config import CniNodeConfig, OffloadConfig
from cni.node.datapath import Flow
from cni.node.offload import Settings, report
from cni.node.vswitchd import Vswitchd
from foundation.daemon.running import Daemon
from foundation.kube.client import KubeClient
from foundation.kube.configuration import Connection
from foundation.kube.resources import NODES, PODS
from foundation.pci import Sysfs
from lab.apiserver.server import ApiServer
from lab.network import namespaces
from lab.network.commands import CommandFailed, run
from tests.vm.inside.chassis import KernelChassis

ROOT = Path(__file__).parents[3]
BINARY = ROOT / "cni/bin/dpu-offload"
DIRECTORY = Path("/run/vm-node")
NODE = "guest"
SECONDS = 60.0


class Pod:
    """The pod `p<number>`; `device` is the function that kubelet gave it, "" for a veth pod."""

    def __init__(self, number: int, device: str = "") -> None:
        self.name = f"p{number}"
        self.device = device
        self.ip = f"10.77.0.{number}"
        self.mac = f"0a:58:0a:4d:00:{number:02x}"
        self.container = secrets.token_hex(32)
        self.netns = f"cni-{self.name}"
        self.uid = ""
        self.result: dict[str, Any] = {}

    @property
    def annotation(self) -> str:
        return json.dumps({"default": {"ips": [f"{self.ip}/16"], "mac": self.mac, "mtu": 1400, "gateways": []}})


class Stage:
    """All in one process: starting Python is what costs most in an emulated machine."""

    def __init__(self) -> None:
        self.chassis = KernelChassis(DIRECTORY)
        self._api_server = ApiServer()
        self._stack = contextlib.AsyncExitStack()

    async def up(self, pods: list[Pod]) -> None:
        DIRECTORY.mkdir()
        await self._stack.enter_async_context(self._api_server)
        client = self._client()
        await client.create(NODES, {"metadata": {"name": NODE, "labels": {"dpu-offload.io/mode": "default"}}})
        for pod in pods:
            body = {
                "metadata": {
                    "name": pod.name,
                    "namespace": "default",
                    "annotations": {"dpu-offload.io/pod-networks": pod.annotation},
                },
                "spec": {"nodeName": NODE, "containers": [{"name": "c", "image": "none"}]},
            }
            pod.uid = (await client.create(PODS, body, "default")).metadata.uid
            await namespaces.create(pod.netns)
        await client.close()
        # After the API server's work, which would have to share the machine with OVN's start.
        await self.chassis.start()
        await self.chassis.add_ports(*((f"default_{pod.name}", f"{pod.mac} {pod.ip}") for pod in pods))
        config = CniNodeConfig(
            mode="default",
            node_name=NODE,
            cni_socket=str(DIRECTORY / "cni.sock"),
            state_dir=str(DIRECTORY / "state"),
            ovsdb=self.chassis.ovs,
            ovs_run_dir=str(DIRECTORY),
            ovn_run_dir=str(DIRECTORY),
            offload=OffloadConfig(hardware="on"),
        )
        self.daemon = daemon = await self._stack.enter_async_context(Daemon("cni-node"))
        with patch.object(KubeClient, "connect", self._connect):
            await start(config, daemon)

    async def offload_health(self) -> str:
        """What cni-node says of OVS' offload, made to look at the ports there are now."""
        await run("ovs-vsctl", f"--db={self.chassis.ovs}", "set", "Open_vSwitch", ".", "external_ids:looked=yes")
        await asyncio.sleep(2)
        check = self.daemon.health.checks["hardware offload"]
        return "ok" if check.ok else check.reason

    def _client(self) -> KubeClient:
        return KubeClient(Connection(server=self._api_server.url))

    async def _connect(self, *_: str) -> KubeClient:
        """In place of reading a kubeconfig, which imports the kubernetes package: 20 s in an emulated machine."""
        return self._client()

    async def down(self) -> None:
        await self._stack.aclose()

    async def call(self, verb: str, pod: Pod) -> dict[str, Any]:
        """One run of cni-bin. Raises RuntimeError with its answer."""
        conf: dict[str, Any] = {"cniVersion": "1.1.0", "name": "lan", "type": "dpu-offload"}
        if pod.device:
            conf["deviceID"] = pod.device
        if pod.result:
            conf["prevResult"] = pod.result
        variables = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": pod.container,
            "CNI_NETNS": f"/run/netns/{pod.netns}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(BINARY.parent),
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod.name};K8S_POD_UID={pod.uid};"
            f"K8S_POD_INFRA_CONTAINER_ID={pod.container}",
            "DPU_OFFLOAD_CNI_SOCKET": str(DIRECTORY / "cni.sock"),
        }
        process = await asyncio.create_subprocess_exec(
            BINARY,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, **variables},
        )
        output, _ = await asyncio.wait_for(process.communicate(json.dumps(conf).encode()), SECONDS)
        if process.returncode:
            raise RuntimeError(f"{verb} of {pod.name}: {output.decode()}")
        return json.loads(output) if output.strip() else {}

    async def add(self, pod: Pod) -> None:
        pod.result = await self.call("ADD", pod)

    async def ping(self, source: Pod, target: Pod, count: int = 5) -> bool:
        try:
            await run(
                *("ip", "netns", "exec", source.netns),
                *("ping", "-n", "-q", "-c", str(count), "-i", "0.2", "-W", "3", target.ip),
            )
        except CommandFailed:
            return False
        return True


async def link(name: str, netns: str = "") -> dict[str, Any]:
    """What a link is known by, {} for none; `name` may be the function's PCI address."""
    where = ("-n", netns) if netns else ()
    for found in json.loads(await run("ip", *where, "-j", "-d", "link", "show")):
        if name in (found["ifname"], found.get("parentdev")):
            return {
                "name": found["ifname"],
                "mac": found["address"],
                "mtu": found["mtu"],
                "alias": found.get("ifalias", ""),
                "up": "UP" in found["flags"],
            }
    return {}


@contextlib.asynccontextmanager
async def parameter(name: str, value: str) -> AsyncIterator[None]:
    """A parameter of our module for a while."""
    path = Path("/sys/module/dpu_lab/parameters") / name
    before = path.read_text()
    path.write_text(value)
    try:
        yield
    finally:
        path.write_text(before)


def verdicts(port: str, flows: Iterable[Flow]) -> list[dict[str, str]]:
    """cni-node's offload report of a port: for each flow what it matches, where it goes, why it is not in hardware."""
    sysfs = Sysfs()
    found = report(port, flows, settings=Settings(enabled=True), switch_of=lambda name: sysfs.netdev(name).switch_id)
    return [{"match": one.flow.match, "to": ",".join(one.flow.outputs), "reason": one.reason} for one in found.flows]


async def main(first: str, second: str) -> None:
    seen: dict[str, Any] = {"seconds": {}}
    stage = Stage()
    one, two, plain = Pod(11, first), Pod(12, second), Pod(13)
    vswitchd = Vswitchd(DIRECTORY)
    port = next(
        name for function, name in Sysfs().representors().items() if function.vf == Sysfs().function(first).vf_index
    )
    started = time.monotonic()

    def mark(step: str) -> None:
        seen["seconds"][step] = round(time.monotonic() - started, 1)

    seen["before"] = [await link(first), await link(second)]
    await stage.up([one, two, plain])
    mark("up")
    for pod in (one, two, plain):
        await stage.add(pod)
    mark("added")
    seen["during"] = [await link(first), await link(second)]
    seen["in pod"] = [await link("eth0", pod.netns) for pod in (one, two)]
    seen["macs"] = [pod.mac for pod in (one, two, plain)]
    seen["results"] = [pod.result for pod in (one, two, plain)]
    seen["ping"] = await stage.ping(one, two)
    seen["ping plain"] = await stage.ping(one, plain)
    mark("pinged")
    # By OVS' own word, then by the card's, then by cni-node's report.
    seen["offloaded"] = await vswitchd.command("dpctl/dump-flows", "type=offloaded")
    seen["rules"] = int(Path("/sys/module/dpu_lab/parameters/rules").read_text())
    seen["report"] = verdicts(port, await vswitchd.flows())
    seen["offload"] = await stage.offload_health()
    async with parameter("table", "0"):
        await vswitchd.command("revalidator/purge")
        seen["ping full"] = await stage.ping(one, two)
        seen["report full"] = verdicts(port, await vswitchd.flows())
    mark("looked")
    for pod in (one, two):
        await stage.call("CHECK", pod)
    await stage.call("DEL", one)
    await namespaces.remove(two.netns)  # the sandbox dies first, as when a node is drained in a hurry
    await stage.call("DEL", two)
    await stage.call("DEL", plain)
    mark("deleted")
    seen["after"] = [await link(first), await link(second)]
    seen["ports after"] = await vswitchd.command("dpif/show")
    await stage.down()
    sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
