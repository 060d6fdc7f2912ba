"""dpuctl for a user in trouble: no permission, no cluster, objects that nobody can make sense of. Never a traceback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click.testing import CliRunner, Result

from dpuctl import leftovers, questions, snapshot
from dpuctl.app import main
from dpuctl.display import table
from dpuctl.inspection.leftovers import Leftover
from dpuctl.machines import Remote
from dpuctl.suite import SuiteContainer, SuitePod, SuitePodSpec, SuitePodStatus
from foundation.kube import resources
from foundation.kube.client import KubeClient
from foundation.kube.models.meta import ObjectMeta
from lab import objects
from lab.apiserver.server import ApiServer
from lab.layout import DPU_NODE, HOST_NODE
from lab.setting import create_objects

EVERYTHING = (
    ("status",),
    ("pods",),
    ("volumes",),
    ("doctor", "--no-machines"),
    ("gc",),
    ("events",),
    ("trace", "dpu-lab/odd0", "dpu-lab/odd1"),
    ("offload", "dpu-lab/odd0"),
)


async def dpuctl(kubeconfig: Path, *words: str) -> Result:
    """Fails on a traceback, and on output that is not what a program asked for."""
    ended = await asyncio.to_thread(CliRunner().invoke, main, [*words], env={"KUBECONFIG": str(kubeconfig)})
    assert ended.exception is None or isinstance(ended.exception, SystemExit), (words, ended.exc_info)
    if "json" in words and ended.stdout:
        json.loads(ended.stdout)
    return ended


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[tuple[KubeClient, Path]]:
    async with ApiServer() as server:
        kubeconfig = tmp_path / "kubeconfig"
        server.kubeconfig(kubeconfig)
        async with await KubeClient.connect(kubeconfig=str(kubeconfig)) as client:
            yield client, kubeconfig


@asynccontextmanager
async def answering(tmp_path: Path, answer: Callable[[str], tuple[int, Mapping[str, Any]]]) -> AsyncIterator[Path]:
    """An API server that answers each path so; its kubeconfig."""

    async def answered(request: web.Request) -> web.Response:
        status, body = answer(request.path)
        return web.json_response(body, status=status)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answered)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        cluster = {"server": f"http://127.0.0.1:{runner.addresses[0][1]}"}
        kubeconfig = tmp_path / "kubeconfig"
        context = {"cluster": "c", "user": "u"}
        config = {
            "clusters": [{"name": "c", "cluster": cluster}],
            "contexts": [{"name": "x", "context": context}],
            "users": [{"name": "u", "user": {}}],
            "current-context": "x",
        }
        kubeconfig.write_text(json.dumps(config))
        yield kubeconfig
    finally:
        await runner.cleanup()


NONSENSE = ("{", "[]", "null", '{"default": 5}', '{"default": null}', '{"default": {"ips": null, "port": [1]}}')


async def test_annotations_that_nobody_can_read(cluster: tuple[KubeClient, Path]) -> None:
    client, kubeconfig = cluster
    await create_objects(client, class_parameters={})
    deep = "[" * 20000 + "]" * 20000
    texts = (f'{{"default": {{"x": {deep}}}}}', *NONSENSE, '{"default": {"ips": ["nonsense"], "mac": "m"}}')
    for number, text in enumerate(texts):
        body = objects.pod(f"odd{number}", node_name=HOST_NODE)
        selected = ("{}", "[5", deep)[min(number, 2)]
        annotations = {"dpu-offload.io/pod-networks": text, "k8s.v1.cni.cncf.io/networks": selected}
        body["metadata"]["annotations"] = annotations
        await client.create(resources.PODS, body)
    annotations = dict.fromkeys((f"dpu-offload.io/{name}" for name in ("storage", "link", "offload")), NONSENSE[3])
    labels = {"dpu-offload.io/host-node": "not-there", "dpu-offload.io/mode": "banana"}
    await client.merge_patch(
        resources.NODES, DPU_NODE, "", {"metadata": {"annotations": annotations, "labels": labels}}
    )
    source = {"driver": "csi.dpu-offload.io", "volumeHandle": "nonsense"}
    spec = {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "csi": source}
    meta = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "pv"}}
    await client.create(resources.PERSISTENT_VOLUMES, {**meta, "spec": spec})
    for name in ("pv", "gone"):
        spec = {"attacher": "csi.dpu-offload.io", "nodeName": "gone", "source": {"persistentVolumeName": name}}
        meta = {"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": {"name": name}}
        await client.create(resources.VOLUME_ATTACHMENTS, {**meta, "spec": spec})
        status = {"status": {"attached": True, "attachmentMetadata": {"pf": "x"}}}
        await client.merge_patch(resources.VOLUME_ATTACHMENTS, name, "", status, subresource="status")
    for words in EVERYTHING:
        first, second = await dpuctl(kubeconfig, *words, "-o", "json"), await dpuctl(kubeconfig, *words, "-o", "json")
        assert (first.stdout, first.exit_code) == (second.stdout, second.exit_code), words
        assert first.stdout or first.stderr.startswith("dpuctl: "), words
    shown = json.loads((await dpuctl(kubeconfig, "pods", "-o", "json")).stdout)
    assert [(row["pod"], row["addresses"]) for row in shown] == [(f"odd{len(texts) - 1}", ["nonsense"])]
    (volume,) = json.loads((await dpuctl(kubeconfig, "volumes", "-o", "json")).stdout)
    assert volume["function"] == "pfxvf0"


async def test_what_may_not_be_listed_is_not_said_to_be_none(tmp_path: Path) -> None:
    def answer(path: str) -> tuple[int, Mapping[str, Any]]:
        if path.endswith(("persistentvolumes", "leases")):
            return 403, {"kind": "Status", "message": "forbidden", "code": 403}
        return 200, {"kind": "List", "items": []}

    async with answering(tmp_path, answer) as kubeconfig:
        ended = await dpuctl(kubeconfig, "volumes", "-o", "json")
        assert (ended.exit_code, ended.stdout) == (3, "")
        assert "you may not list persistentvolumes" in ended.stderr
        for words in (("status",), ("doctor", "--no-machines")):
            ended = await dpuctl(kubeconfig, *words)
            assert "not looked at: leases, persistentvolumes: you may not list them" in ended.stderr, words


async def test_no_permission_at_all_is_one_sentence_and_the_same_each_time(tmp_path: Path) -> None:
    status = {"kind": "Status", "message": "you are nobody", "code": 403}
    async with answering(tmp_path, lambda _: (403, status)) as kubeconfig:
        for words in (*EVERYTHING, ("events", "-w"), ("bundle", "-f", str(tmp_path / "bundle.tar.gz"))):
            async with asyncio.timeout(30):
                ended = await dpuctl(kubeconfig, *words)
            assert (ended.exit_code, ended.stdout) == (3, ""), words
            (sentence,) = ended.stderr.splitlines()
            what = "/api/v1/events" if words[0] == "events" else "/api/v1/nodes"
            assert f"{what}: you are nobody" in sentence
    assert not list(tmp_path.glob("bundle*"))


async def test_no_cluster_ends_a_watch_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "ANSWER_SECONDS", 0.2)
    async with answering(tmp_path, lambda _: (200, {})) as kubeconfig:
        pass
    async with asyncio.timeout(30):
        ended = await dpuctl(kubeconfig, "events", "-w")
    assert (ended.exit_code, ended.stdout) == (3, "")
    assert ended.stderr.startswith("dpuctl: cannot read the cluster of ")


async def test_a_bundle_that_cannot_be_written(cluster: tuple[KubeClient, Path], tmp_path: Path) -> None:
    _, kubeconfig = cluster
    for place in (tmp_path, tmp_path / "none" / "x.tar.gz"):
        assert (await dpuctl(kubeconfig, "bundle", "-f", str(place))).exit_code == 2
    file = tmp_path / "x.tar.gz"
    told = json.loads((await dpuctl(kubeconfig, "bundle", "-f", str(file), "-o", "json")).stdout)
    assert told["file"] == str(file)
    (tmp_path / "y.tar.gz.new").mkdir()
    ended = await dpuctl(kubeconfig, "bundle", "-f", str(tmp_path / "y.tar.gz"))
    assert (ended.exit_code, "cannot be written" in ended.stderr) == (1, True)


async def test_the_usual_place_of_a_kubeconfig(
    cluster: tuple[KubeClient, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kubectl looks there too, and `kubectl dpu` is one of its commands."""
    (tmp_path / ".kube").mkdir()
    cluster[1].rename(tmp_path / ".kube/config")
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    ended = await asyncio.to_thread(CliRunner().invoke, main, ["status"])
    assert (ended.exit_code, ended.stdout) == (0, "nothing found\n")


