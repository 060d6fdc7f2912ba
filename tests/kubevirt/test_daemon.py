"""cni-controller as a daemon, with and without KubeVirt in the cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cni.controller import app
from cni.controller.config import ControllerConfig, LeaderElectionConfig, OvsdbConfig
from foundation.daemon.running import Daemon
from foundation.kube.client import KubeClient
from foundation.kube.models.meta import KubernetesObject
from foundation.kube.reflector import Change, Reflector
from foundation.kube.resources import (
    EVENTS,
    NODES,
    PODS,
    VIRTUAL_MACHINE_INSTANCES,
    VIRTUAL_MACHINES,
    Resource,
)
from lab.apiserver.faults import Rule
from lab.apiserver.server import ApiServer
from lab.kubevirt.cluster import Machine
from tests.controller.stage import Northbound
from tests.kubevirt.walks import body

NODE = {"metadata": {"name": "n1"}, "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24"]}}
MAC = "02:00:00:00:00:07"


@pytest.fixture
async def api() -> AsyncIterator[ApiServer]:
    async with ApiServer() as server:
        yield server


@asynccontextmanager
async def controller(api: ApiServer, northbound: Northbound, directory: Path) -> AsyncIterator[KubeClient]:
    api.kubeconfig(directory / "kubeconfig")
    config = ControllerConfig(
        kubeconfig=str(directory / "kubeconfig"),
        northbound=OvsdbConfig(remotes=northbound.remote),
        leader_election=LeaderElectionConfig(enabled=False),
    )
    async with await KubeClient.connect(config.kubeconfig) as client, Daemon("cni-controller") as daemon:
        await app.start(config, daemon)
        await client.create(NODES, NODE)
        yield client


async def seen(client: KubeClient, resource: Resource[Any], fits: Callable[[Any], bool]) -> Any:
    """The first object that fits."""
    found: asyncio.Future[KubernetesObject] = asyncio.get_running_loop().create_future()
    reflector: Reflector[Any] = Reflector(client, resource)

    def look(change: Change[Any]) -> None:
        if change.new is not None and not found.done() and fits(change.new):
            found.set_result(change.new)

    reflector.subscribe(look)
    task = asyncio.create_task(reflector.run())
    try:
        return await asyncio.wait_for(found, 40)
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_a_conflict_is_told_on_the_machine(api: ApiServer, northbound: Northbound, tmp_path: Path) -> None:
    async with controller(api, northbound, tmp_path) as client:
        for name in ("first", "twin"):
            machine = Machine(client, body(name, bridge={}, macAddress=MAC))
            await machine.create()
            pod = await machine.start("n1")
            if name == "first":
                await seen(client, PODS, lambda pod: MAC in str(pod.metadata.annotations))
        for kind, name in (("VirtualMachine", "twin"), ("Pod", pod.metadata.name)):
            event = await seen(client, EVENTS, lambda event, kind=kind: event.involved_object.kind == kind)
            assert event.involved_object.name == name
            assert event.reason == "AddressConflict"
            assert MAC in event.message
        kept = await client.get(VIRTUAL_MACHINES, "first", "default")
        assert MAC in kept.metadata.annotations["dpu-offload.io/vm-networks"]


async def test_an_instance_keeps_its_own_addresses(api: ApiServer, northbound: Northbound, tmp_path: Path) -> None:
    async with controller(api, northbound, tmp_path) as client:
        await Machine(client, body("alone")).start("n1")
        annotation = "dpu-offload.io/vm-networks"
        await seen(client, VIRTUAL_MACHINE_INSTANCES, lambda vmi: annotation in vmi.metadata.annotations)


async def test_a_cluster_without_kubevirt_is_served(api: ApiServer, northbound: Northbound, tmp_path: Path) -> None:
    api.faults.add(Rule(path="/apis/kubevirt.io/.*", code=404, reason="NotFound"))
    async with controller(api, northbound, tmp_path) as client:
        pod = {"metadata": {"name": "web", "namespace": "default"}, "spec": {"nodeName": "n1"}}
        await client.create(PODS, {**pod, "spec": {**pod["spec"], "containers": [{"name": "c", "image": "i"}]}})
        await seen(client, PODS, lambda pod: "dpu-offload.io/pod-networks" in pod.metadata.annotations)
