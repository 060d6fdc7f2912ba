"""The status page: what it draws, how it streams, and how it looks in a browser at phone and desktop width."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from cni.status_page.following import Following
from cni.status_page.picture import draw
from cni.status_page.server import StatusPage
from foundation.kube import resources
from foundation.kube.client import KubeClient
from foundation.kube.models.core import Node, Pod, PodSpec
from foundation.kube.models.meta import ObjectMeta
from lab import objects
from lab.apiserver.server import ApiServer
from lab.layout import DEFAULT_NODE, DPU_NODE, HOST_NODE
from lab.setting import create_objects
from tests.status_page.browser import Browser, chromium

REPORTS = Path("build/reports")
WAIT_SECONDS = 30.0
COLUMNS = (
    "new Set([...document.querySelectorAll('article')].map((one) => Math.round(one.getBoundingClientRect().left))).size"
)
EVIL = "<img src=x onerror=document.title='broken-in'>"


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[KubeClient]:
    async with ApiServer() as server:
        server.kubeconfig(tmp_path / "kubeconfig")
        async with await KubeClient.connect(kubeconfig=str(tmp_path / "kubeconfig")) as client:
            await create_objects(client, class_parameters={})
            await fill(client)
            yield client


@pytest.fixture
async def page(client: KubeClient) -> AsyncIterator[StatusPage]:
    page = StatusPage(Following(client, pause_seconds=0.02, linger_seconds=0.05))
    await page.start("127.0.0.1:0")
    yield page
    await page.stop()


async def fill(client: KubeClient) -> None:
    for node in (DEFAULT_NODE, HOST_NODE):
        status = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
        await client.merge_patch(resources.NODES, node, "", status, subresource="status")
    await annotate(client, storage={"functions": {"total": 8, "free": 7}}, offload=share(970, 30))
    await pod(client, "web", DEFAULT_NODE, "10.244.0.5")
    await pod(client, "db", HOST_NODE, "10.244.1.7")
    volume: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": "pv-1"},
        "spec": {
            "capacity": {"storage": "10Gi"},
            "accessModes": ["ReadWriteOnce"],
            "claimRef": {"namespace": "dpu-lab", "name": "data"},
            "csi": {"driver": "csi.dpu-offload.io", "volumeHandle": "main:v1"},
        },
    }
    await client.create(resources.PERSISTENT_VOLUMES, volume)
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
    status = {"status": {"attached": True, "attachmentMetadata": {"pf": "0", "vf": "1", "dpuNode": DPU_NODE}}}
    await client.merge_patch(resources.VOLUME_ATTACHMENTS, "va-1", "", status, subresource="status")


def share(hardware: int, software: int) -> dict[str, int]:
    return {"hardwareFlows": 9, "softwareFlows": 1, "hardwareBytes": hardware, "softwareBytes": software}


async def annotate(client: KubeClient, **values: object) -> None:
    annotations = {f"dpu-offload.io/{name}": json.dumps(value) for name, value in values.items()}
    await client.merge_patch(resources.NODES, DPU_NODE, "", {"metadata": {"annotations": annotations}})


async def pod(client: KubeClient, name: str, node: str, address: str) -> None:
    body = objects.pod(name, node_name=node)
    given = {"default": {"ips": [f"{address}/24"], "mac": "0a:58:00:00:00:01"}}
    body["metadata"]["annotations"] = {"dpu-offload.io/pod-networks": json.dumps(given)}
    await client.create(resources.PODS, body)


class Viewer:
    """Reads the stream as a browser does."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer

    async def update(self) -> dict[str, Any]:
        async with asyncio.timeout(WAIT_SECONDS):
            while line := await self.answer.content.readline():
                if line.startswith(b"data: "):
                    return dict(json.loads(line.removeprefix(b"data: ")))
        raise AssertionError("the stream has ended")