class OfAnotherVersion(Remote):
    async def run(self, pod: SuitePod, container: str, *words: str) -> bytes:
        return b"Usage: dpuctl inspect ..."


async def test_a_container_of_another_version_removes_nothing_and_says_so() -> None:
    pod = SuitePod(
        metadata=ObjectMeta(name="csi-controller-0", namespace="dpu-offload"),
        spec=SuitePodSpec(node_name="n", containers=(SuiteContainer(name="csi-controller"),)),
        status=SuitePodStatus(phase="Running"),
    )
    left = Leftover(kind="subsystem", place="main", name="nqn", why="belongs to nothing")
    seen = snapshot.Snapshot(suite_pods=(pod,))
    (removed,) = await leftovers.remove([left], seen, OfAnotherVersion(), server="https://nowhere")
    assert removed.leftover == left
    assert "are the versions equal?" in removed.problem


async def test_a_node_of_another_version_is_named(cluster: tuple[KubeClient, Path]) -> None:
    client, _ = cluster
    await create_objects(client, class_parameters={})
    body = objects.pod("web", node_name="node-default")
    given = {"default": {"ips": ["10.0.0.2/24"], "mac": "02:00:00:00:00:01"}}
    body["metadata"]["annotations"] = {"dpu-offload.io/pod-networks": json.dumps(given)}
    await client.create(resources.PODS, body)
    labels = {"app.kubernetes.io/part-of": "dpu-offload"}
    spec = {"nodeName": "node-default", "containers": [{"name": "cni-node", "image": "i"}]}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "cni-node-1", "namespace": "dpu-lab", "labels": labels},
    }
    await client.create(resources.PODS, {**pod, "spec": spec})
    running = {"status": {"phase": "Running"}}
    await client.merge_patch(resources.PODS, "cni-node-1", "dpu-lab", running, subresource="status")
    for asked in (
        questions.offload(client, OfAnotherVersion(), "dpu-lab/web"),
        questions.trace(
            client, OfAnotherVersion(), source="dpu-lab/web", destination="dpu-lab/web", protocol="tcp", port=80
        ),
    ):
        with pytest.raises(questions.Unanswerable, match=r"dpu-lab/cni-node-1.*are the versions equal"):
            await asked


async def test_words_of_others_stay_in_their_cell() -> None:
    heading, line = table([{"why": "two\nlines\x1b[31m\tred", "list": ["a\rb"]}])
    assert (heading.split(), line) == (["WHY", "LIST"], "two lines [31m red  a b")


async def test_the_list_of_checks_for_a_program(tmp_path: Path) -> None:
    listed = json.loads((await dpuctl(tmp_path / "none", "doctor", "--list", "-o", "json")).stdout)
    assert all(set(one) == {"check", "about"} for one in listed)
    assert (await dpuctl(tmp_path / "none", "inspect", "remove", "{")).exit_code == 2
