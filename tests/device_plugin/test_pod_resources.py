"""The client of kubelet's pod resources API, against kubelets new and old."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from cni.device_plugin.pod_resources import Holder, PodResources
from dpu_offload_stubs.kubelet.podresources.v1 import api_pb2, api_pb2_grpc

VF = "dpu-offload.io/vf"
PODS = {
    ("default", "web"): [("main", VF, ["0000:03:00.2"]), ("side", "cpu.example/x", ["7"])],
    ("default", "vm"): [("compute", VF, ["0000:03:00.3", "0000:03:00.4"])],
    ("other", "idle"): [],
}


class Lister(api_pb2_grpc.PodResourcesListerServicer):
    """`get`: the code with which Get fails, None where it works."""

    def __init__(self, get: grpc.StatusCode | None) -> None:
        self.get = get
        self.listed = 0

    def pod(self, key: tuple[str, str]) -> api_pb2.PodResources:
        pod = api_pb2.PodResources(namespace=key[0], name=key[1])
        for name, resource, devices in PODS[key]:
            container = pod.containers.add(name=name)
            container.devices.add(resource_name=resource, device_ids=devices)
        return pod

    async def List(self, request: Any, context: Any) -> api_pb2.ListPodResourcesResponse:
        self.listed += 1
        return api_pb2.ListPodResourcesResponse(pod_resources=[self.pod(key) for key in PODS])

    async def GetAllocatableResources(self, request: Any, context: Any) -> api_pb2.AllocatableResourcesResponse:
        answer = api_pb2.AllocatableResourcesResponse()
        for devices in (["0000:03:00.3"], ["0000:03:00.2"]):  # kubelet groups by NUMA node
            answer.devices.add(resource_name=VF, device_ids=devices)
        return answer

    async def Get(self, request: Any, context: Any) -> api_pb2.GetPodResourcesResponse:
        if self.get is not None:
            await context.abort(self.get, "PodResources API Get method disabled")
        key = (request.pod_namespace, request.pod_name)
        if key not in PODS:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"pod {key} not found")
        return api_pb2.GetPodResourcesResponse(pod_resources=self.pod(key))


@pytest.fixture
def kubelet_with(tmp_path: Path) -> Callable[[grpc.StatusCode | None], Any]:
    @asynccontextmanager
    async def serving(get: grpc.StatusCode | None) -> AsyncIterator[tuple[PodResources, Lister]]:
        lister, server = Lister(get), grpc.aio.server()
        api_pb2_grpc.add_PodResourcesListerServicer_to_server(lister, server)
        server.add_insecure_port(f"unix:{tmp_path}/pr.sock")
        await server.start()
        async with PodResources(tmp_path / "pr.sock") as client:
            yield client, lister
        await server.stop(None)

    return serving


async def test_who_holds_what(kubelet_with: Any) -> None:
    async with kubelet_with(None) as (client, _):
        holders = await client.holders()
        assert Holder("default", "vm", "compute", VF, "0000:03:00.4") in holders
        assert len(holders) == 4
        assert await client.allocatable() == {VF: ("0000:03:00.2", "0000:03:00.3")}


@pytest.mark.parametrize("get", [None, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNKNOWN])
async def test_one_pod(kubelet_with: Any, get: grpc.StatusCode | None) -> None:
    async with kubelet_with(get) as (client, lister):
        assert await client.of_pod("default", "web") == (
            Holder("default", "web", "main", VF, "0000:03:00.2"),
            Holder("default", "web", "side", "cpu.example/x", "7"),
        )
        assert await client.of_pod("other", "idle") == ()
        assert await client.of_pod("default", "nobody") == ()
        assert lister.listed == (0 if get is None else 3)


async def test_kubelet_that_cannot_is_an_error(kubelet_with: Any) -> None:
    async with kubelet_with(grpc.StatusCode.INTERNAL) as (client, _):
        with pytest.raises(grpc.aio.AioRpcError):
            await client.of_pod("default", "web")
