"""Every example does in the lab what its text says, under accounts whose requests are then held against the roles."""

import asyncio
import io
import json
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
import yaml

from foundation.kube import resources
from foundation.kube.client import KubeClient
from lab.demo.disks_walk import mount_point, read_marker, write_marker
from lab.demo.observer import Observer
from lab.demo.steps import Recorder
from lab.demo.traffic import ping
from lab.layout import DEFAULT_NODE, Layout
from lab.suite import Options, Suite
from tests.deploy import shipped
from tests.deploy.applied import (
    EXAMPLES,
    REFUSED_SECONDS,
    SECONDS,
    Applied,
    address,
    netns,
    parts,
    requests,
)
from tests.deploy.granted import grants
from tests.deploy.shipped import KUSTOMIZE, PROFILES, ROOT, Body, documents

pytestmark = [
    pytest.mark.root,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(180),
]
OUTSIDE = "192.0.2.254"
MEGABYTE = 1 << 20


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab() -> AsyncIterator[Applied]:
    name = f"de{os.getpid()}"
    suite = Suite(Options(layout=Layout(run=Path("/run") / name, prefix=name)))
    try:
        await suite.up(Recorder(io.StringIO()))
        async with await KubeClient.connect(kubeconfig=str(suite.kubeconfig)) as client:
            observer = Observer(client)
            await observer.start()
            applied = Applied(suite, client, observer)
            for profile in PROFILES:
                # kustomize puts namespaces first.
                objects = documents(KUSTOMIZE / "overlays" / profile)
                await applied.apply(*sorted(objects, key=lambda body: body["kind"] != "Namespace"))
            yield applied
            await observer.stop()
    finally:
        await suite.down()


@pytest_asyncio.fixture(loop_scope="module")
async def example(lab: Applied, request: pytest.FixtureRequest) -> AsyncIterator[list[Body]]:
    """The objects of the file that the test names; removed afterwards, with all that they caused."""
    bodies = parts(request.param)
    yield bodies
    await lab.stop_servers()
    await lab.remove([body for body in bodies if body["kind"] != "Namespace"])


