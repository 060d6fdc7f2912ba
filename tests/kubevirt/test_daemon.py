"""cni-controller as a daemon, with and without KubeVirt in the cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cni.controller import app
from cni.controller.addresses import plan as addresses
from cni.controller.config import ClusterConfig, ControllerConfig, LeaderElectionConfig, OvsdbConfig
from cni.controller.model.vm import parse_machine
from cni.controller.watch.vm_annotator import VmAnnotator
from cni.controller.world import World
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


async def test_kubevirt_may_be_installed_later(api: ApiServer, northbound: Northbound, tmp_path: Path) -> None:
    absent = api.faults.add(Rule(path="/apis/kubevirt.io/.*", code=404, reason="NotFound"))
    async with controller(api, northbound, tmp_path) as client:
        pod = {"metadata": {"name": "web", "namespace": "default"}, "spec": {"nodeName": "n1"}}
        await client.create(PODS, {**pod, "spec": {**pod["spec"], "containers": [{"name": "c", "image": "i"}]}})
        await seen(client, PODS, lambda pod: "dpu-offload.io/pod-networks" in pod.metadata.annotations)
        api.faults.remove(absent)
        machine = Machine(client, body("late", bridge={}, macAddress=MAC))
        await machine.create()
        await machine.start("n1")
        await seen(client, PODS, lambda pod: MAC in pod.metadata.annotations.get("dpu-offload.io/pod-networks", ""))
        await seen(client, VIRTUAL_MACHINES, lambda vm: MAC in str(vm.metadata.annotations))


@pytest.mark.parametrize("known", [True, False], ids=["the new one was seen", "the new one was not seen yet"])
async def test_what_one_machine_keeps_is_not_written_on_the_next_of_its_name(
    api: ApiServer, tmp_path: Path, known: bool
) -> None:
    api.kubeconfig(tmp_path / "kubeconfig")
    world = World(addresses.make(ClusterConfig()), on_change=lambda token: None)
    async with await KubeClient.connect(str(tmp_path / "kubeconfig")) as client:
        machine = Machine(client, body("m"))
        await machine.create()
        annotator = VmAnnotator(client, world.machines)
        old = await client.get(VIRTUAL_MACHINES, "m", "default")
        world.machines.put_vm("default/m", parse_machine(old))
        annotator.want("default/m", "of the first one")
        await machine.delete()
        await machine.create()
        new = await client.get(VIRTUAL_MACHINES, "m", "default")
        assert new.metadata.uid != old.metadata.uid
        if known:
            world.machines.put_vm("default/m", parse_machine(new))
        task = asyncio.create_task(annotator.queue.run())
        try:
            await client.create(VIRTUAL_MACHINES, body("other"), "default")
            other = await client.get(VIRTUAL_MACHINES, "other", "default")
            world.machines.put_vm("default/other", parse_machine(other))
            annotator.want("default/other", "of the other one")
            await seen(client, VIRTUAL_MACHINES, lambda vm: "of the other one" in str(vm.metadata.annotations))
            # If it has not been seen by now, it is by and by: until then the first one's is tried in vain.
            world.machines.put_vm("default/m", parse_machine(new))
            async with asyncio.timeout(30):
                while annotator.waiting:
                    await asyncio.sleep(0.01)
        finally:
            task.cancel()
            await asyncio.wait({task})
        found = await client.get(VIRTUAL_MACHINES, "m", "default")
        assert "of the first one" not in str(found.metadata.annotations)


async def test_one_wrong_answer_costs_a_machine_no_annotation(
    api: ApiServer, northbound: Northbound, tmp_path: Path
) -> None:
    """A proxy before the API server may say "not found" of what is there."""
    api.faults.add(
        Rule(method="PATCH", path="/apis/kubevirt.io/.*/virtualmachines/m", code=404, reason="NotFound", times=1)
    )
    async with controller(api, northbound, tmp_path) as client:
        machine = Machine(client, body("m", bridge={}, macAddress=MAC))
        await machine.create()
        await machine.start("n1")
        await seen(client, VIRTUAL_MACHINES, lambda vm: MAC in str(vm.metadata.annotations))
