"""Events are counted rather than repeated, and never hold anybody up."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from foundation.kube.client import KubeClient
from foundation.kube.events import COMBINED, LONGEST_MESSAGE, QUEUE, SIMILAR, EventRecorder
from foundation.kube.models.core import Event, Node, Pod
from foundation.kube.models.meta import ObjectMeta
from foundation.kube.resources import EVENTS
from lab.apiserver.faults import Rule
from lab.apiserver.server import ApiServer

POD = Pod(metadata=ObjectMeta(name="web", namespace="default", uid="u-1", resource_version="7"))


async def _events(client: KubeClient, namespace: str = "default") -> list[Event]:
    return sorted(await client.list(EVENTS, namespace=namespace), key=lambda each: each.message)


async def test_an_event_names_its_object_and_its_source(client: KubeClient) -> None:
    recorder = EventRecorder(client, "cni-controller", instance="node-1")
    recorder.event(POD, "Warning", "NoAddress", "subnet 10.1.0.0/24 is full: delete pods or widen it")
    await recorder.close()
    (event,) = await _events(client)
    about = event.involved_object
    assert (about.api_version, about.kind, about.namespace, about.name, about.uid) == (
        "v1",
        "Pod",
        "default",
        "web",
        "u-1",
    )
    assert (event.type, event.reason, event.count) == ("Warning", "NoAddress", 1)
    assert (event.source.component, event.source.host) == ("cni-controller", "node-1")
    assert event.first_timestamp
    assert event.last_timestamp


async def test_the_same_again_raises_the_count(client: KubeClient, server: ApiServer) -> None:
    recorder = EventRecorder(client, "test")
    recorder.event(POD, "Normal", "Because", "why")
    await recorder.close()
    server.faults.requests = 0
    for _ in range(100):
        recorder.event(POD, "Normal", "Because", "why")
    await recorder.close()
    (event,) = await _events(client)
    assert event.count == 101
    assert server.faults.requests <= 3, "a burst costs one write (and the list above another request)"


async def test_what_differs_is_told_apart(client: KubeClient) -> None:
    recorder = EventRecorder(client, "test")
    other = msgspec.structs.replace(POD, metadata=ObjectMeta(name="db", namespace="default", uid="u-2"))
    for obj, reason, message in ((POD, "A", "x"), (POD, "A", "y"), (POD, "B", "z"), (other, "A", "zz")):
        recorder.event(obj, "Normal", reason, message)
    await recorder.close()
    assert [each.count for each in await _events(client)] == [1, 1, 1, 1]


async def test_many_similar_messages_are_combined(client: KubeClient) -> None:
    recorder = EventRecorder(client, "test")
    for number in range(SIMILAR + 30):
        recorder.event(POD, "Warning", "Failed", f"attempt {number:03}")
    await recorder.close()
    events = await _events(client)
    assert len(events) == SIMILAR + 1
    assert events[0].message.startswith(COMBINED)
    assert events[0].count == 30


async def test_an_event_about_a_cluster_wide_object_goes_to_default(client: KubeClient) -> None:
    recorder = EventRecorder(client, "test")
    recorder.event(Node(metadata=ObjectMeta(name="n1", uid="u")), "Normal", "Ready", "it is")
    await recorder.close()
    (event,) = await _events(client, "default")
    assert event.involved_object.kind == "Node"


async def test_an_event_that_the_server_forgot_is_made_again(client: KubeClient) -> None:
    recorder = EventRecorder(client, "test")
    recorder.event(POD, "Normal", "A", "x")
    await recorder.close()
    (event,) = await _events(client)
    await client.delete(EVENTS, event.metadata.name, "default")
    recorder.event(POD, "Normal", "A", "x")
    await recorder.close()
    (event,) = await _events(client)
    assert event.count == 2


async def test_a_message_is_cut_at_a_character(client: KubeClient) -> None:
    recorder = EventRecorder(client, "test")
    recorder.event(POD, "Normal", "A", "ü" * LONGEST_MESSAGE)
    await recorder.close()
    (event,) = await _events(client)
    assert len(event.message.encode()) <= LONGEST_MESSAGE
    assert event.message.endswith("ü...")


async def test_it_never_waits_for_the_server(client: KubeClient, server: ApiServer) -> None:
    server.faults.add(Rule(latency=60))
    recorder = EventRecorder(client, "test")
    loop = asyncio.get_running_loop()
    start = loop.time()
    for number in range(QUEUE + 50):
        recorder.event(POD, "Normal", f"Reason{number}", "x")
    assert loop.time() - start < 10
    assert recorder.dropped == 50
    await recorder.close(deadline=0.05)


async def test_refused_events_are_counted_and_the_next_ones_sent(client: KubeClient, server: ApiServer) -> None:
    rule: Any = server.faults.add(Rule(method="POST", code=403, reason="Forbidden"))
    recorder = EventRecorder(client, "test")
    recorder.event(POD, "Normal", "A", "x")
    await recorder.close()
    assert recorder.dropped == 1
    server.faults.remove(rule)
    recorder.event(POD, "Normal", "A", "x")
    await recorder.close()
    assert [each.count for each in await _events(client)] == [2]