def of(file: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("example", [file], indirect=True)


@of("pods.yaml")
async def test_two_pods_reach_each_other(lab: Applied, example: list[Body]) -> None:
    await lab.apply(*example)
    pods = await lab.pods(example)
    plain, offloaded = pods["plain"], pods["offloaded"]
    assert offloaded.device, "it has a VF"
    assert not plain.device
    await ping(netns(plain), address(offloaded))
    await lab.serve(netns(plain), "0.0.0.0", 9000)
    assert (await lab.call(netns(offloaded), address(plain), 9000) or ("",))[0] == address(offloaded)


@of("service.yaml")
async def test_a_service_leads_to_its_pod(lab: Applied, example: list[Body]) -> None:
    await lab.apply(*example)
    pods = await lab.pods(example)
    service = next(body for body in example if body["kind"] == "Service")
    slices = await lab.endpoints(service, pods)
    example.append(slices)
    virtual = (await lab.client.get(resources.SERVICES, "web", "dpu-examples")).spec.cluster_ip
    await lab.serve(netns(pods["server"]), "0.0.0.0", 8080)
    for caller in ("plain", "offloaded"):
        assert await lab.call(netns(pods[caller]), str(virtual), 80), caller


@of("network-policy.yaml")
async def test_friends_get_in_and_strangers_do_not(lab: Applied, example: list[Body]) -> None:
    await lab.apply(*example)
    pods = await lab.pods(example)
    server, friend, stranger = (pods[name] for name in ("server", "friend", "stranger"))
    for port in (8080, 8081):
        await lab.serve(netns(server), "0.0.0.0", port)
    assert await lab.call(netns(friend), address(server), 8080)
    refused = await asyncio.gather(
        lab.call(netns(stranger), address(server), 8080, seconds=REFUSED_SECONDS),
        lab.call(netns(friend), address(server), 8081, seconds=REFUSED_SECONDS),
    )
    assert refused == [None, None]


@of("admin-network-policy.yaml")
async def test_an_administrators_rule_stands_above_the_namespaces_own(lab: Applied, example: list[Body]) -> None:
    await lab.apply(*example)
    pods = await lab.pods(example)
    server, friend, stranger = (pods[name] for name in ("server", "friend", "stranger"))
    await lab.serve(netns(server), "0.0.0.0", 8080)
    assert await lab.call(netns(friend), address(server), 8080)
    assert await lab.call(netns(stranger), address(server), 8080, seconds=REFUSED_SECONDS) is None
    (rule,) = [body for body in example if body["kind"] == "AdminNetworkPolicy"]
    example.remove(rule)
    await lab.remove([rule])
    assert await lab.call(netns(stranger), address(server), 8080), "it was the rule that kept it out"


@of("bandwidth.yaml")
async def test_a_pod_sends_no_faster_than_it_may(lab: Applied, example: list[Body]) -> None:
    await lab.apply(*example)
    pods = await lab.pods(example)
    sink, slow = pods["sink"], pods["slow"]
    await lab.serve(netns(sink), "0.0.0.0", 9000, sink=True)
    answer = await lab.call(netns(slow), address(sink), 9000, size=3 * MEGABYTE)
    assert answer is not None
    _, received, seconds = answer
    assert received == 3 * MEGABYTE
    # 8 Mbit/s are a megabyte a second; without the bound this takes a few hundredths of one. Half of it for bursts.
    assert seconds > 1.5


@of("egress-addresses.yaml")
async def test_outside_a_namespace_has_its_own_address(lab: Applied, example: list[Body]) -> None:
    """The command in the file's text, then a call to the world outside."""
    text = (EXAMPLES / "egress-addresses.yaml").read_text()
    value = text[text.index("gateway=") + len("gateway=") :].partition("'")[0]
    body = {"metadata": {"annotations": {"dpu-offload.io/gateway": value}}}
    await lab.client.merge_patch(resources.NODES, DEFAULT_NODE, "", body)
    await lab.apply(*example)
    pods = await lab.pods(example)
    await lab.serve(lab.underlay, OUTSIDE, 9000)
    answer = await lab.call(netns(pods["caller"]), OUTSIDE, 9000)
    assert answer is not None
    assert answer[0] == "192.0.2.200"


@of("secondary-network.yaml")
async def test_two_pods_reach_each_other_over_their_second_network(lab: Applied, example: list[Body]) -> None:
    await lab.apply(*example)
    pods = await lab.pods(example)
    definition = next(body for body in example if body["kind"] == "NetworkAttachmentDefinition")
    left = await lab.attach(pods["left"], definition, "net1")
    right = await lab.attach(pods["right"], definition, "net1")
    assert {left.rpartition(".")[0], right.rpartition(".")[0]} == {"10.77.0"}
    await ping(netns(pods["left"]), right)


@of("claim.yaml")
async def test_a_claim_is_a_disk_with_a_file_system(lab: Applied, example: list[Body]) -> None:
    await lab.apply(*example)
    pod = (await lab.pods(example))["writer"]
    assert mount_point(pod).is_mount()
    marker = await asyncio.to_thread(write_marker, mount_point(pod))
    await asyncio.to_thread(read_marker, mount_point(pod), marker)


@of("block.yaml")
async def test_a_claim_is_a_raw_device(lab: Applied, example: list[Body]) -> None:
    await lab.apply(*example)
    pod = (await lab.pods(example))["raw-user"]
    device = Path(pod.volumes[0].target_path)
    assert stat.S_ISBLK(device.stat().st_mode)
    with device.open("rb") as opened:
        assert opened.seek(0, os.SEEK_END) == 64 * MEGABYTE


@of("snapshot.yaml")
async def test_a_claim_begins_with_a_snapshot(lab: Applied, example: list[Body]) -> None:
    begin = next(number for number, body in enumerate(example) if body["kind"] == "VolumeSnapshot")
    await lab.apply(*example[:begin])
    original = (await lab.pods(example[:begin]))["original-user"]
    marker = await asyncio.to_thread(write_marker, mount_point(original))
    await asyncio.to_thread(os.sync)
    await lab.apply(example[begin])
    await lab.until(example[begin], lambda one: bool((one.status or {}).get("readyToUse")))
    (mount_point(original) / "later").write_text("not in the snapshot")
    await asyncio.to_thread(os.sync)
    await lab.apply(*example[begin + 1 :])
    restored = (await lab.pods(example))["restored-user"]
    await asyncio.to_thread(read_marker, mount_point(restored), marker)
    assert not (mount_point(restored) / "later").exists()


@of("clone.yaml")
async def test_a_claim_begins_with_anothers_contents(lab: Applied, example: list[Body]) -> None:
    begin = next(number for number, body in enumerate(example) if "dataSource" in body.get("spec", {}))
    await lab.apply(*example[:begin])
    source = (await lab.pods(example[:begin]))["source-user"]
    marker = await asyncio.to_thread(write_marker, mount_point(source))
    await asyncio.to_thread(os.sync)
    await lab.apply(*example[begin:])
    copy = (await lab.pods(example))["copy-user"]
    await asyncio.to_thread(read_marker, mount_point(copy), marker)
    (mount_point(copy) / "own").write_text("of the copy")
    assert not (mount_point(source) / "own").exists()


async def test_every_example_is_tried_here() -> None:
    tried = {
        str(mark.args[1][0])
        for function in globals().values()
        for mark in getattr(function, "pytestmark", ())
        if mark.name == "parametrize"
    }
    assert tried == {path.name for path in EXAMPLES.glob("*.yaml")}


# Rights for moments that the lab has none of (a failing disk, a volume with keys, the same event once more, a virtual
# machine), each with the line of code that uses it: when that line goes, so must the right.
IN_OTHER_MOMENTS = {
    ("csi-node-dpu", "create", "", "events"): ("csi/node_dpu/app.py", "EventRecorder("),
    ("csi-node-dpu", "patch", "", "events"): ("foundation/kube/events.py", "patch(EVENTS"),
    ("csi-node-dpu", "list", "", "pods"): ("csi/node_dpu/users.py", "PODS"),
    ("cni-node", "patch", "", "nodes"): ("cni/node/app.py", "OFFLOAD_ANNOTATION"),
    ("csi-node-dpu", "get", "", "secrets"): ("csi/node_dpu/volumes.py", "get(SECRETS"),
    ("csi-controller", "get", "", "secrets"): ("csi/controller/converge.py", "get(SECRETS"),
    ("cni-controller", "patch", "", "events"): ("foundation/kube/events.py", "patch(EVENTS"),
    **{
        ("cni-controller", "patch", "kubevirt.io", plural): ("cni/controller/watch/vm_annotator.py", "merge_patch(")
        for plural in ("virtualmachines", "virtualmachineinstances")
    },
}


async def test_every_right_is_used_and_every_use_is_a_right(lab: Applied) -> None:
    """All examples before this ran under the daemons' own accounts; here comes what they left out."""
    await _an_address_that_nobody_can_have(lab)
    await _an_address_that_is_kept(lab)
    await _somebody_looks_at_the_page(lab)
    asked = set(requests(lab.layout.requests))
    granted = {one for one in grants(shipped.everything()) if one[0] in {account for account, *_ in asked}}
    assert asked <= granted, "the roles lack these"
    unused = granted - asked
    assert unused <= set(IN_OTHER_MOMENTS), "the roles give these for nothing"
    for right in unused:
        file, text = IN_OTHER_MOMENTS[right]
        assert text in (ROOT / file).read_text(), f"{right}: {file} does not use it any more"


async def _an_address_that_nobody_can_have(lab: Applied) -> None:
    """cni-controller refuses it by an event."""
    (pod,) = [body for body in parts("pods.yaml") if body["metadata"]["name"] == "plain"]
    pod["metadata"]["annotations"] = {"dpu-offload.io/addresses": '{"ips": ["198.51.100.1"]}'}
    await lab.apply(pod)
    async with asyncio.timeout(SECONDS):
        while not await lab.client.list(resources.EVENTS, namespace="dpu-examples"):
            await asyncio.sleep(0.1)
    await lab.remove([pod])


async def _an_address_that_is_kept(lab: Applied) -> None:
    """cni-controller writes it into the claim's status."""
    definition, *pods = [body for body in parts("secondary-network.yaml") if body["kind"] != "Namespace"]
    configuration = json.loads(definition["spec"]["config"])
    definition["spec"]["config"] = json.dumps(configuration | {"allowPersistentIPs": True})
    metadata = {"name": "kept", "namespace": "dpu-examples"}
    claim = {
        "apiVersion": "k8s.cni.cncf.io/v1alpha1",
        "kind": "IPAMClaim",
        "metadata": metadata,
        "spec": {"network": "blue", "interface": "net1"},
    }
    networks = [{"name": "blue", "ipam-claim-reference": "kept"}]
    pods[0]["metadata"]["annotations"] = {"k8s.v1.cni.cncf.io/networks": json.dumps(networks)}
    await lab.apply(definition, claim, pods[0])
    await lab.until(claim, lambda one: bool((one.status or {}).get("ips")))
    await lab.remove([definition, claim, pods[0]])


async def _somebody_looks_at_the_page(lab: Applied) -> None:
    """Only then does it follow what it shows."""
    settings = yaml.safe_load((lab.layout.config / "cni-controller.yaml").read_text())
    url = f"http://{settings['status_page']['listen']}/events"
    timeout = aiohttp.ClientTimeout(total=SECONDS)
    async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as answer:
        assert answer.status == 200
        assert await answer.content.readline()
        followed = {("", "persistentvolumes"), ("storage.k8s.io", "volumeattachments")}
        wanted = {("cni-controller", verb, *what) for verb in ("list", "watch") for what in followed}
        async with asyncio.timeout(SECONDS):
            # A watch begins a moment after its list.
            while not wanted <= set(requests(lab.layout.requests)):
                await asyncio.sleep(0.1)
