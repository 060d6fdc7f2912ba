"""What any API server does with particular kinds: services, network policies, custom resources, storage."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from foundation.kube import errors
from foundation.kube.models.meta import Unstructured
from foundation.kube.resources import ENDPOINT_SLICES, NETWORK_POLICIES, NODES, SERVICES, VOLUME_ATTACHMENTS, Resource

pytestmark = pytest.mark.real_api_server

Json = dict[str, Any]
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def _service(name: str, **spec: Any) -> Json:
    return {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}], **spec}}


async def test_a_service_gets_an_address(cluster: Any) -> None:
    one = await cluster.client.create(SERVICES, _service("one"), cluster.namespace)
    two = await cluster.client.create(SERVICES, _service("two"), cluster.namespace)
    assert one.spec.type == "ClusterIP"
    assert one.spec.cluster_ips == (one.spec.cluster_ip,)
    assert ipaddress.ip_address(one.spec.cluster_ip) != ipaddress.ip_address(two.spec.cluster_ip)
    assert one.spec.ports is not None
    assert (one.spec.ports[0].protocol, one.spec.ports[0].target_port) == ("TCP", 80)
    assert (one.spec.internal_traffic_policy, one.spec.session_affinity) == ("Cluster", "None")
    assert one.spec.ip_family_policy == "SingleStack"
    with pytest.raises(errors.Unprocessable, match="provided IP is already allocated"):
        await cluster.client.create(SERVICES, _service("three", clusterIP=one.spec.cluster_ip), cluster.namespace)


async def test_a_services_address_stays(cluster: Any) -> None:
    made = await cluster.client.create(SERVICES, _service("a"), cluster.namespace)
    body = {"spec": {"selector": {"app": "web"}}}
    after = await cluster.client.merge_patch(SERVICES, "a", cluster.namespace, body)
    assert after.spec.cluster_ip == made.spec.cluster_ip
    network = ipaddress.ip_network(f"{made.spec.cluster_ip}/29", strict=False)
    other = next(str(each) for each in network.hosts() if str(each) != made.spec.cluster_ip)
    body = {"spec": {"clusterIP": other, "clusterIPs": [other]}}
    with pytest.raises(errors.Unprocessable, match="may not change once set"):
        await cluster.client.merge_patch(SERVICES, "a", cluster.namespace, body)


async def test_a_headless_service_has_none(cluster: Any) -> None:
    made = await cluster.client.create(SERVICES, _service("a", clusterIP="None"), cluster.namespace)
    assert (made.spec.cluster_ip, made.spec.cluster_ips) == ("None", ("None",))


async def test_node_ports_are_given_once(cluster: Any) -> None:
    one = await cluster.client.create(SERVICES, _service("one", type="NodePort"), cluster.namespace)
    assert one.spec.ports is not None
    port = one.spec.ports[0].node_port
    assert 30000 <= port <= 32767
    assert one.spec.external_traffic_policy == "Cluster"
    wish = [{"port": 80, "nodePort": port}]
    with pytest.raises(errors.Unprocessable, match="provided port is already allocated"):
        await cluster.client.create(SERVICES, _service("two", type="NodePort", ports=wish), cluster.namespace)
    await cluster.client.delete(SERVICES, "one", cluster.namespace)
    two = await cluster.client.create(SERVICES, _service("two", type="NodePort", ports=wish), cluster.namespace)
    assert two.spec.ports is not None
    assert two.spec.ports[0].node_port == port
    low = _service("three", type="NodePort", ports=[{"port": 80, "nodePort": 80}])
    with pytest.raises(errors.Unprocessable, match="not in the valid range"):
        await cluster.client.create(SERVICES, low, cluster.namespace)


async def test_a_local_load_balancer_has_a_health_port(cluster: Any) -> None:
    body = _service("a", type="LoadBalancer", externalTrafficPolicy="Local")
    made = await cluster.client.create(SERVICES, body, cluster.namespace)
    assert made.spec.health_check_node_port >= 30000
    assert made.spec.allocate_load_balancer_node_ports is True
    status = {"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}}
    after = await cluster.client.merge_patch(SERVICES, "a", cluster.namespace, status, "status")
    assert after.status.load_balancer.ingress is not None
    assert after.status.load_balancer.ingress[0].ip == "192.0.2.1"


async def test_session_affinity_has_a_time(cluster: Any) -> None:
    made = await cluster.client.create(SERVICES, _service("a", sessionAffinity="ClientIP"), cluster.namespace)
    assert made.spec.session_affinity_config is not None
    assert made.spec.session_affinity_config.client_ip is not None
    assert made.spec.session_affinity_config.client_ip.timeout_seconds == 10800


async def test_a_service_must_be_whole(cluster: Any) -> None:
    two = [{"port": 80}, {"port": 81}]
    for spec in ({"ports": []}, {"ports": [{"port": 0}]}, {"ports": two}, {"type": "Nonsense"}):
        with pytest.raises(errors.Unprocessable):
            await cluster.client.create(SERVICES, _service("a", **spec), cluster.namespace)


async def test_a_network_policy_gets_its_types(cluster: Any) -> None:
    async def types(name: str, **spec: Any) -> Any:
        body = {"metadata": {"name": name}, "spec": {"podSelector": {}, **spec}}
        return (await cluster.client.create(NETWORK_POLICIES, body, cluster.namespace)).spec.policy_types

    assert await types("a") == ("Ingress",)
    assert await types("b", egress=[{}]) == ("Ingress", "Egress")
    assert await types("c", policyTypes=["Egress"]) == ("Egress",)


async def test_a_network_policys_generation_counts_changes_of_its_spec(cluster: Any) -> None:
    client, namespace = cluster.client, cluster.namespace
    made = await client.create(NETWORK_POLICIES, {"metadata": {"name": "a"}, "spec": {"podSelector": {}}}, namespace)
    assert made.metadata.generation == 1
    after = await client.merge_patch(NETWORK_POLICIES, "a", namespace, {"metadata": {"labels": {"x": "y"}}})
    assert after.metadata.generation == 1
    after = await client.merge_patch(NETWORK_POLICIES, "a", namespace, {"spec": {"ingress": [{}]}})
    assert after.metadata.generation == 2


@pytest.mark.parametrize(
    "spec",
    [
        {"ingress": [{"ports": [{"port": 0}]}]},
        {"ingress": [{"ports": [{"port": 10, "endPort": 9}]}]},
        {"ingress": [{"ports": [{"endPort": 9}]}]},
        {"ingress": [{"ports": [{"port": "name", "endPort": 9}]}]},
        {"ingress": [{"ports": [{"port": 80, "protocol": "ICMP"}]}]},
        {"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/33"}}]}]},
        {"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}]}]},
        {"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]}]},
        {"ingress": [{"from": [{}]}]},
        {"egress": [{"to": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}]}]},
        {"policyTypes": ["Sideways"]},
    ],
)
async def test_impossible_network_policies_are_refused(cluster: Any, spec: Json) -> None:
    body = {"metadata": {"name": "a"}, "spec": {"podSelector": {}, **spec}}
    with pytest.raises(errors.Unprocessable):
        await cluster.client.create(NETWORK_POLICIES, body, cluster.namespace)


async def test_an_endpoint_slice_keeps_its_type(cluster: Any) -> None:
    body = {"metadata": {"name": "a"}, "addressType": "IPv4", "endpoints": [{"addresses": ["10.1.1.1"]}], "ports": []}
    await cluster.client.create(ENDPOINT_SLICES, body, cluster.namespace)
    with pytest.raises(errors.Unprocessable, match="addressType"):
        await cluster.client.merge_patch(ENDPOINT_SLICES, "a", cluster.namespace, {"addressType": "IPv6"})


async def test_a_node_keeps_the_status_it_registers_with(cluster: Any) -> None:
    name = f"{cluster.namespace}-node"
    body = {"metadata": {"name": name}, "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.9"}]}}
    made = await cluster.client.create(NODES, body)
    try:
        assert made.status.addresses is not None
        assert made.status.addresses[0].address == "192.0.2.9"
        patched = await cluster.client.merge_patch(
            NODES, name, "", {"spec": {"podCIDRs": ["10.9.0.0/24"], "podCIDR": "10.9.0.0/24"}}
        )
        assert patched.spec.pod_cidrs == ("10.9.0.0/24",)
    finally:
        await cluster.client.delete(NODES, name)


async def test_an_attachment_is_fixed_and_its_status_apart(cluster: Any) -> None:
    name = f"{cluster.namespace}-va"
    spec = {"attacher": "csi.example.com", "nodeName": "n1", "source": {"persistentVolumeName": "pv1"}}
    body = {"metadata": {"name": name}, "spec": spec, "status": {"attached": True}}
    client = cluster.client
    made = await client.create(VOLUME_ATTACHMENTS, body)
    try:
        assert made.status.attached is False
        with pytest.raises(errors.Unprocessable):
            await client.merge_patch(VOLUME_ATTACHMENTS, name, "", {"spec": {"nodeName": "n2"}})
        status = {"attached": True, "attachmentMetadata": {"dpuNode": "d1"}}
        extra = {"metadata": {"annotations": {"ignored": "yes"}}}
        after = await client.merge_patch(VOLUME_ATTACHMENTS, name, "", {"status": status, **extra}, "status")
        assert after.status.attached is True
        assert after.status.attachment_metadata == {"dpuNode": "d1"}
        assert after.metadata.annotations == {}
    finally:
        await client.delete(VOLUME_ATTACHMENTS, name)


@pytest.fixture
async def widget(
    cluster: Any, widgets: Callable[[str], tuple[Json, Resource[Unstructured]]]
) -> AsyncIterator[Resource[Unstructured]]:
    """A custom kind, served."""
    definition, resource = widgets(cluster.namespace)
    await cluster.raw("POST", CRDS, definition)
    for _ in range(50):
        try:
            await cluster.client.list(resource, namespace=cluster.namespace)
            break
        except errors.NotFound:
            await asyncio.sleep(0.1)
    yield resource
    await cluster.raw("DELETE", f"{CRDS}/{definition['metadata']['name']}")


async def test_a_definition_makes_a_kind(cluster: Any, widget: Resource[Unstructured]) -> None:
    found = await cluster.raw("GET", f"{CRDS}/widgets.{widget.group}")
    conditions = {each["type"]: each["status"] for each in found["status"]["conditions"]}
    assert conditions["Established"] == "True"
    assert found["spec"]["names"]["listKind"] == "WidgetList"
    made = await cluster.client.create(widget, {"metadata": {"name": "a"}, "spec": {"size": 1}}, cluster.namespace)
    assert made.spec == {"size": 1, "color": "red"}, "the schema's default is filled in"
    assert made.metadata.generation == 1


async def test_a_schema_is_held(cluster: Any, widget: Resource[Unstructured]) -> None:
    body = {"metadata": {"name": "a"}, "spec": {"size": 1, "bogus": True}}
    made = await cluster.client.create(widget, body, cluster.namespace)
    assert "bogus" not in made.spec
    for spec in ({}, {"size": 0}, {"size": "1"}, {"size": 1, "color": "green"}):
        with pytest.raises(errors.Unprocessable):
            await cluster.client.create(widget, {"metadata": {"name": "b"}, "spec": spec}, cluster.namespace)


async def test_a_custom_status_is_apart(cluster: Any, widget: Resource[Unstructured]) -> None:
    client, namespace = cluster.client, cluster.namespace
    body = {"metadata": {"name": "a"}, "spec": {"size": 1}, "status": {"ready": True}}
    assert (await client.create(widget, body, namespace)).status is None
    patch = {"spec": {"size": 2}, "status": {"ready": True}, "metadata": {"labels": {"x": "y"}}}
    after = await client.merge_patch(widget, "a", namespace, patch, "status")
    assert (after.spec["size"], after.status, after.metadata.labels) == (1, {"ready": True}, {})
    assert after.metadata.generation == 1
    after = await client.merge_patch(widget, "a", namespace, patch)
    assert (after.spec["size"], after.metadata.generation, after.metadata.labels) == (2, 2, {"x": "y"})


async def test_custom_objects_take_no_strategic_patch_and_no_blind_put(
    cluster: Any, widget: Resource[Unstructured]
) -> None:
    await cluster.client.create(widget, {"metadata": {"name": "a"}, "spec": {"size": 1}}, cluster.namespace)
    path = widget.path(cluster.namespace, "a")
    with pytest.raises(errors.BadRequest) as refusal:
        await cluster.raw("PATCH", path, {"spec": {"size": 2}}, type="application/strategic-merge-patch+json")
    assert refusal.value.code == 415
    body = {
        "apiVersion": widget.api_version,
        "kind": "Widget",
        "metadata": {"name": "a", "namespace": cluster.namespace},
        "spec": {"size": 2},
    }
    with pytest.raises(errors.Unprocessable, match="must be specified for an update"):
        await cluster.raw("PUT", path, body)


async def test_a_schemas_lists_are_merged_by_their_keys(cluster: Any, widget: Resource[Unstructured]) -> None:
    base = {"metadata": {"name": "a", "namespace": cluster.namespace}}
    await cluster.client.apply(widget, {**base, "spec": {"size": 1, "parts": [{"name": "x", "count": 1}]}}, "one")
    await cluster.client.apply(widget, {**base, "spec": {"parts": [{"name": "y", "count": 2}]}}, "two")
    after = await cluster.client.apply(widget, {**base, "spec": {"size": 1}}, "one")
    assert after.spec["parts"] == [{"name": "y", "count": 2}]
