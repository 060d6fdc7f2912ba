"""What dpuctl's tables show, against the API server stand-in."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from dpuctl import rows
from dpuctl.snapshot import Unreadable, connected, read
from foundation.kube import resources
from foundation.kube.client import KubeClient
from lab import objects
from lab.apiserver.server import ApiServer
from lab.layout import DPU_NODE, HOST_NODE
from lab.setting import create_objects
from tests.dpuctl.cluster_objects import VOLUME
from tests.dpuctl.installation import Installation

STORAGE = {"endpoint": "127.0.0.1:1", "serverName": "n", "hostNqn": "nqn.x", "functions": {"total": 8, "free": 5}}
OFFLOAD = {"hardwareFlows": 9, "softwareFlows": 1, "hardwareBytes": 970, "softwareBytes": 30}


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


async def nodes(client: KubeClient) -> dict[str, rows.Row]:
    return {row.fields["node"]: row for row in rows.nodes(await read(client))}


async def test_status_shows_pairs_and_what_is_wrong(client: KubeClient) -> None:
    found = await nodes(client)
    assert not any(row.well for row in found.values())
    assert "csi-node-dpu has published nothing" in found[DPU_NODE].fields["why"]
    for node in objects.POD_CIDRS:
        await ready(client, node)
    annotations = {"dpu-offload.io/storage": json.dumps(STORAGE), "dpu-offload.io/offload": json.dumps(OFFLOAD)}
    await client.merge_patch(resources.NODES, DPU_NODE, "", {"metadata": {"annotations": annotations}})
    found = await nodes(client)
    assert all(row.well for row in found.values())
    names = list(found)
    assert names.index(HOST_NODE) + 1 == names.index(DPU_NODE)
    assert (found[DPU_NODE].fields["disks"], found[DPU_NODE].fields["offload"]) == ("3/8", "97 %")
    assert found[HOST_NODE].fields["pair"] == [DPU_NODE]


async def test_a_degraded_dpu_says_which_volume(client: KubeClient) -> None:
    annotations = {"dpu-offload.io/storage": json.dumps(STORAGE)}
    await client.merge_patch(resources.NODES, DPU_NODE, "", {"metadata": {"annotations": annotations}})
    condition = {"type": "DpuStorageDegraded", "status": "True", "message": "1 of 3 volumes; main:v1: a path is down"}
    body = {"status": {"conditions": [condition]}}
    await client.merge_patch(resources.NODES, DPU_NODE, "", body, subresource="status")
    found = await nodes(client)
    assert found[DPU_NODE].fields["why"] == "1 of 3 volumes; main:v1: a path is down"


async def test_a_host_without_a_dpu_is_told_the_cure(client: KubeClient) -> None:
    await ready(client, HOST_NODE)
    await client.delete(resources.NODES, DPU_NODE)
    found = await nodes(client)
    assert "dpu-offload.io/host-node=node-host" in found[HOST_NODE].fields["why"]
    assert not found[HOST_NODE].well


async def test_pods_have_a_row_a_network(client: KubeClient) -> None:
    body: dict[str, Any] = objects.pod("web", node_name=HOST_NODE)
    networks = {
        "default": {"ips": ["10.0.0.2/24"], "mac": "02:00:00:00:00:01"},
        "ns/blue": {"ips": ["10.9.0.2/24"]},
        "ns/red": {"ips": ["10.8.0.2/24"], "port": "vm-port"},
    }
    body["metadata"]["annotations"] = {"dpu-offload.io/pod-networks": json.dumps(networks)}
    await client.create(resources.PODS, body)
    seen = await read(client)
    assert [
        (row.fields["network"], row.fields["addresses"], row.fields["port"]) for row in rows.pods(seen, "", [])
    ] == [
        ("default", ["10.0.0.2/24"], "dpu-lab_web"),
        ("ns/blue", ["10.9.0.2/24"], "ns.blue_dpu-lab_web"),
        ("ns/red", ["10.8.0.2/24"], "vm-port"),
    ]
    assert rows.pods(seen, "elsewhere", []) == []


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

    async def row() -> rows.Row:
        (only,) = rows.volumes(await read(client), [])
        return only

    assert (await row()).fields["node"] == ""
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
    found = await row()
    assert not found.well
    assert found.fields["why"] == "being attached"
    status = {"status": {"attached": True, "attachmentMetadata": {"pf": "0", "vf": "3", "dpuNode": DPU_NODE}}}
    await client.merge_patch(resources.VOLUME_ATTACHMENTS, "va-1", "", status, subresource="status")
    found = await row()
    assert found.well
    assert (found.fields["function"], found.fields["dpu"]) == ("pf0vf3", DPU_NODE)
    assert found.fields["target"] == "nqn.2026-11.io.dpu-offload:volume.main.v1"
    status = {"status": {"attached": False, "attachError": {"message": "no function is free"}}}
    await client.merge_patch(resources.VOLUME_ATTACHMENTS, "va-1", "", status, subresource="status")
    assert (await row()).fields["why"] == "no function is free"


@pytest.mark.asyncio(loop_scope="session")
async def test_wide_tables_name_function_representor_chassis_and_paths(installation: Installation) -> None:
    view = await installation.view()
    (pod,) = rows.pods(view.cluster, "", list(view.machines))
    shown = {key: pod.fields[key] for key in ("function", "interface", "chassis")}
    assert shown == {"function": "pf0vf0", "interface": "pf0vf0", "chassis": DPU_NODE}
    (volume,) = rows.volumes(view.cluster, list(view.machines))
    assert (volume.fields["paths"], volume.well) == (["192.0.2.10:4420"], True)
    assert VOLUME.partition(":")[2] in volume.fields["target"]


async def test_a_cluster_that_does_not_answer_is_named(tmp_path: Path) -> None:
    async with ApiServer() as server:
        server.kubeconfig(tmp_path / "kubeconfig")
    with pytest.raises(Unreadable, match="kubeconfig"):
        async with connected(str(tmp_path / "kubeconfig"), "") as client:
            await read(client)
