"""What any API server does with lists and watches: selectors, pages, versions, bookmarks, errors in the stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from foundation.kube import errors
from foundation.kube.resources import CONFIG_MAPS, PODS, SECRETS
from foundation.kube.watching import lines

pytestmark = pytest.mark.real_api_server

Json = dict[str, Any]


class Events:
    """The events of a watch, one after another."""

    def __init__(self, batches: AsyncIterator[list[bytes]]) -> None:
        self._batches = batches
        self._waiting: list[Json] = []

    async def next(self) -> Json:
        """The next one, bookmarks included; StopAsyncIteration at the end of the stream."""
        while not self._waiting:
            async with asyncio.timeout(30):
                self._waiting = [msgspec.json.decode(line) for line in await anext(self._batches)]
        return self._waiting.pop(0)

    async def take(self, count: int) -> list[tuple[str, str]]:
        """(type, name) of the next events that are no bookmarks."""
        found: list[tuple[str, str]] = []
        while len(found) < count:
            event = await self.next()
            if event["type"] != "BOOKMARK":
                found.append((event["type"], event["object"]["metadata"]["name"]))
        return found


@asynccontextmanager
async def watching(cluster: Any, plural: str, *, path: str = "", **query: str) -> AsyncIterator[Events]:
    query = {"watch": "true", "timeoutSeconds": "30", **query}
    async with cluster.client._transport.stream(path or cluster.path(plural), query=query, idle=20) as content:
        yield Events(lines(content))


async def _make(cluster: Any, *names: str, labels: Json | None = None) -> str:
    version = ""
    for name in names:
        body = {"metadata": {"name": name, "labels": labels or {}}}
        version = (await cluster.client.create(CONFIG_MAPS, body, cluster.namespace)).metadata.resource_version
    return version


async def _drop(cluster: Any, name: str) -> None:
    await cluster.client.delete(CONFIG_MAPS, name, cluster.namespace)


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("app=web", {"a", "b"}),
        ("app==web,tier=front", {"a"}),
        ("app!=web", {"c", "d"}),
        ("app in (web, db)", {"a", "b", "c"}),
        ("app notin (web)", {"c", "d"}),
        ("tier", {"a"}),
        ("!app", {"d"}),
        ("app,!tier", {"b", "c"}),
        ("app in (db),app!=web", {"c"}),
    ],
)
async def test_label_selectors(cluster: Any, selector: str, expected: set[str]) -> None:
    await _make(cluster, "a", labels={"app": "web", "tier": "front", "ours": "yes"})
    await _make(cluster, "b", labels={"app": "web", "ours": "yes"})
    await _make(cluster, "c", labels={"app": "db", "ours": "yes"})
    await _make(cluster, "d", labels={"ours": "yes"})
    found = await cluster.client.list(CONFIG_MAPS, namespace=cluster.namespace, label_selector=f"{selector},ours=yes")
    assert {each.metadata.name for each in found} == expected


async def test_bad_selectors_are_refused(cluster: Any) -> None:
    with pytest.raises(errors.BadRequest):
        await cluster.client.list(CONFIG_MAPS, namespace=cluster.namespace, label_selector="a in (b")
    with pytest.raises(errors.BadRequest, match=r'"data\.x" is not a known field selector'):
        await cluster.client.list(CONFIG_MAPS, namespace=cluster.namespace, field_selector="data.x=1")
    with pytest.raises(errors.BadRequest, match=r"field label not supported: data\.x"):
        await cluster.client.list(PODS, namespace=cluster.namespace, field_selector="data.x=1")


async def test_field_selectors(cluster: Any, pod: Callable[..., Json]) -> None:
    for name, node in (("a", "n1"), ("b", "n2"), ("c", "")):
        await cluster.client.create(PODS, pod(name, **({"nodeName": node} if node else {})), cluster.namespace)
    await cluster.client.merge_patch(PODS, "a", cluster.namespace, {"status": {"phase": "Running"}}, "status")

    async def names(selector: str) -> set[str]:
        found = await cluster.client.list(PODS, namespace=cluster.namespace, field_selector=selector)
        return {each.metadata.name for each in found}

    assert await names("spec.nodeName=n1") == {"a"}
    assert await names("spec.nodeName!=n1") == {"b", "c"}
    assert await names("spec.nodeName=") == {"c"}
    assert await names("status.phase=Running") == {"a"}
    assert await names("metadata.name=b,spec.nodeName=n2") == {"b"}
    assert await names(f"metadata.namespace={cluster.namespace}") == {"a", "b", "c"}
    secret = {"metadata": {"name": "s"}, "type": "example.com/x"}
    await cluster.client.create(SECRETS, secret, cluster.namespace)
    found = await cluster.client.list(SECRETS, namespace=cluster.namespace, field_selector="type=example.com/x")
    assert [each.metadata.name for each in found] == ["s"]
    for name in "ab":
        await cluster.client.delete(PODS, name, cluster.namespace, grace_seconds=0)


async def test_a_list_comes_in_pages_of_one_version(cluster: Any) -> None:
    names = [f"p-{number}" for number in range(7)]
    await _make(cluster, *names, labels={"ours": "yes"})
    first = await cluster.raw("GET", cluster.path("configmaps"), limit="3", labelSelector="ours=yes")
    assert [each["metadata"]["name"] for each in first["items"]] == names[:3]
    assert "remainingItemCount" not in first["metadata"], "not counted behind a selector"
    await _make(cluster, "p-9", labels={"ours": "yes"})
    await _drop(cluster, "p-5")
    second = await cluster.raw(
        "GET",
        cluster.path("configmaps"),
        limit="10",
        labelSelector="ours=yes",
        **{"continue": first["metadata"]["continue"]},
    )
    assert [each["metadata"]["name"] for each in second["items"]] == names[3:], "as it was when the list began"
    assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    assert not second["metadata"].get("continue")
    assert second["kind"] == "ConfigMapList"


async def test_pages_say_how_much_is_left(cluster: Any) -> None:
    await _make(cluster, *(f"p-{number}" for number in range(5)))
    whole = await cluster.raw("GET", cluster.path("configmaps"))
    page = await cluster.raw("GET", cluster.path("configmaps"), limit="2")
    assert page["metadata"]["remainingItemCount"] == len(whole["items"]) - 2
    with pytest.raises(errors.BadRequest):
        await cluster.raw("GET", cluster.path("configmaps"), limit="2", **{"continue": "nonsense"})


async def test_a_version_of_the_future_is_too_large(cluster: Any) -> None:
    query = {"resourceVersion": "999999999"}
    with pytest.raises(errors.VersionTooLarge) as refusal:
        await cluster.client.request("GET", cluster.path("configmaps"), query=query, repeatable=False)
    assert refusal.value.code == 504
    assert refusal.value.retry_after >= 1


async def test_a_watch_shows_each_change_once_in_order(cluster: Any) -> None:
    version = await _make(cluster, "before")
    await _make(cluster, "a")
    async with watching(cluster, "configmaps", resourceVersion=version) as events:
        assert await events.take(1) == [("ADDED", "a")]
        await _make(cluster, "b")
        await cluster.client.merge_patch(CONFIG_MAPS, "a", cluster.namespace, {"data": {"x": "1"}})
        await _drop(cluster, "b")
        assert await events.take(3) == [("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "b")]


async def test_a_deleted_event_carries_the_version_of_the_deletion(cluster: Any) -> None:
    version = await _make(cluster, "a")
    async with watching(cluster, "configmaps", resourceVersion=version) as events:
        await _drop(cluster, "a")
        event = await events.next()
        assert event["type"] == "DELETED"
        assert int(event["object"]["metadata"]["resourceVersion"]) > int(version)


async def test_a_watch_without_version_begins_with_what_is_there(cluster: Any) -> None:
    await _make(cluster, "a", "b", labels={"ours": "yes"})
    for version in ({}, {"resourceVersion": "0"}):
        async with watching(cluster, "configmaps", labelSelector="ours=yes", **version) as events:
            assert sorted(await events.take(2)) == [("ADDED", "a"), ("ADDED", "b")]


async def test_objects_come_into_sight_of_a_selector_and_leave_it(cluster: Any) -> None:
    version = await _make(cluster, "a")
    client, namespace = cluster.client, cluster.namespace
    async with watching(cluster, "configmaps", resourceVersion=version, labelSelector="on=yes") as events:
        await client.merge_patch(CONFIG_MAPS, "a", namespace, {"metadata": {"labels": {"on": "yes"}}})
        await client.merge_patch(CONFIG_MAPS, "a", namespace, {"data": {"x": "1"}})
        await client.merge_patch(CONFIG_MAPS, "a", namespace, {"metadata": {"labels": {"on": None}}})
        await client.merge_patch(CONFIG_MAPS, "a", namespace, {"data": {"x": "2"}})
        await client.merge_patch(CONFIG_MAPS, "a", namespace, {"metadata": {"labels": {"on": "yes"}}})
        assert await events.take(4) == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a"), ("ADDED", "a")]


async def test_a_watch_ends_after_its_time(cluster: Any) -> None:
    version = await _make(cluster, "a")
    loop = asyncio.get_running_loop()
    start = loop.time()
    async with watching(cluster, "configmaps", resourceVersion=version, timeoutSeconds="1") as events:
        with pytest.raises(StopAsyncIteration):
            await events.next()
    assert 0.8 < loop.time() - start < 20


async def test_a_watch_list_ends_its_first_part_with_a_bookmark(cluster: Any) -> None:
    await _make(cluster, "a", "b", labels={"ours": "yes"})
    query = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}
    async with watching(cluster, "configmaps", labelSelector="ours=yes", **query) as events:
        seen = [await events.next() for _ in range(3)]
    assert [event["type"] for event in seen] == ["ADDED", "ADDED", "BOOKMARK"]
    metadata = seen[-1]["object"]["metadata"]
    assert metadata["annotations"] == {"k8s.io/initial-events-end": "true"}
    assert int(metadata["resourceVersion"]) >= max(
        int(each["object"]["metadata"]["resourceVersion"]) for each in seen[:2]
    )


async def test_send_initial_events_needs_its_companion(cluster: Any) -> None:
    with pytest.raises(errors.Unprocessable):
        async with watching(cluster, "configmaps", sendInitialEvents="true") as events:
            await events.next()


async def test_a_bookmark_comes_before_the_end(cluster: Any) -> None:
    version = await _make(cluster, "a")
    seconds = "1" if cluster.server is not None else "4"  # a real one sends it about two seconds before the end
    query = {"resourceVersion": version, "allowWatchBookmarks": "true", "timeoutSeconds": seconds}
    async with watching(cluster, "configmaps", labelSelector="no=body", **query) as events:
        version = await _make(cluster, "unseen")
        event = await events.next()
    assert event["type"] == "BOOKMARK"
    assert event["object"]["kind"] == "ConfigMap"
    assert int(event["object"]["metadata"]["resourceVersion"]) >= int(version)


async def test_a_forgotten_version_is_an_error_in_the_stream(
    cluster: Any, widgets: Callable[[str], tuple[Json, Any]]
) -> None:
    # nothing that the server remembers of a kind is older than the kind itself
    definition, resource = widgets(cluster.namespace)
    crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    await cluster.raw("POST", crds, definition)
    try:
        path = await _served(cluster, resource)
        async with watching(cluster, "", path=path, resourceVersion="1") as events:
            event = await events.next()
        assert event["type"] == "ERROR"
        assert (event["object"]["code"], event["object"]["reason"]) == (410, "Expired")
        assert event["object"]["message"].startswith("too old resource version: 1 (")
    finally:
        await cluster.raw("DELETE", f"{crds}/{definition['metadata']['name']}")


async def _served(cluster: Any, resource: Any) -> str:
    path: str = resource.path(cluster.namespace)
    for _ in range(50):
        try:
            await cluster.raw("GET", path)
        except errors.NotFound:
            await asyncio.sleep(0.1)
        else:
            return path
    raise AssertionError(f"{path} is not served")
