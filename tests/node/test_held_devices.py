"""A pod without deviceID in its configuration gets the function that kubelet gave it, unless that would be a guess."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from dpu_offload_stubs.kubelet.podresources.v1 import api_pb2, api_pb2_grpc
from foundation.kube.resources import PODS
from lab.network import namespaces
from tests.node.stage import DEFAULT, DPU, HOST, Answer, Pod, Stage, vf_address, vf_netdev

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="session")]

VF, OTHER = "dpu-offload.io/vf", "dpu-offload.io/storage-vf"
GPU = ("gpu.example/card", "GPU-6d8f1c2e")


class Kubelet(api_pb2_grpc.PodResourcesListerServicer):
    """Answers for one pod."""

    def __init__(self, pod: Pod, *held: tuple[str, str]) -> None:
        self.pod = pod
        self.held = held
        self.broken = False

    async def Get(self, request: Any, context: Any) -> api_pb2.GetPodResourcesResponse:
        if self.broken:
            await context.abort(grpc.StatusCode.INTERNAL, "its checkpoint is damaged")
        if (request.pod_namespace, request.pod_name) != (self.pod.namespace, self.pod.name):
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such pod")
        answer = api_pb2.GetPodResourcesResponse()
        for resource, device in self.held:
            container = answer.pod_resources.containers.add(name="c")
            container.devices.add(resource_name=resource, device_ids=[device])
        answer.pod_resources.namespace, answer.pod_resources.name = self.pod.namespace, self.pod.name
        return answer


@contextlib.asynccontextmanager
async def kubelet(stage: Stage, pod: Pod, *held: tuple[str, str]) -> AsyncIterator[Kubelet]:
    lister, server = Kubelet(pod, *held), grpc.aio.server()
    api_pb2_grpc.add_PodResourcesListerServicer_to_server(lister, server)
    socket = stage.directory / "pod-resources.sock"
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    try:
        yield lister
    finally:
        await server.stop(None)
        socket.unlink(missing_ok=True)


async def refused(stage: Stage, pod: Pod) -> Answer:
    answer = await stage.call("ADD", pod)
    assert answer.status == 1, answer
    return answer


async def test_a_pods_only_function_is_its_own(stage: Stage) -> None:
    await stage.settled()
    pod, peer = await stage.pod(HOST), await stage.pod(DEFAULT)
    try:
        async with kubelet(stage, pod, (VF, vf_address(3)), GPU):
            await stage.add(peer)
            await stage.add(pod)
            assert pod.result["interfaces"][-1]["pciID"] == vf_address(3)
            assert await stage.ports(DPU) == ["pf0vf3"]
            assert await stage.ping(peer, pod.ip)
            await stage.sandbox(newer := pod.next_sandbox())
            try:
                await stage.add(newer)
                assert newer.result["interfaces"][-1]["pciID"] == vf_address(3)
                await stage.delete(newer)
            finally:
                await namespaces.remove(newer.netns)
        # Kubelet is asked by ADD alone.
        await stage.delete(pod)
        await stage.delete(peer)
        await stage.clean(pod, peer)
    finally:
        await stage.forget(pod, peer)


async def test_what_would_be_a_guess_is_refused(stage: Stage) -> None:
    await stage.settled()
    pod = await stage.pod(HOST)
    try:
        async with kubelet(stage, pod, (VF, vf_address(3)), (OTHER, vf_address(4))) as lister:
            answer = await refused(stage, pod)
            assert (answer.code, f"several functions: {vf_address(3)}, {vf_address(4)}" in answer.message) == (7, True)
            lister.held = (GPU,)
            answer = await refused(stage, pod)
            assert (answer.code, "no free function among its devices GPU-6d8f1c2e" in answer.message) == (7, True)
            lister.held = ()
            answer = await refused(stage, pod)
            assert (answer.code, "every pod here needs a VF" in answer.message) == (7, True)
            lister.broken = True
            answer = await refused(stage, pod)
            assert (answer.code, "its checkpoint is damaged" in answer.message) == (11, True)
            lister.broken, lister.held = False, ((VF, vf_address(3)),)
            body = {"metadata": {"annotations": {"k8s.v1.cni.cncf.io/networks": "storage"}}}
            await stage.client.merge_patch(PODS, pod.name, pod.namespace, body)
            async with asyncio.timeout(30):
                # Until cni-node has heard of it.
                while (answer := await stage.call("ADD", pod)).status == 0:
                    await stage.delete(pod)
            assert (answer.code, f"{vf_address(3)} but also other networks" in answer.message) == (7, True)
        await stage.clean(pod)
    finally:
        await stage.forget(pod)


async def test_a_named_resource_settles_it(stage: Stage) -> None:
    await stage.settled()
    pod, plain = await stage.pod(HOST), await stage.pod(DEFAULT)
    socket = str(stage.directory / "pod-resources.sock")
    try:
        body = {"metadata": {"annotations": {"k8s.v1.cni.cncf.io/networks": "storage"}}}
        await stage.client.merge_patch(PODS, pod.name, pod.namespace, body)
        chosen = {"socket": socket, "resource": VF}
        await asyncio.gather(*(stage.start_again(node, pod_resources=chosen) for node in (HOST, DEFAULT)))
        async with kubelet(stage, pod, (OTHER, vf_address(4)), (VF, vf_address(3))):
            await stage.add(pod)
            assert vf_netdev(3) not in {one["ifname"] for one in await stage.links(stage.network.namespace(HOST))}
            # Where a pod needs no function, one that has none gets a plain interface.
            await stage.add(plain)
            assert "pciID" not in plain.result["interfaces"][-1]
        await stage.delete(pod)
        await stage.delete(plain)
        await stage.clean(pod, plain)
    finally:
        await asyncio.gather(*(stage.start_again(node) for node in (HOST, DEFAULT)))
        await stage.forget(pod, plain)
