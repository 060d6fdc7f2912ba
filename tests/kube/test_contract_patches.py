"""What any API server does with patches: merge, JSON, strategic, apply, and the status apart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from foundation.kube import errors, patching
from foundation.kube.resources import CONFIG_MAPS, PODS

pytestmark = pytest.mark.real_api_server

Json = dict[str, Any]
STRATEGIC = "application/strategic-merge-patch+json"


async def _config_map(cluster: Any, **body: Any) -> Any:
    return await cluster.client.create(CONFIG_MAPS, {"metadata": {"name": "a"}, **body}, cluster.namespace)


async def test_a_merge_patch_merges_and_null_removes(cluster: Any) -> None:
    await _config_map(cluster, data={"x": "1", "y": "2"})
    after = await cluster.client.merge_patch(CONFIG_MAPS, "a", cluster.namespace, {"data": {"x": None, "z": "3"}})
    assert after.data == {"y": "2", "z": "3"}


async def test_a_merge_patch_that_carries_a_version_is_held_to_it(cluster: Any) -> None:
    old = await _config_map(cluster, data={"x": "1"})
    await cluster.client.merge_patch(CONFIG_MAPS, "a", cluster.namespace, {"data": {"x": "2"}})
    body = {"metadata": {"resourceVersion": old.metadata.resource_version}, "data": {"x": "3"}}
    with pytest.raises(errors.Conflict):
        await cluster.client.merge_patch(CONFIG_MAPS, "a", cluster.namespace, body)
    assert (await cluster.client.get(CONFIG_MAPS, "a", cluster.namespace)).data == {"x": "2"}


async def test_a_json_patch_is_all_or_nothing(cluster: Any) -> None:
    await _config_map(cluster, data={"x": "1"})
    good = [patching.test("/data/x", "1"), patching.replace("/data/x", "2"), patching.add("/data/y", "3")]
    after = await cluster.client.json_patch(CONFIG_MAPS, "a", cluster.namespace, good)
    assert after.data == {"x": "2", "y": "3"}
    for bad in (
        [patching.replace("/data/x", "9"), patching.test("/data/y", "no")],
        [patching.replace("/data/x", "9"), patching.remove("/data/none")],
        [patching.replace("/data/x", "9"), patching.add("/none/deeper", "1")],
    ):
        with pytest.raises(errors.Unprocessable):
            await cluster.client.json_patch(CONFIG_MAPS, "a", cluster.namespace, bad)
    assert (await cluster.client.get(CONFIG_MAPS, "a", cluster.namespace)).data == {"x": "2", "y": "3"}


async def test_a_json_patch_reaches_keys_with_slashes(cluster: Any) -> None:
    await _config_map(cluster, metadata={"name": "a", "annotations": {"dpu-offload.io/x": "1"}})
    path = patching.pointer("metadata", "annotations", "dpu-offload.io/x")
    after = await cluster.client.json_patch(CONFIG_MAPS, "a", cluster.namespace, [patching.remove(path)])
    assert after.metadata.annotations == {}


async def test_what_is_no_patch_is_refused(cluster: Any) -> None:
    await _config_map(cluster)
    path = cluster.path("configmaps", "a")
    with pytest.raises(errors.BadRequest) as refusal:
        await cluster.raw("PATCH", path, {"data": {}}, type="text/plain")
    assert refusal.value.code == 415
    with pytest.raises(errors.BadRequest):
        await cluster.raw("PATCH", path, {"op": "add"}, type="application/json-patch+json")


async def test_a_strategic_patch_merges_lists_by_key(cluster: Any, pod: Callable[..., Json]) -> None:
    body = pod("a")
    body["spec"]["containers"].append({"name": "second", "image": "registry.example/two:1"})
    await cluster.client.create(PODS, body, cluster.namespace)
    patch = {"spec": {"containers": [{"name": "second", "image": "registry.example/two:2"}]}}
    after = await cluster.raw("PATCH", cluster.path("pods", "a"), patch, type=STRATEGIC)
    assert {each["name"]: each["image"] for each in after["spec"]["containers"]} == {
        "main": "registry.example/none:1",
        "second": "registry.example/two:2",
    }
    condition = {"type": "PodReadyToStartContainers", "status": "True"}
    status = cluster.path("pods", "a") + "/status"
    await cluster.raw("PATCH", status, {"status": {"conditions": [{"type": "X", "status": "False"}]}}, type=STRATEGIC)
    after = await cluster.raw("PATCH", status, {"status": {"conditions": [condition]}}, type=STRATEGIC)
    assert {each["type"]: each["status"] for each in after["status"]["conditions"]} == {
        "X": "False",
        "PodReadyToStartContainers": "True",
    }
    gone = {"status": {"conditions": [{"$patch": "delete", "type": "X"}]}}
    after = await cluster.raw("PATCH", status, gone, type=STRATEGIC)
    assert [each["type"] for each in after["status"]["conditions"]] == ["PodReadyToStartContainers"]


async def test_status_and_spec_are_written_apart(cluster: Any, pod: Callable[..., Json]) -> None:
    await cluster.client.create(PODS, pod("a"), cluster.namespace)
    body = {"status": {"phase": "Running", "podIP": "10.1.2.3", "podIPs": [{"ip": "10.1.2.3"}]}}
    ignored = await cluster.client.merge_patch(PODS, "a", cluster.namespace, body)
    assert ignored.status.phase == "Pending"
    spec = {"spec": {"activeDeadlineSeconds": 5}, "metadata": {"annotations": {"seen": "yes"}}}
    after = await cluster.client.merge_patch(PODS, "a", cluster.namespace, body | spec, "status")
    assert (after.status.phase, after.status.pod_ip) == ("Running", "10.1.2.3")
    assert after.metadata.annotations == {"seen": "yes"}
    whole = await cluster.raw("GET", cluster.path("pods", "a"))
    assert "activeDeadlineSeconds" not in whole["spec"]


async def test_apply_creates_then_updates(cluster: Any) -> None:
    body = {"metadata": {"name": "a", "namespace": cluster.namespace}, "data": {"x": "1"}}
    made = await cluster.client.apply(CONFIG_MAPS, body, "one")
    assert made.data == {"x": "1"}
    again = await cluster.client.apply(CONFIG_MAPS, body, "one")
    assert again.metadata.resource_version == made.metadata.resource_version
    changed = await cluster.client.apply(CONFIG_MAPS, body | {"data": {"x": "2"}}, "one")
    assert changed.data == {"x": "2"}


async def test_apply_removes_what_its_manager_no_longer_names(cluster: Any) -> None:
    body = {"metadata": {"name": "a", "namespace": cluster.namespace}}
    await cluster.client.apply(CONFIG_MAPS, body | {"data": {"x": "1", "y": "1"}}, "one")
    await cluster.client.apply(CONFIG_MAPS, body | {"data": {"z": "1", "y": "1"}}, "two")
    after = await cluster.client.apply(CONFIG_MAPS, body | {"data": {}}, "one")
    assert after.data == {"y": "1", "z": "1"}, "x was one's alone, y is shared, z is two's"


async def test_apply_on_anothers_field_is_a_conflict_unless_forced(cluster: Any) -> None:
    body = {"metadata": {"name": "a", "namespace": cluster.namespace}}
    await cluster.client.apply(CONFIG_MAPS, body | {"data": {"x": "1"}}, "one")
    with pytest.raises(errors.Conflict, match='conflict with "one"') as refusal:
        await cluster.client.apply(CONFIG_MAPS, body | {"data": {"x": "2"}}, "two")
    assert ".data.x" in refusal.value.causes[0]
    await cluster.client.apply(CONFIG_MAPS, body | {"data": {"x": "2"}}, "two", force=True)
    with pytest.raises(errors.Conflict, match='conflict with "two"'):
        await cluster.client.apply(CONFIG_MAPS, body | {"data": {"x": "3"}}, "one")
    whole = await cluster.raw("GET", cluster.path("configmaps", "a"))
    owners = {
        each["manager"] for each in whole["metadata"]["managedFields"] if "f:x" in each["fieldsV1"].get("f:data", {})
    }
    assert owners == {"two"}


async def test_other_writes_own_what_they_change(cluster: Any) -> None:
    path = cluster.path("configmaps", "a")
    await cluster.raw(
        "POST", cluster.path("configmaps"), {"metadata": {"name": "a"}, "data": {"x": "1"}}, fieldManager="maker"
    )
    merge = "application/merge-patch+json"
    await cluster.raw("PATCH", path, {"data": {"y": "1"}}, type=merge, fieldManager="patcher")
    body = {"metadata": {"name": "a", "namespace": cluster.namespace}}
    for field, owner in (("x", "maker"), ("y", "patcher")):
        with pytest.raises(errors.Conflict, match=f'conflict with "{owner}" using v1'):
            await cluster.client.apply(CONFIG_MAPS, body | {"data": {field: "2"}}, "applier")
    same = await cluster.client.apply(CONFIG_MAPS, body | {"data": {"x": "1"}}, "applier")
    assert same.data == {"x": "1", "y": "1"}


async def test_apply_needs_a_manager(cluster: Any) -> None:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}
    with pytest.raises(errors.Unprocessable, match="fieldManager"):
        await cluster.raw("PATCH", cluster.path("configmaps", "a"), body, type="application/apply-patch+yaml")


async def test_apply_merges_keyed_lists(cluster: Any) -> None:
    base = {"metadata": {"name": "a", "namespace": cluster.namespace}}

    async def apply(manager: str, *ports: Json) -> list[int]:
        body = {"apiVersion": "v1", "kind": "Service", **base, "spec": {"ports": list(ports)}}
        after = await cluster.raw(
            "PATCH",
            cluster.path("services", "a"),
            body,
            type="application/apply-patch+yaml",
            fieldManager=manager,
        )
        return sorted(port["port"] for port in after["spec"]["ports"])

    assert await apply("one", {"name": "http", "port": 80, "protocol": "TCP"}) == [80]
    assert await apply("two", {"name": "dns", "port": 53, "protocol": "UDP"}) == [53, 80]
    assert await apply("one", {"name": "tls", "port": 443, "protocol": "TCP"}) == [53, 443]


async def test_update_retries_a_pure_change(cluster: Any) -> None:
    await _config_map(cluster, data={"n": "0"})
    calls: list[str] = []

    def bump(found: Any) -> Json:
        calls.append(found.data["n"])
        return {"data": {"n": str(int(found.data["n"]) + 1)}}

    await asyncio.gather(
        *(cluster.client.update(CONFIG_MAPS, "a", cluster.namespace, bump, attempts=50) for _ in range(8))
    )
    assert (await cluster.client.get(CONFIG_MAPS, "a", cluster.namespace)).data == {"n": "8"}
    unchanged = await cluster.client.update(CONFIG_MAPS, "a", cluster.namespace, lambda found: None)
    assert unchanged.data == {"n": "8"}
