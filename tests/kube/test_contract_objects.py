"""What any API server does with objects: versions, names, conflicts, fields it does not know."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from foundation.kube import errors
from foundation.kube.resources import CONFIG_MAPS, EVENTS, LEASES, NAMESPACES, PODS, SECRETS

pytestmark = pytest.mark.real_api_server

Json = dict[str, Any]


async def test_a_create_fills_in_the_metadata(cluster: Any, pod: Callable[..., Json]) -> None:
    made = await cluster.raw("POST", cluster.path("pods"), pod("a"))
    metadata = made["metadata"]
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", metadata["uid"])
    assert int(metadata["resourceVersion"]) > 0
    assert metadata["generation"] == 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", metadata["creationTimestamp"])
    assert metadata["namespace"] == cluster.namespace
    assert (made["apiVersion"], made["kind"]) == ("v1", "Pod")


async def test_versions_grow_over_all_objects(cluster: Any) -> None:
    one = await cluster.client.create(CONFIG_MAPS, {"metadata": {"name": "one"}}, cluster.namespace)
    other = await cluster.client.create(SECRETS, {"metadata": {"name": "other"}}, cluster.namespace)
    again = await cluster.client.merge_patch(CONFIG_MAPS, "one", cluster.namespace, {"data": {"a": "b"}})
    versions = [int(each.metadata.resource_version) for each in (one, other, again)]
    assert versions == sorted(set(versions))


async def test_generate_name_makes_distinct_names(cluster: Any) -> None:
    made = [
        await cluster.client.create(CONFIG_MAPS, {"metadata": {"generateName": "x-"}}, cluster.namespace)
        for _ in range(3)
    ]
    names = {each.metadata.name for each in made}
    assert len(names) == 3
    assert all(re.fullmatch(r"x-[a-z0-9]{5}", name) for name in names)


async def test_a_second_create_is_refused(cluster: Any) -> None:
    body = {"metadata": {"name": "a"}}
    await cluster.client.create(CONFIG_MAPS, body, cluster.namespace)
    with pytest.raises(errors.AlreadyExists, match='configmaps "a" already exists') as refusal:
        await cluster.client.create(CONFIG_MAPS, body, cluster.namespace)
    assert (refusal.value.code, refusal.value.reason) == (409, "AlreadyExists")


async def test_what_is_not_there_is_not_found(cluster: Any) -> None:
    with pytest.raises(errors.NotFound, match='pods "none" not found'):
        await cluster.client.get(PODS, "none", cluster.namespace)
    with pytest.raises(errors.NotFound, match='namespaces "no-such-namespace" not found'):
        await cluster.client.create(CONFIG_MAPS, {"metadata": {"name": "a"}}, "no-such-namespace")
    with pytest.raises(errors.NotFound):
        await cluster.raw("GET", cluster.path("gizmos"))
    with pytest.raises(errors.NotFound):
        await cluster.client.merge_patch(CONFIG_MAPS, "none", cluster.namespace, {"data": {}})


async def test_a_name_must_fit(cluster: Any) -> None:
    with pytest.raises(errors.Unprocessable) as refusal:
        await cluster.client.create(CONFIG_MAPS, {"metadata": {"name": "Not_Good"}}, cluster.namespace)
    assert refusal.value.causes[0].startswith("metadata.name: Invalid value")
    with pytest.raises(errors.Unprocessable, match="name or generateName is required"):
        await cluster.client.create(CONFIG_MAPS, {"metadata": {}}, cluster.namespace)
    with pytest.raises(errors.BadRequest):
        await cluster.raw("POST", cluster.path("configmaps"), {"metadata": {"name": "a", "namespace": "elsewhere"}})
    with pytest.raises(errors.BadRequest):
        await cluster.client.create(CONFIG_MAPS, {"kind": "Secret", "metadata": {"name": "a"}}, cluster.namespace)


async def test_labels_must_fit(cluster: Any) -> None:
    for labels in ({"a b": "c"}, {"a": "c d"}, {"a": "x" * 64}, {"-": "x"}):
        with pytest.raises(errors.Unprocessable, match=r"metadata\.labels"):
            await cluster.client.create(CONFIG_MAPS, {"metadata": {"name": "a", "labels": labels}}, cluster.namespace)


async def test_a_put_on_a_stale_version_is_a_conflict(cluster: Any) -> None:
    path = cluster.path("configmaps", "a")
    old = await cluster.raw("POST", cluster.path("configmaps"), {"metadata": {"name": "a"}})
    await cluster.raw("PUT", path, {**old, "data": {"x": "1"}})
    with pytest.raises(errors.Conflict, match="the object has been modified"):
        await cluster.raw("PUT", path, {**old, "data": {"x": "2"}})
    assert (await cluster.raw("GET", path))["data"] == {"x": "1"}


async def test_a_put_without_version_depends_on_the_kind(cluster: Any) -> None:
    await cluster.client.create(CONFIG_MAPS, {"metadata": {"name": "a"}}, cluster.namespace)
    body = {"metadata": {"name": "a", "namespace": cluster.namespace}, "data": {"x": "1"}}
    assert (await cluster.client.replace(CONFIG_MAPS, body)).data == {"x": "1"}
    await cluster.client.create(LEASES, {"metadata": {"name": "a"}}, cluster.namespace)
    with pytest.raises(errors.Unprocessable, match="must be specified for an update"):
        await cluster.client.replace(LEASES, {"metadata": {"name": "a", "namespace": cluster.namespace}})


async def test_a_put_that_changes_nothing_makes_no_version(cluster: Any) -> None:
    await cluster.client.create(CONFIG_MAPS, {"metadata": {"name": "a"}, "data": {"x": "1"}}, cluster.namespace)
    path = cluster.path("configmaps", "a")
    old = await cluster.raw("GET", path)
    assert (await cluster.raw("PUT", path, old))["metadata"]["resourceVersion"] == old["metadata"]["resourceVersion"]
    patched = await cluster.client.merge_patch(CONFIG_MAPS, "a", cluster.namespace, {"data": {"x": "1"}})
    assert patched.metadata.resource_version == old["metadata"]["resourceVersion"]


async def test_a_put_must_name_what_it_replaces(cluster: Any) -> None:
    made = await cluster.raw("POST", cluster.path("configmaps"), {"metadata": {"name": "a"}})
    with pytest.raises(errors.BadRequest):
        await cluster.raw("PUT", cluster.path("configmaps", "b"), made)
    with pytest.raises(errors.NotFound):
        await cluster.raw("PUT", cluster.path("configmaps", "b"), {"metadata": {"name": "b"}})
    other = {**made, "metadata": {**made["metadata"], "uid": "00000000-0000-4000-8000-000000000000"}}
    with pytest.raises(errors.Conflict, match="UID in precondition"):
        await cluster.raw("PUT", cluster.path("configmaps", "a"), other)


async def test_metadata_of_the_server_cannot_be_written(cluster: Any) -> None:
    made = await cluster.client.create(CONFIG_MAPS, {"metadata": {"name": "a"}}, cluster.namespace)
    body = {"metadata": {"creationTimestamp": "2001-01-01T00:00:00Z", "generation": 7}}
    after = await cluster.client.merge_patch(CONFIG_MAPS, "a", cluster.namespace, body)
    assert after.metadata.creation_timestamp == made.metadata.creation_timestamp
    assert after.metadata.generation == 0
    for name, value in (
        ("deletionTimestamp", "2001-01-01T00:00:00Z"),
        ("deletionGracePeriodSeconds", 5),
        ("uid", "00000000-0000-4000-8000-000000000000"),
    ):
        with pytest.raises(errors.Unprocessable, match=f"metadata.{name}: Invalid value: .*field is immutable"):
            await cluster.client.merge_patch(CONFIG_MAPS, "a", cluster.namespace, {"metadata": {name: value}})
    born = {"metadata": {"name": "b", "resourceVersion": "5"}}
    with pytest.raises(errors.KubeError, match="resourceVersion should not be set on objects to be created"):
        await cluster.client.create(CONFIG_MAPS, born, cluster.namespace)


async def test_unknown_fields_are_dropped_or_refused(cluster: Any, pod: Callable[..., Json]) -> None:
    body = pod("a", bogus=1)
    body["spec"]["containers"][0]["bogus"] = {"x": 1}
    made = await cluster.raw("POST", cluster.path("pods"), body)
    assert "bogus" not in made["spec"]
    assert "bogus" not in made["spec"]["containers"][0]
    with pytest.raises(errors.BadRequest, match=r'unknown field "spec\.bogus"'):
        await cluster.raw("POST", cluster.path("pods"), pod("b", bogus=1), fieldValidation="Strict")
    with pytest.raises(errors.BadRequest):
        await cluster.raw("POST", cluster.path("pods"), pod("c", hostNetwork="yes"))


async def test_a_dry_run_changes_nothing(cluster: Any) -> None:
    body = {"metadata": {"name": "a"}, "data": {"x": "1"}}
    made = await cluster.raw("POST", cluster.path("configmaps"), body, dryRun="All")
    assert made["metadata"]["uid"]
    with pytest.raises(errors.NotFound):
        await cluster.client.get(CONFIG_MAPS, "a", cluster.namespace)


async def test_a_pod_gets_its_defaults(cluster: Any, pod: Callable[..., Json]) -> None:
    body = pod("a")
    body["spec"]["containers"][0]["ports"] = [{"containerPort": 80}]
    body["status"] = {"phase": "Running", "podIP": "10.0.0.1"}
    made = await cluster.raw("POST", cluster.path("pods"), body)
    spec, container = made["spec"], made["spec"]["containers"][0]
    assert (spec["restartPolicy"], spec["terminationGracePeriodSeconds"], spec["dnsPolicy"]) == (
        "Always",
        30,
        "ClusterFirst",
    )
    assert container["ports"] == [{"containerPort": 80, "protocol": "TCP"}]
    assert container["imagePullPolicy"] == "IfNotPresent"
    assert made["status"]["phase"] == "Pending"
    assert "podIP" not in made["status"]


async def test_a_pod_must_be_whole(cluster: Any) -> None:
    with pytest.raises(errors.Unprocessable, match=r"spec\.containers"):
        await cluster.raw("POST", cluster.path("pods"), {"metadata": {"name": "a"}, "spec": {"containers": []}})
    with pytest.raises(errors.Unprocessable, match="image"):
        await cluster.raw(
            "POST", cluster.path("pods"), {"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c"}]}}
        )


async def test_a_pods_spec_is_fixed(cluster: Any, pod: Callable[..., Json]) -> None:
    await cluster.client.create(PODS, pod("a"), cluster.namespace)
    for spec in ({"nodeName": "n1"}, {"hostname": "h"}, {"restartPolicy": "Never"}):
        with pytest.raises(errors.Unprocessable, match="pod updates may not change fields other than"):
            await cluster.client.merge_patch(PODS, "a", cluster.namespace, {"spec": spec})
    after = await cluster.client.merge_patch(PODS, "a", cluster.namespace, {"spec": {"activeDeadlineSeconds": 60}})
    assert after.metadata.generation == 2


async def test_binding_puts_a_pod_on_a_node(cluster: Any, pod: Callable[..., Json]) -> None:
    await cluster.client.create(PODS, pod("a"), cluster.namespace)
    body = {"metadata": {"name": "a"}, "target": {"apiVersion": "v1", "kind": "Node", "name": "no-such-node"}}
    await cluster.raw("POST", cluster.path("pods", "a") + "/binding", body)
    assert (await cluster.client.get(PODS, "a", cluster.namespace)).spec.node_name == "no-such-node"
    with pytest.raises(errors.Conflict):
        await cluster.raw("POST", cluster.path("pods", "a") + "/binding", body)
    await cluster.client.delete(PODS, "a", cluster.namespace, grace_seconds=0)


async def test_a_lease_keeps_microseconds(cluster: Any) -> None:
    spec = {"holderIdentity": "me", "leaseDurationSeconds": 15, "renewTime": "2026-11-21T10:00:00.123456Z"}
    made = await cluster.client.create(LEASES, {"metadata": {"name": "a"}, "spec": spec}, cluster.namespace)
    assert made.spec.renew_time == "2026-11-21T10:00:00.123456Z"
    with pytest.raises(errors.Unprocessable, match="leaseDurationSeconds"):
        await cluster.client.merge_patch(LEASES, "a", cluster.namespace, {"spec": {"leaseDurationSeconds": 0}})


async def test_a_secret_takes_text_and_gives_bytes(cluster: Any) -> None:
    body = {"metadata": {"name": "a"}, "stringData": {"key": "value"}}
    made = await cluster.client.create(SECRETS, body, cluster.namespace)
    assert made.data == {"key": b"value"}
    assert made.type == "Opaque"
    assert "value" not in repr(made)


async def test_a_namespace_is_active_and_labelled(cluster: Any) -> None:
    found = await cluster.client.get(NAMESPACES, cluster.namespace)
    assert found.status.phase == "Active"
    assert found.metadata.labels["kubernetes.io/metadata.name"] == cluster.namespace


async def test_events_are_kept(cluster: Any, pod: Callable[..., Json]) -> None:
    about = {"kind": "Pod", "namespace": cluster.namespace, "name": "a", "apiVersion": "v1"}
    body = {
        "metadata": {"name": "a.1"},
        "involvedObject": about,
        "type": "Warning",
        "reason": "Why",
        "message": "because",
        "count": 1,
    }
    await cluster.client.create(EVENTS, body, cluster.namespace)
    selector = "involvedObject.kind=Pod,involvedObject.name=a,type=Warning,reason=Why"
    found = await cluster.client.list(EVENTS, namespace=cluster.namespace, field_selector=selector)
    assert [each.message for each in found] == ["because"]


async def test_the_server_says_what_it_serves(cluster: Any) -> None:
    assert (await cluster.raw("GET", "/version"))["major"] == "1"
    groups = {group["name"]: group for group in (await cluster.raw("GET", "/apis"))["groups"]}
    assert groups["storage.k8s.io"]["preferredVersion"]["groupVersion"] == "storage.k8s.io/v1"
    resources = {each["name"]: each for each in (await cluster.raw("GET", "/api/v1"))["resources"]}
    assert resources["pods"]["namespaced"] is True
    assert "watch" in resources["pods"]["verbs"]
    assert "pods/status" in resources
    assert resources["nodes"]["namespaced"] is False
    assert await cluster.client.request("GET", "/readyz") == b"ok"
