"""What any API server does with deletions: preconditions, finalizers, grace, owners, namespaces."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from foundation.kube import errors
from foundation.kube.resources import CONFIG_MAPS, NAMESPACES, PODS, SECRETS

pytestmark = pytest.mark.real_api_server

Json = dict[str, Any]


async def _config_map(cluster: Any, name: str, **metadata: Any) -> Any:
    return await cluster.client.create(CONFIG_MAPS, {"metadata": {"name": name, **metadata}}, cluster.namespace)


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.05)


def _owner(kind: str, obj: Any, **more: Any) -> Json:
    return {"apiVersion": "v1", "kind": kind, "name": obj.metadata.name, "uid": obj.metadata.uid, **more}


def _needs_controllers(cluster: Any) -> None:
    if not cluster.controllers:
        pytest.skip("this API server has no controller manager beside it")


async def test_a_delete_removes(cluster: Any) -> None:
    await _config_map(cluster, "a")
    answer = await cluster.raw("DELETE", cluster.path("configmaps", "a"))
    assert (answer["kind"], answer["status"], answer["details"]["name"]) == ("Status", "Success", "a")
    with pytest.raises(errors.NotFound):
        await cluster.client.delete(CONFIG_MAPS, "a", cluster.namespace)


async def test_preconditions_hold_a_delete(cluster: Any) -> None:
    made = await _config_map(cluster, "a")
    client, namespace = cluster.client, cluster.namespace
    with pytest.raises(errors.Conflict):
        await client.delete(CONFIG_MAPS, "a", namespace, uid="00000000-0000-4000-8000-000000000000")
    with pytest.raises(errors.Conflict):
        await client.delete(CONFIG_MAPS, "a", namespace, resource_version="1")
    await client.delete(
        CONFIG_MAPS, "a", namespace, uid=made.metadata.uid, resource_version=made.metadata.resource_version
    )


async def test_a_finalizer_keeps_the_object_until_it_is_gone(cluster: Any) -> None:
    client, namespace = cluster.client, cluster.namespace
    await _config_map(cluster, "a", finalizers=["example.com/hold"])
    await client.delete(CONFIG_MAPS, "a", namespace)
    held = await client.get(CONFIG_MAPS, "a", namespace)
    assert held.metadata.deletion_timestamp
    await client.delete(CONFIG_MAPS, "a", namespace)
    again = await client.get(CONFIG_MAPS, "a", namespace)
    assert again.metadata.deletion_timestamp == held.metadata.deletion_timestamp
    with pytest.raises(errors.Unprocessable, match="no new finalizers can be added"):
        await client.merge_patch(
            CONFIG_MAPS, "a", namespace, {"metadata": {"finalizers": ["example.com/hold", "example.com/more"]}}
        )
    await client.merge_patch(CONFIG_MAPS, "a", namespace, {"metadata": {"finalizers": None}})
    with pytest.raises(errors.NotFound):
        await client.get(CONFIG_MAPS, "a", namespace)


async def test_a_finalizer_has_a_domain(cluster: Any) -> None:
    with pytest.raises(errors.Unprocessable, match=r"metadata\.finalizers"):
        await _config_map(cluster, "a", finalizers=["hold"])


async def test_a_pod_on_a_node_waits_for_its_kubelet(cluster: Any, pod: Callable[..., Json]) -> None:
    client, namespace = cluster.client, cluster.namespace
    await client.create(PODS, pod("a", nodeName="no-such-node"), namespace)
    await client.delete(PODS, "a", namespace)
    dying = await client.get(PODS, "a", namespace)
    assert dying.metadata.deletion_timestamp
    assert dying.metadata.deletion_grace_period_seconds == 30
    await client.delete(PODS, "a", namespace, grace_seconds=0)
    with pytest.raises(errors.NotFound):
        await client.get(PODS, "a", namespace)


async def test_a_pod_without_a_node_goes_at_once(cluster: Any, pod: Callable[..., Json]) -> None:
    await cluster.client.create(PODS, pod("a"), cluster.namespace)
    await cluster.client.delete(PODS, "a", cluster.namespace)
    with pytest.raises(errors.NotFound):
        await cluster.client.get(PODS, "a", cluster.namespace)


async def test_a_finished_pod_goes_at_once(cluster: Any, pod: Callable[..., Json]) -> None:
    await cluster.client.create(PODS, pod("a", nodeName="no-such-node"), cluster.namespace)
    await cluster.client.merge_patch(PODS, "a", cluster.namespace, {"status": {"phase": "Succeeded"}}, "status")
    await cluster.client.delete(PODS, "a", cluster.namespace)
    with pytest.raises(errors.NotFound):
        await cluster.client.get(PODS, "a", cluster.namespace)


async def test_a_collection_is_deleted_by_selector(cluster: Any) -> None:
    await _config_map(cluster, "a", labels={"go": "yes"})
    await _config_map(cluster, "b", labels={"go": "yes"})
    await _config_map(cluster, "c")
    await cluster.raw("DELETE", cluster.path("configmaps"), labelSelector="go=yes")
    left = {each.metadata.name for each in await cluster.client.list(CONFIG_MAPS, namespace=cluster.namespace)}
    assert "c" in left
    assert not left & {"a", "b"}


async def test_what_is_owned_goes_with_its_owner(cluster: Any) -> None:
    _needs_controllers(cluster)
    owner, second = await _config_map(cluster, "owner"), await _config_map(cluster, "second")
    await _config_map(cluster, "one", ownerReferences=[_owner("ConfigMap", owner)])
    await _config_map(cluster, "both", ownerReferences=[_owner("ConfigMap", owner), _owner("ConfigMap", second)])
    await cluster.client.delete(CONFIG_MAPS, "owner", cluster.namespace)

    async def collected() -> bool:
        left = {
            each.metadata.name: each for each in await cluster.client.list(CONFIG_MAPS, namespace=cluster.namespace)
        }
        return "one" not in left and len(left["both"].metadata.owner_references) == 1

    await _until(collected)


async def test_foreground_deletion_takes_the_owner_last(cluster: Any) -> None:
    _needs_controllers(cluster)
    client, namespace = cluster.client, cluster.namespace
    owner = await _config_map(cluster, "owner")
    reference = _owner("ConfigMap", owner, blockOwnerDeletion=True)
    body = {"metadata": {"name": "s", "ownerReferences": [reference], "finalizers": ["example.com/hold"]}}
    await client.create(SECRETS, body, namespace)
    await client.delete(CONFIG_MAPS, "owner", namespace, propagation="Foreground")

    async def dependent_dying() -> bool:
        return bool((await client.get(SECRETS, "s", namespace)).metadata.deletion_timestamp)

    await _until(dependent_dying)
    waiting = await client.get(CONFIG_MAPS, "owner", namespace)
    assert waiting.metadata.finalizers == ("foregroundDeletion",)
    await client.merge_patch(SECRETS, "s", namespace, {"metadata": {"finalizers": None}})

    async def both_gone() -> bool:
        names = {each.metadata.name for each in await client.list(CONFIG_MAPS, namespace=namespace)}
        return "owner" not in names

    await _until(both_gone)


async def test_orphans_stay(cluster: Any) -> None:
    _needs_controllers(cluster)
    client, namespace = cluster.client, cluster.namespace
    owner = await _config_map(cluster, "owner")
    await _config_map(cluster, "one", ownerReferences=[_owner("ConfigMap", owner)])
    await client.delete(CONFIG_MAPS, "owner", namespace, propagation="Orphan")

    async def owner_gone() -> bool:
        return "owner" not in {each.metadata.name for each in await client.list(CONFIG_MAPS, namespace=namespace)}

    await _until(owner_gone)
    assert (await client.get(CONFIG_MAPS, "one", namespace)).metadata.owner_references == ()


async def test_a_namespace_takes_its_contents_along(cluster: Any) -> None:
    client = cluster.client
    made = await client.create(NAMESPACES, {"metadata": {"generateName": "dpu-offload-test-"}})
    name = made.metadata.name
    await client.create(CONFIG_MAPS, {"metadata": {"name": "a", "finalizers": ["example.com/hold"]}}, name)
    await client.delete(NAMESPACES, name)
    dying = await client.get(NAMESPACES, name)
    assert dying.metadata.deletion_timestamp
    assert dying.status.phase == "Terminating"
    with pytest.raises(errors.Forbidden, match="because it is being terminated"):
        await client.create(CONFIG_MAPS, {"metadata": {"name": "late"}}, name)
    await client.merge_patch(CONFIG_MAPS, "a", name, {"metadata": {"finalizers": None}})
    _needs_controllers(cluster)

    async def gone() -> bool:
        return name not in {each.metadata.name for each in await client.list(NAMESPACES)}

    await _until(gone)
