"""Walk 1: pods on a plain node and on a host with a DPU, traffic between them, and nothing left."""

from __future__ import annotations

import asyncio

from foundation.kube import resources
from foundation.kube.models.core import Pod
from lab import objects
from lab.demo import inventory, traffic
from lab.demo.observer import NotSeen, Observer
from lab.demo.steps import Recorder
from lab.kubelet.pods import PodRecord, load_record
from lab.layout import DEFAULT_NODE, HOST_NODE, Layout
from lab.network import Network

POD_SECONDS = 25.0


async def walk(steps: Recorder, observer: Observer, layout: Layout, network: Network) -> None:
    steps.section("Pods")
    async with steps.step("what is there before, listed"):
        before = await inventory.take(layout, network)
    async with steps.step("pod on the default node: ADD (veth)") as notes:
        plain = await create(observer, layout, "plain", DEFAULT_NODE)
        notes.text = ", ".join(addresses(plain))
    async with steps.step("pod on the host with a DPU: ADD (VF; its representor goes into the DPU's br-int)") as notes:
        offloaded = await create(observer, layout, "offloaded", HOST_NODE)
        notes.text = f"{', '.join(addresses(offloaded))}, VF {offloaded.device}"
    pairs = (("default node -> host", plain, offloaded), ("host -> default node", offloaded, plain))
    for name, source, destination in pairs:
        async with steps.step(f"ping, {name}") as notes:
            notes.text = await traffic.ping(netns(source), addresses(destination)[0])
    for name, source, destination in pairs:
        async with steps.step(f"TCP, {name}") as notes:
            await traffic.tcp(netns(destination), addresses(destination)[0], netns(source))
            notes.text = "1 MiB, digest equal"
    async with steps.step("both pods deleted: DEL"):
        await asyncio.gather(*(delete(observer, record) for record in (plain, offloaded)))
    async with steps.step("nothing is left: links, ports, rows, namespaces, files") as notes:
        notes.text = await inventory.same_again(before, layout, network)


async def create(observer: Observer, layout: Layout, name: str, node: str) -> PodRecord:
    """Create a pod and wait until its node's kubelet reports it ready; returns what kubelet did for it."""
    created = await observer.client.create(resources.PODS, objects.pod(name, node_name=node))
    return await running(observer, layout, created.metadata.uid, name, node)


async def running(observer: Observer, layout: Layout, uid: str, name: str, node: str) -> PodRecord:
    """Wait until a pod is Running; returns what its node's kubelet did for it."""

    def ready(pod: Pod | None) -> bool:
        return pod is not None and pod.status.phase == "Running"

    await observer.until(
        resources.PODS, f"{objects.NAMESPACE}/{name}", ready, seconds=POD_SECONDS, what=f"pod {name} is Running"
    )
    record = load_record(layout.kubelet(node) / "pods" / uid / "record.json")
    if record is None:
        raise NotSeen(f"pod {name} is Running, but its kubelet has no record of it")
    return record


async def delete(observer: Observer, record: PodRecord) -> None:
    await observer.client.delete(resources.PODS, record.name, record.namespace, uid=record.uid)
    await observer.until(
        resources.PODS,
        f"{record.namespace}/{record.name}",
        lambda pod: pod is None or pod.metadata.uid != record.uid,
        seconds=POD_SECONDS,
        what=f"pod {record.name} is gone",
    )


def addresses(record: PodRecord) -> list[str]:
    return record.sandbox.addresses if record.sandbox is not None else []


def netns(record: PodRecord) -> str:
    if record.sandbox is None:
        raise NotSeen(f"pod {record.name} has no sandbox")
    return record.sandbox.netns
