"""Bad input of every kind: the right CNI code, a sentence that says what to do, nothing changed."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator

import pytest

from foundation.kube.resources import PODS
from lab.network import namespaces
from lab.network.commands import ip
from tests.node.stage import DEFAULT, HOST, Pod, Stage, vf_address, vf_netdev

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="session")]


@contextlib.asynccontextmanager
async def pods(stage: Stage, *wanted: tuple[str, str]) -> AsyncIterator[list[Pod]]:
    """Pods as (node, device), removed afterwards; whatever the test does, nothing may be left of them."""
    made = [await stage.pod(node, device=device) for node, device in wanted]
    try:
        yield made
        for pod in made:
            await stage.delete(pod)
        await stage.clean()
    finally:
        await stage.forget(*made)


async def refused(stage: Stage, pod: Pod, code: int, sentence: str, **more: object) -> None:
    answer = await stage.call("ADD", pod, stage.conf(pod, **more))
    assert (answer.status, answer.code) == (1, code), answer
    assert sentence in answer.message
    await stage.clean()


async def test_a_host_pod_needs_a_device(stage: Stage) -> None:
    async with pods(stage, (HOST, "")) as (pod,):
        await refused(stage, pod, 7, "no deviceID")


@pytest.mark.parametrize(
    ("device", "sentence"),
    [
        ("0000:0f:00.1", "no PCI function 0000:0f:00.1"),
        ("0000:03:00.0", "is a physical function"),
        ("mlx5_core.sf.9", "no scalable function"),
        ("vf7", "neither a PCI address"),
    ],
)
async def test_an_unusable_device_is_named(stage: Stage, device: str, sentence: str) -> None:
    async with pods(stage, (HOST, device)) as (pod,):
        await refused(stage, pod, 7, sentence)


async def test_a_function_in_use_stays_with_its_pod(stage: Stage) -> None:
    async with pods(stage, (HOST, vf_address(0)), (HOST, vf_address(0)), (DEFAULT, "")) as (first, second, peer):
        await stage.add(first)
        await stage.add(peer)
        answer = await stage.call("ADD", second)
        assert (answer.status, answer.code) == (1, 100)
        assert f"in use by interface eth0 of pod {first.namespace}/{first.name}" in answer.message
        assert await stage.ping(peer, first.ip)
        assert await stage.links(second.netns) == []


async def test_a_vanished_namespace(stage: Stage) -> None:
    async with pods(stage, (DEFAULT, "")) as (pod,):
        await namespaces.remove(pod.netns)
        await refused(stage, pod, 3, "the runtime must make a new")
        lost = dataclasses.replace(pod)
        await stage.delete(lost)


async def test_a_path_that_is_no_namespace(stage: Stage) -> None:
    async with pods(stage, (DEFAULT, "")) as (pod,):
        answer = await stage.call("ADD", pod, environment={"CNI_NETNS": "/etc/hostname"})
        assert (answer.status, answer.code) == (1, 3)
        own = str(stage.network.namespace_path(DEFAULT))
        answer = await stage.call("ADD", pod, environment={"CNI_NETNS": own})
        assert (answer.status, answer.code) == (1, 4)
        assert "node's own network namespace" in answer.message


@pytest.mark.parametrize(("node", "device"), [(DEFAULT, ""), (HOST, vf_address(0))])
async def test_an_interface_name_that_is_taken(stage: Stage, node: str, device: str) -> None:
    async with pods(stage, (node, device)) as (pod,):
        await ip("link add eth0 type bridge", "link set eth0 mtu 1234", namespace=pod.netns)
        await refused(stage, pod, 101, "already has an interface named eth0")
        (link,) = await stage.links(pod.netns)
        assert link["mtu"] == 1234
        await ip("link del eth0", namespace=pod.netns)
        await stage.add(pod)


async def test_names_versions_and_json(stage: Stage) -> None:
    async with pods(stage, (DEFAULT, "")) as (pod,):
        long_name = await stage.call("ADD", dataclasses.replace(pod, ifname="a-very-long-name"))
        assert (long_name.code, "15 bytes" in long_name.message) == (4, True)
        await refused(stage, pod, 1, "set one of 0.3.0", cniVersion="9.0.0")
        not_json = await stage.call("ADD", pod, b"cniVersion: 1.1.0")
        assert (not_json.code, "is not JSON" in not_json.message) == (6, True)
        huge = await stage.call("ADD", pod, json.dumps(stage.conf(pod)).encode() + b" " * (1 << 20))
        assert (huge.code, "larger than 1 MiB" in huge.message) == (7, True)
        await refused(stage, pod, 7, "assigned 0a:58", runtimeConfig={"mac": "0a:58:00:00:00:99"})
        await refused(stage, pod, 7, "asks for 10.9.9.9", runtimeConfig={"ips": ["10.9.9.9/24"]})
        assert await stage.links(pod.netns) == []


async def test_a_malformed_annotation_is_the_pods_fault(stage: Stage) -> None:
    from foundation.kube.resources import PODS

    async with pods(stage, (DEFAULT, "")) as (pod,):
        body = {"metadata": {"annotations": {"dpu-offload.io/pod-networks": '{"default": {"ips": ["10.0.0.999/8"]}}'}}}
        await stage.client.merge_patch(PODS, pod.name, pod.namespace, body)
        async with asyncio.timeout(20):
            while (answer := await stage.call("ADD", pod)).status == 0:
                await stage.delete(pod)
        assert (answer.code, "malformed" in answer.message) == (7, True)


async def test_a_pod_without_addresses_waits_for_them(stage: Stage) -> None:
    pod = await stage.pod(DEFAULT, assigned=False)
    try:
        adding = asyncio.create_task(stage.call("ADD", pod))
        await asyncio.sleep(0.3)
        assert not adding.done()
        await stage.assign(pod)
        answer = await adding
        assert answer.status == 0, answer.message
        await stage.delete(pod)
        await stage.clean(pod)
    finally:
        await stage.forget(pod)


async def test_a_repeated_add_gets_the_same_answer(stage: Stage) -> None:
    async with pods(stage, (DEFAULT, "")) as (pod,):
        together = await asyncio.gather(*(stage.call("ADD", pod) for _ in range(3)))
        again = await stage.call("ADD", pod)
        assert [one.status for one in (*together, again)] == [0] * 4
        assert all(one.output == again.output for one in together)
        changed = await stage.call("ADD", pod, stage.conf(pod, runtimeConfig={"bandwidth": {"ingressRate": 8000}}))
        assert (changed.code, "DEL comes before ADD" in changed.message) == (101, True)


@pytest.mark.parametrize("delay", [0.0, 0.005, 0.015, 0.03])
async def test_del_beats_a_concurrent_add(stage: Stage, delay: float) -> None:
    async with pods(stage, (HOST, vf_address(0))) as (pod,):
        adding = asyncio.create_task(stage.call("ADD", pod))
        await asyncio.sleep(delay)
        removed = await stage.call("DEL", pod)
        answer = await adding
        assert removed.status == 0, removed.message
        if answer.status == 0:
            # The DEL came first, or found it whole; a runtime that got an answer to ADD sends another DEL.
            await stage.delete(pod)
        else:
            assert answer.code == 11, answer
        await stage.clean(pod)


@pytest.mark.parametrize(
    ("node", "device", "next_device"),
    [(HOST, vf_address(1), vf_address(1)), (HOST, vf_address(1), vf_address(2)), (DEFAULT, "", "")],
)
async def test_the_newer_sandbox_has_the_pods_port(stage: Stage, node: str, device: str, next_device: str) -> None:
    """Kubelet may begin a pod's next sandbox first and end the older one then."""
    async with pods(stage, (node, device), (DEFAULT, "")) as (old, peer):
        await stage.add(peer)
        await stage.add(old)
        new = dataclasses.replace(old.next_sandbox(), device=next_device)
        await stage.sandbox(new)
        try:
            await stage.add(new)
            assert await stage.ping(peer, new.ip)
            await stage.delete(old)
            assert await stage.ping(peer, new.ip)
            await stage.check(new)
            await stage.delete(new)
            assert vf_netdev(1) in {link["ifname"] for link in await stage.links(stage.network.namespace(HOST))}
        finally:
            await namespaces.remove(new.netns)