async def test_a_viewer_gets_everything_then_each_change(client: KubeClient, page: StatusPage) -> None:
    async with aiohttp.ClientSession() as http, http.get(f"http://{page.address}/events") as answer:
        assert answer.content_type == "text/event-stream"
        viewer = Viewer(answer)
        first = {node["name"]: node for node in (await viewer.update())["nodes"]}
        assert set(first) == {DEFAULT_NODE, HOST_NODE}
        host = first[HOST_NODE]
        (dpu,) = host["dpus"]
        assert (dpu["name"], dpu["functions_total"], dpu["functions_free"], dpu["offload"]) == (DPU_NODE, 8, 7, 0.97)
        assert [(port["pod"], port["addresses"]) for port in host["ports"]] == [("dpu-lab/db", ["10.244.1.7/24"])]
        assert [(disk["claim"], disk["function"], disk["problem"]) for disk in host["disks"]] == [
            ("dpu-lab/data", "pf0vf1", "")
        ]
        await annotate(client, offload=share(500, 500))
        second = await viewer.update()
        assert [(node["name"], node["dpus"][0]["offload"]) for node in second["nodes"]] == [(HOST_NODE, 0.5)]
        await client.delete(resources.NODES, DEFAULT_NODE)
        assert (await viewer.update())["gone"] == [DEFAULT_NODE]


async def test_the_cluster_is_watched_only_while_somebody_looks(client: KubeClient) -> None:
    following = Following(client, pause_seconds=0.02, linger_seconds=0.05)
    page = StatusPage(following)
    await page.start("127.0.0.1:0")
    try:
        assert not following.watching
        async with aiohttp.ClientSession() as http:
            async with http.get(f"http://{page.address}/events") as answer:
                await Viewer(answer).update()
                assert following.watching
            async with asyncio.timeout(WAIT_SECONDS):
                while following.watching:
                    await asyncio.sleep(0.02)
            # The next viewer finds the present state, not what the last one saw.
            await client.delete(resources.NODES, DEFAULT_NODE)
            async with http.get(f"http://{page.address}/events") as answer:
                assert [node["name"] for node in (await Viewer(answer).update())["nodes"]] == [HOST_NODE]
    finally:
        await page.stop()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("HEAD", "/", 200),
        ("GET", "/etc/passwd", 404),
        ("POST", "/", 405),
        ("DELETE", "/events", 405),
    ],
)
async def test_it_can_only_be_looked_at(page: StatusPage, method: str, path: str, status: int) -> None:
    async with aiohttp.ClientSession() as http, http.request(method, f"http://{page.address}{path}") as answer:
        assert answer.status == status
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert bool(await answer.read()) == (method != "HEAD")


async def test_something_else_than_http_is_dropped(page: StatusPage) -> None:
    host, _, port = page.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"\x16\x03\x01" + b"x" * 40_000)
    async with asyncio.timeout(WAIT_SECONDS):
        try:
            assert await reader.read() == b""
        except ConnectionError:
            pass  # It may as well be reset.
    writer.close()


