"""The whole daemon between an API server and a northbound database."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cni.controller import app
from cni.controller.config import ClusterConfig, ControllerConfig, LeaderElectionConfig, OvsdbConfig
from cni.controller.model.annotations import POD_NETWORKS
from foundation.daemon import metrics
from foundation.daemon.running import Daemon
from foundation.kube.client import KubeClient
from foundation.kube.configuration import Connection
from foundation.kube.models.core import Pod
from foundation.kube.reflector import Reflector
from foundation.kube.resources import EVENTS, NETWORK_ATTACHMENT_DEFINITIONS, NODES, PODS
from foundation.ovsdb import OvsdbSession
from lab.apiserver.faults import Rule
from lab.apiserver.server import ApiServer
from tests.controller.stage import Northbound


@pytest.fixture
def northbound() -> Iterator[Northbound]:
    server = Northbound()
    yield server
    server.remove()


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Path]:
    async with ApiServer() as server:
        server.kubeconfig(tmp_path / "kubeconfig")
        yield tmp_path / "kubeconfig"


@pytest.fixture
async def client(api: Path) -> AsyncIterator[KubeClient]:
    async with await KubeClient.connect(str(api)) as client:
        yield client


@asynccontextmanager
async def controller(
    api: Path, northbound: Northbound, *, identity: str = "", lease: float = 15.0
) -> AsyncIterator[Daemon]:
    config = ControllerConfig(
        kubeconfig=str(api),
        northbound=OvsdbConfig(remotes=northbound.remote),
        leader_election=LeaderElectionConfig(
            enabled=bool(identity), namespace="default", identity=identity, lease_seconds=lease
        ),
        cluster=ClusterConfig(mtu=1400),
    )
    async with Daemon("cni-controller") as daemon:
        await app.start(config, daemon)
        yield daemon


def node_object(name: str, cidr: str) -> dict[str, object]:
    return {"metadata": {"name": name}, "spec": {"podCIDR": cidr, "podCIDRs": [cidr]}}


def pod_object(name: str, **annotations: str) -> dict[str, object]:
    return {
        "metadata": {"name": name, "namespace": "default", "annotations": annotations},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]},
    }


async def until_annotated(client: KubeClient, name: str, deadline: float = 40.0) -> dict[str, object]:
    """Follows the pod as a node would; returns its entry for the default network."""
    seen: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    reflector: Reflector[Pod] = Reflector(client, PODS, field_selector=f"metadata.name={name}")

    def look(change: object) -> None:
        pod = getattr(change, "new", None)
        if pod is not None and POD_NETWORKS in pod.metadata.annotations and not seen.done():
            seen.set_result(pod.metadata.annotations[POD_NETWORKS])

    reflector.subscribe(look)
    task = asyncio.create_task(reflector.run())
    try:
        return dict(json.loads(await asyncio.wait_for(seen, deadline))["default"])
    finally:
        task.cancel()
        await asyncio.wait({task})


@asynccontextmanager
async def watching(northbound: Northbound) -> AsyncIterator[OvsdbSession]:
    session = OvsdbSession(northbound.remote, "OVN_Northbound")
    session.monitor({"Logical_Switch_Port": ["name", "addresses"], "Logical_Switch": ["name"]})
    async with session:
        yield session


async def test_a_pod_gets_its_annotation_and_its_port(api: Path, client: KubeClient, northbound: Northbound) -> None:
    async with controller(api, northbound), watching(northbound) as nb:
        await client.create(NODES, node_object("n1", "10.1.0.0/24"))
        await client.create(PODS, pod_object("web"))
        entry = await until_annotated(client, "web")
        row = await nb.until("Logical_Switch_Port", lambda row: row["name"] == "default_web", deadline=30)
        assert row["addresses"] == {f"{entry['mac']} {str(entry['ips'][0]).removesuffix('/24')}"}  # type: ignore[index]
        await client.delete(PODS, "web", "default", grace_seconds=0)
        await nb.until_absent("Logical_Switch_Port", lambda row: row["name"] == "default_web", deadline=30)


async def test_no_answer_of_the_server_costs_a_pod_its_annotation(tmp_path: Path, northbound: Northbound) -> None:
    """Not even "not found" of a pod that is there: a proxy before a server that restarts says such things."""
    async with ApiServer() as server, KubeClient(Connection(server=server.url)) as client:
        server.kubeconfig(tmp_path / "kubeconfig")
        await client.create(NODES, node_object("n1", "10.1.0.0/24"))
        async with controller(tmp_path / "kubeconfig", northbound):
            for code in (403, 404, 409, 422, 429, 500, -1, -2):
                server.faults.add(Rule(verbs=("patch",), code=code, times=1))
                await client.create(PODS, pod_object(f"web{abs(code)}"))
                assert await until_annotated(client, f"web{abs(code)}")


async def test_metrics_tell_of_objects_rows_and_times(api: Path, client: KubeClient, northbound: Northbound) -> None:
    async with controller(api, northbound), watching(northbound) as nb:
        await client.create(NODES, node_object("n1", "10.1.0.0/24"))
        await client.create(PODS, pod_object("web"))
        await until_annotated(client, "web")
        await nb.until("Logical_Switch_Port", lambda row: row["name"] == "default_web", deadline=30)
        _, text = metrics.exposition()
        assert b'dpu_offload_controller_seen_to_committed_seconds_count{kind="pod"}' in text
        assert b"dpu_offload_controller_queue_depth" in text
        assert b"dpu_offload_controller_batch_owners_count" in text


async def test_a_bad_request_becomes_an_event(api: Path, client: KubeClient, northbound: Northbound) -> None:
    async with controller(api, northbound):
        await client.create(NODES, node_object("n1", "10.1.0.0/24"))
        await client.create(PODS, pod_object("bad", **{"dpu-offload.io/addresses": '{"ips": ["10.9.9.9"]}'}))
        await client.create(PODS, pod_object("good"))
        await until_annotated(client, "good")
        reflector = Reflector(client, EVENTS)
        told: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        reflector.subscribe(lambda change: change.new and not told.done() and told.set_result(change.new.message))
        task = asyncio.create_task(reflector.run())
        assert "outside of 10.1.0.0/24" in await asyncio.wait_for(told, 40)
        task.cancel()
        await asyncio.wait({task})


async def test_another_replica_takes_over(api: Path, client: KubeClient, northbound: Northbound) -> None:
    await client.create(NODES, node_object("n1", "10.1.0.0/24"))
    async with watching(northbound) as nb, controller(api, northbound, identity="b") as standby:
        await nb.until("Logical_Switch", lambda row: row["name"] == "n1", deadline=30)
        async with controller(api, northbound, identity="a"):
            await client.create(PODS, pod_object("before"))
            await until_annotated(client, "before")
            await standby.aclose()
            changes: list[object] = []
            nb.subscribe("Logical_Switch_Port", changes.append)
            await client.create(PODS, pod_object("after"))
            await until_annotated(client, "after", deadline=40)
            await nb.until("Logical_Switch_Port", lambda row: row["name"] == "default_after", deadline=30)
            assert len(changes) == 1  # nothing that was there has been touched


async def test_a_cluster_need_not_have_every_resource_and_may_get_one_later(
    tmp_path: Path, northbound: Northbound
) -> None:
    async with ApiServer() as server:
        server.kubeconfig(tmp_path / "kubeconfig")
        removed = [
            kind for kind in server.kinds if kind.group.endswith((".cncf.io", "kubevirt.io")) or "policy." in kind.group
        ]
        for kind in removed:
            server.kinds.remove(kind.group, kind.plural)
        async with (
            await KubeClient.connect(str(tmp_path / "kubeconfig")) as client,
            controller(tmp_path / "kubeconfig", northbound),
            watching(northbound) as nb,
        ):
            await client.create(NODES, node_object("n1", "10.1.0.0/24"))
            await client.create(PODS, pod_object("web"))
            await until_annotated(client, "web")
            for kind in removed:
                server.kinds.add(kind)
            config = json.dumps({"type": "dpu-offload", "topology": "layer2"})
            definition = {"metadata": {"name": "blue", "namespace": "default"}, "spec": {"config": config}}
            await client.create(NETWORK_ATTACHMENT_DEFINITIONS, definition)
            await nb.until("Logical_Switch", lambda row: row["name"] == "default.blue", deadline=40)
