"""dpuctl against the API server stand-in: what it shows, what it finds wrong, and its exit codes."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from dpuctl.cluster import Cluster, Unreadable
from foundation.kube import resources
from foundation.kube.client import KubeClient
from lab import objects
from lab.apiserver.server import ApiServer
from lab.layout import DPU_NODE, HOST_NODE
from lab.setting import create_objects

STORAGE = {"endpoint": "127.0.0.1:1", "hostNqn": "nqn.x", "functions": {"total": 8, "free": 5}}


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[KubeClient]:
    async with ApiServer() as server:
        kubeconfig = tmp_path / "kubeconfig"
        server.kubeconfig(kubeconfig)
        async with await KubeClient.connect(kubeconfig=str(kubeconfig)) as client:
            await create_objects(client, class_parameters={})
            yield client


async def ready(client: KubeClient, node: str) -> None:
    body = {"status": {"conditions": [{"type": "Ready", "status": "True", "message": "fine"}]}}
    await client.merge_patch(resources.NODES, node, "", body, subresource="status")


async def test_status_shows_pairs_and_what_is_wrong(client: KubeClient) -> None:
    rows = {row.fields["node"]: row for row in await Cluster(client).nodes()}
    assert not any(row.well for row in rows.values())
    assert "csi-node-dpu has published nothing" in rows[DPU_NODE].fields["why"]
    for node in objects.POD_CIDRS:
        await ready(client, node)
    body = {"metadata": {"annotations": {"dpu-offload.io/storage": json.dumps(STORAGE)}}}
    await client.merge_patch(resources.NODES, DPU_NODE, "", body)
    found = await Cluster(client).nodes()
    assert all(row.well for row in found)
    names = [row.fields["node"] for row in found]
    assert names.index(HOST_NODE) + 1 == names.index(DPU_NODE)
    assert found[names.index(DPU_NODE)].fields["disks"] == "3/8"
    assert found[names.index(HOST_NODE)].fields["pair"] == [DPU_NODE]


async def test_a_host_without_a_dpu_is_told_the_cure(client: KubeClient) -> None:
    await ready(client, HOST_NODE)
    await client.delete(resources.NODES, DPU_NODE)
    rows = {row.fields["node"]: row for row in await Cluster(client).nodes()}
    assert "dpu-offload.io/host-node=node-host" in rows[HOST_NODE].fields["why"]
    assert not rows[HOST_NODE].well


async def test_pods_have_a_row_a_network(client: KubeClient) -> None:
    body: dict[str, Any] = objects.pod("web", node_name=HOST_NODE)
    networks = {"default": {"ips": ["10.0.0.2/24"], "mac": "02:00:00:00:00:01"}, "ns/blue": {"ips": ["10.9.0.2/24"]}}
    body["metadata"]["annotations"] = {"dpu-offload.io/pod-networks": json.dumps(networks)}
    await client.create(resources.PODS, body)
    rows = [row.fields for row in await Cluster(client).pods("")]
    assert [(row["network"], row["addresses"]) for row in rows] == [
        ("default", ["10.0.0.2/24"]),
        ("ns/blue", ["10.9.0.2/24"]),
    ]
    assert await Cluster(client).pods("elsewhere") == []


async def test_an_attachment_that_failed_is_not_well(client: KubeClient) -> None:
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": "pv-1"},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "csi": {"driver": "csi.dpu-offload.io", "volumeHandle": "main:v1"},
        },
    }
    await client.create(resources.PERSISTENT_VOLUMES, volume)
    assert [row.fields["node"] for row in await Cluster(client).volumes()] == [""]
    attachment = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "VolumeAttachment",
        "metadata": {"name": "va-1"},
        "spec": {
            "attacher": "csi.dpu-offload.io",
            "nodeName": HOST_NODE,
            "source": {"persistentVolumeName": "pv-1"},
        },
    }
    await client.create(resources.VOLUME_ATTACHMENTS, attachment)
    (row,) = await Cluster(client).volumes()
    assert not row.well
    assert row.fields["why"] == "being attached"
    status = {"status": {"attached": True, "attachmentMetadata": {"pf": "0", "vf": "3", "dpuNode": DPU_NODE}}}
    await client.merge_patch(resources.VOLUME_ATTACHMENTS, "va-1", "", status, subresource="status")
    (row,) = await Cluster(client).volumes()
    assert row.well
    assert (row.fields["function"], row.fields["dpu"]) == ("pf0vf3", DPU_NODE)
    status = {"status": {"attached": False, "attachError": {"message": "no function is free"}}}
    await client.merge_patch(resources.VOLUME_ATTACHMENTS, "va-1", "", status, subresource="status")
    (row,) = await Cluster(client).volumes()
    assert row.fields["why"] == "no function is free"


async def test_a_cluster_that_does_not_answer_is_named(tmp_path: Path) -> None:
    async with ApiServer() as server:
        server.kubeconfig(tmp_path / "kubeconfig")
    with pytest.raises(Unreadable, match="kubeconfig"):
        async with Cluster.open(str(tmp_path / "kubeconfig"), "") as cluster:
            await cluster.nodes()