async def test_a_viewer_that_reads_nothing_makes_place(page: StatusPage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cni.status_page.server._WRITE_SECONDS", 0.2)
    monkeypatch.setattr(page, "_page", b"x" * (16 << 20))
    host, _, port = page.address.rpartition(":")
    with socket.create_connection((host, int(port))) as viewer:
        viewer.sendall(b"GET / HTTP/1.1\r\n\r\n")
        async with asyncio.timeout(WAIT_SECONDS):
            while not page._serving:
                await asyncio.sleep(0.01)
            while page._serving:
                await asyncio.sleep(0.01)
        viewer.settimeout(WAIT_SECONDS)

        def rest() -> int:
            read = 0
            with contextlib.suppress(ConnectionError):
                while part := viewer.recv(1 << 20):
                    read += len(part)
            return read

        assert await asyncio.to_thread(rest) < 16 << 20


@pytest.mark.parametrize("listen", ["9480", "localhost:", "127.0.0.1:http"])
async def test_an_address_that_is_none_is_refused(client: KubeClient, listen: str) -> None:
    with pytest.raises(ValueError, match=r"status_page\.listen: expected host:port"):
        await StatusPage(Following(client)).start(listen)


@pytest.mark.parametrize(
    ("storage", "offload", "networks"),
    [
        ("[1]", "{", "3"),
        ('{"functions": null}', '{"hardwareBytes": "x"}', '{"default": {"ips": null}}'),
        ('{"functions": {"total": -1}}', '{"hardwareBytes": 1e999}', '{"default": 1, "other": {"ips": [1]}}'),
        ("", "null", "null"),
        (f'{{"functions": {{"total": {10**40}}}}}', f'{{"hardwareBytes": {10**40}}}', f'{{"default": {10**40}}}'),
        ("[" * 100_000, "[" * 100_000, f'{{"default": {"[" * 100_000}'),
    ],
)
def test_malformed_annotations_are_no_obstacle(storage: str, offload: str, networks: str) -> None:
    mode, group = "dpu-offload.io/mode", "dpu-offload.io"
    told = {f"{group}/storage": storage, f"{group}/offload": offload}
    nodes = [
        Node(metadata=ObjectMeta(name="n", labels={mode: "host"})),
        Node(metadata=ObjectMeta(name="d", labels={mode: "dpu", f"{group}/host-node": "n"}, annotations=told)),
    ]
    pods = [
        Pod(
            metadata=ObjectMeta(name=name, namespace="ns", annotations={f"{group}/pod-networks": text}),
            spec=PodSpec(node_name="n"),
        )
        for name, text in (("odd", networks), ("plain", '{"default": {"ips": ["10.0.0.1/24"], "mac": "m"}}'))
    ]
    found = draw(nodes=nodes, pods=pods, volumes=[], attachments=[])
    assert msgspec.json.encode(found)
    assert (found["n"].ready, found["n"].offload, found["n"].problem) == (
        False,
        None,
        "its kubelet has reported nothing",
    )
    (dpu,) = found["n"].dpus
    assert (dpu.functions_total, dpu.offload) == (0, None)
    assert dpu.problem == "its csi-node-dpu has published nothing that can be read"
    assert [(port.pod, port.addresses) for port in found["n"].ports] == [("ns/plain", ("10.0.0.1/24",))]


@pytest.mark.skipif(not chromium(), reason="chromium is not installed (tools/setup --tests does it)")
async def test_a_browser_shows_it_live_at_phone_and_desktop_width(
    client: KubeClient, page: StatusPage, tmp_path: Path
) -> None:
    async with Browser(tmp_path / "profile") as browser:
        await browser.open(f"http://{page.address}/", width=390, height=844, mobile=True)
        await browser.until("document.querySelectorAll('article').length === 2")
        assert (
            await browser.value("document.querySelector('#sum').textContent") == "1 pair, 2 ports, 1 disk, 0 in trouble"
        )
        for name, width, columns in (("phone", 390, 1), ("desktop", 1280, 2)):
            await browser.resize(width=width, height=844, mobile=name == "phone")
            # Nothing sticks out at the side, and the cards stand beside one another where there is room.
            assert await browser.value("document.documentElement.scrollWidth <= window.innerWidth"), name
            assert await browser.value(COLUMNS) == columns, name
            await browser.screenshot(REPORTS / f"status-page-{name}.png")
        await browser.value("document.querySelector('[data-node=node-host] details').open = false")
        failed = {"status": {"attached": False, "attachError": {"message": EVIL}}}
        await client.merge_patch(resources.VOLUME_ATTACHMENTS, "va-1", "", failed, subresource="status")
        await browser.until("document.querySelector('#sum').textContent.endsWith('1 in trouble')")
        # A message is text, whatever is in it; and what the viewer has folded stays folded.
        assert await browser.value("document.querySelectorAll('article img').length") == 0
        assert await browser.value("document.querySelector('article.bad td.bad-text').textContent") == EVIL
        assert await browser.value("document.querySelector('[data-node=node-host] details').open") is False
        await browser.screenshot(REPORTS / "status-page-trouble.png")
    assert all((REPORTS / f"status-page-{name}.png").stat().st_size > 5_000 for name in ("phone", "desktop", "trouble"))
