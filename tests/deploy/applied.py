"""Manifests applied in a running lab, with what a cluster does besides: scheduling, endpoints, Multus."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from foundation.kube import resources
from foundation.kube.client import KubeClient
from foundation.kube.errors import NotFound
from foundation.kube.models.core import Pod
from foundation.kube.models.meta import Unstructured
from foundation.kube.resources import Resource
from lab.apiserver.kinds import BUILT_IN, PREINSTALLED
from lab.demo.observer import Observer
from lab.kubelet.pods import PodRecord, load_record
from lab.kubelet.sandbox import CNI_VERSION
from lab.layout import DEFAULT_NODE, DPU_NODE, HOST_NODE
from lab.suite import Suite
from tests.deploy.shipped import ROOT, Body

EXAMPLES = ROOT / "deploy/examples"
NODES = {"default": DEFAULT_NODE, "host": HOST_NODE, "dpu": DPU_NODE}
SECONDS = 60.0
REFUSED_SECONDS = 2.0

_SERVER = """
import socket, sys
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("serving", flush=True)
while True:
    connection, (peer, _) = server.accept()
    received = 0
    with connection:
        if sys.argv[3] == "sink":
            while data := connection.recv(1 << 16):
                received += len(data)
        connection.sendall(f"{peer} {received}".encode())
"""
_CLIENT = """
import socket, sys, time
end = time.monotonic() + float(sys.argv[3])
while True:
    try:
        # New attempts rather than one long one: the first packets between two nodes may get lost.
        connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1.0)
        break
    except OSError:
        if time.monotonic() > end:
            sys.exit(7)
with connection:
    connection.settimeout(60)
    begin = time.monotonic()
    connection.sendall(bytes(int(sys.argv[4])))
    connection.shutdown(socket.SHUT_WR)
    print(connection.recv(100).decode(), time.monotonic() - begin)