async def test_a_sandbox_gets_one_interface_in_a_network(stage: Stage) -> None:
    async with pods(stage, (DEFAULT, "")) as (pod,):
        await stage.add(pod)
        second = await stage.call("ADD", dataclasses.replace(pod, ifname="net1"))
        assert (second.code, "already, by its interface eth0" in second.message) == (7, True), second
        await stage.check(pod)
        await stage.delete(pod)
        await stage.clean(pod)


@pytest.mark.parametrize(("node", "device"), [(DEFAULT, ""), (HOST, vf_address(0))])
async def test_a_runtime_need_not_tell_the_pods_uid(stage: Stage, node: str, device: str) -> None:
    """OVN binds a port whose `iface-id-ver` is the uid to nothing else."""
    async with pods(stage, (node, device)) as (pod,):
        await stage.expect_uid(pod)
        arguments = {"CNI_ARGS": f"K8S_POD_NAMESPACE={pod.namespace};K8S_POD_NAME={pod.name}"}
        answer = await stage.call("ADD", pod, environment=arguments)
        assert answer.status == 0, answer.message
        removed = await stage.call("DEL", pod, environment=arguments)
        assert removed.status == 0, removed.message
        await stage.clean(pod)


async def test_a_static_pod_is_known_by_its_mirror(stage: Stage) -> None:
    """Its uid at kubelet is not that in the API server."""
    async with pods(stage, (HOST, vf_address(0))) as (pod,):
        await stage.expect_uid(pod)
        static = dataclasses.replace(pod, uid="5f2b1f0c9f6d4c7e8a1d2b3c4d5e6f70")
        mirror = {"metadata": {"annotations": {"kubernetes.io/config.mirror": static.uid}}}
        await stage.client.merge_patch(PODS, pod.name, pod.namespace, mirror)
        await stage.add(static)
        await stage.delete(static)
        await stage.clean(static)


async def test_a_device_info_file_that_cannot_be_written(stage: Stage) -> None:
    async with pods(stage, (HOST, vf_address(0))) as (pod,):
        wanted = stage.conf(pod, runtimeConfig={"CNIDeviceInfoFile": "/proc/device-info/pod.json"})
        answer = await stage.call("ADD", pod, wanted)
        assert (answer.code, "cannot write the device-info file" in answer.message) == (5, True), answer
        await stage.clean(pod)


async def test_del_of_anything_missing_succeeds(stage: Stage) -> None:
    async with pods(stage, (HOST, vf_address(0))) as (pod,):
        await stage.delete(pod)
        await stage.delete(pod)
        bare = await stage.call("DEL", pod, environment={"CNI_NETNS": None, "CNI_ARGS": None})
        assert bare.status == 0, bare.message