"""


def parts(file: str) -> list[Body]:
    return [one for one in yaml.safe_load_all((EXAMPLES / file).read_text()) if one]


def resource(body: Body) -> Resource[Unstructured]:
    """Where an object is served."""
    group, _, version = body["apiVersion"].rpartition("/")
    for kind in (*BUILT_IN, *PREINSTALLED):
        if (kind.group, kind.version, kind.kind) == (group, version, body["kind"]):
            return Resource(group, version, kind.plural, kind.namespaced, Unstructured, kind=kind.kind)
    raise AssertionError(f"{body['apiVersion']} {body['kind']} is unknown")


class Applied:
    """One lab with manifests in it."""

    def __init__(self, suite: Suite, client: KubeClient, observer: Observer) -> None:
        self.suite = suite
        self.client = client
        self.observer = observer
        self.layout = suite.layout
        self._servers: list[asyncio.subprocess.Process] = []

    @property
    def underlay(self) -> str:
        assert self.suite.network is not None
        return f"/run/netns/{self.suite.network.spec.underlay}"

    async def apply(self, *bodies: Body) -> None:
        """As `kubectl apply --server-side --force-conflicts`; pods go to the node that their selector means."""
        for body in bodies:
            await self.client.apply(resource(body), body, "examples", force=True)
            if body["kind"] == "Pod":
                name, namespace = body["metadata"]["name"], body["metadata"]["namespace"]
                target = {"kind": "Node", "name": NODES[body["spec"]["nodeSelector"]["dpu-offload.io/mode"]]}
                binding = {"metadata": {"name": name, "namespace": namespace}, "target": target}
                path = resources.PODS.path(namespace, name, "binding")
                await self.client.request("POST", path, body=json.dumps(binding).encode())

    async def remove(self, bodies: list[Body]) -> None:
        """As `kubectl delete --wait`, last first."""
        for body in reversed(bodies):
            name, namespace = body["metadata"]["name"], body["metadata"].get("namespace", "")
            await self.client.delete(resource(body), name, namespace)
            await self.gone(resource(body), name, namespace)

    async def gone(self, kind: Resource[Any], name: str, namespace: str) -> None:
        async with asyncio.timeout(SECONDS):
            while True:
                try:
                    await self.client.get(kind, name, namespace)
                except NotFound:
                    return
                await asyncio.sleep(0.05)

    async def until(self, body: Body, holds: Callable[[Unstructured], bool]) -> None:
        name, namespace = body["metadata"]["name"], body["metadata"].get("namespace", "")
        async with asyncio.timeout(SECONDS):
            while not holds(await self.client.get(resource(body), name, namespace)):
                await asyncio.sleep(0.05)

    async def pods(self, bodies: list[Body]) -> dict[str, PodRecord]:
        """Every pod of the example by name, once it is Running."""
        return {body["metadata"]["name"]: await self._running(body) for body in bodies if body["kind"] == "Pod"}

    async def _running(self, body: Body) -> PodRecord:
        key = f"{body['metadata']['namespace']}/{body['metadata']['name']}"

        def ready(pod: Pod | None) -> bool:
            return pod is not None and pod.status.phase == "Running"

        seen = await self.observer.until(resources.PODS, key, ready, seconds=SECONDS, what=f"pod {key} is Running")
        assert seen is not None
        record = load_record(self.layout.kubelet(seen.spec.node_name) / "pods" / seen.metadata.uid / "record.json")
        assert record is not None
        return record

    async def endpoints(self, service: Body, pods: dict[str, PodRecord]) -> Body:
        """The slice that kube-controller-manager makes of a Service's selector."""
        (server,) = [pods[name] for name in pods if {"app": name} == service["spec"]["selector"]]
        (port,) = service["spec"]["ports"]
        body = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{service['metadata']['name']}-1",
                "namespace": service["metadata"]["namespace"],
                "labels": {"kubernetes.io/service-name": service["metadata"]["name"]},
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": [address(server)], "conditions": {"ready": True}}],
            "ports": [{"name": port["name"], "port": port["targetPort"], "protocol": "TCP"}],
        }
        await self.apply(body)
        return body

    async def attach(self, pod: PodRecord, definition: Body, interface: str) -> str:
        """What Multus does for a second network: the plugin's ADD with the definition's configuration. Its address."""
        assert pod.sandbox is not None
        binary = self.layout.cni_binary(DEFAULT_NODE)
        environment = {
            "CNI_COMMAND": "ADD",
            "CNI_PATH": str(binary.parent),
            "CNI_CONTAINERID": pod.sandbox.container_id,
            "CNI_NETNS": pod.sandbox.netns,
            "CNI_IFNAME": interface,
            "CNI_ARGS": f"K8S_POD_NAMESPACE={pod.namespace};K8S_POD_NAME={pod.name};K8S_POD_UID={pod.uid}",
        }
        process = await asyncio.create_subprocess_exec(
            binary, env=environment, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        configuration = {**json.loads(definition["spec"]["config"]), "cniVersion": CNI_VERSION}
        output, _ = await process.communicate(json.dumps(configuration).encode())
        assert process.returncode == 0, output
        return str(json.loads(output)["ips"][0]["address"]).partition("/")[0]

    async def serve(self, netns: str, bind: str, port: int, *, sink: bool = False) -> None:
        """A server that says who calls, and how much came if it is a `sink`."""
        process = await asyncio.create_subprocess_exec(
            *("nsenter", f"--net={netns}", sys.executable, "-c", _SERVER, bind, str(port), "sink" if sink else "say"),
            stdout=asyncio.subprocess.PIPE,
        )
        self._servers.append(process)
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), SECONDS) == b"serving\n"

    async def call(
        self, netns: str, target: str, port: int, *, seconds: float = 30.0, size: int = 0
    ) -> tuple[str, int, float] | None:
        """Who the server saw, the bytes that it got, and the seconds it took; None when nobody answered."""
        process = await asyncio.create_subprocess_exec(
            *("nsenter", f"--net={netns}", sys.executable, "-c", _CLIENT, target, str(port), str(seconds), str(size)),
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate()
        if process.returncode == 7:
            return None
        assert process.returncode == 0
        peer, received, taken = output.decode().split()
        return peer, int(received), float(taken)

    async def stop_servers(self) -> None:
        for process in self._servers:
            if process.returncode is None:
                process.kill()
            await process.wait()
        self._servers.clear()


def address(pod: PodRecord) -> str:
    assert pod.sandbox is not None
    return pod.sandbox.addresses[0]


def netns(pod: PodRecord) -> str:
    assert pod.sandbox is not None
    return pod.sandbox.netns


def requests(file: Path) -> Iterator[tuple[str, str, str, str]]:
    """Account, verb, API group and resource (with its subresource) of what the API server was asked for."""
    for line in file.read_text().splitlines():
        one = json.loads(line)
        prefix, _, account = one["user"].rpartition(":")
        if prefix == "system:serviceaccount:dpu-offload":
            part = f"/{one['subresource']}" if one["subresource"] else ""
            yield account, one["verb"], one["group"], one["resource"] + part
