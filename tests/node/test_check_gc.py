"""CHECK sees what is wrong, GC removes exactly what is unlisted, STATUS says why pods cannot be attached."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from benchmarks import report
from lab import processes
from lab.network.commands import ip, run
from tests.node.stage import DEFAULT, DPU, HOST, Pod, Stage, vf_address

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="session")]


@contextlib.asynccontextmanager
async def attached(stage: Stage, *wanted: tuple[str, str]) -> AsyncIterator[list[Pod]]:
    made = [await stage.pod(node, device=device) for node, device in wanted]
    try:
        for pod in made:
            await stage.add(pod)
        yield made
        for pod in made:
            await stage.delete(pod)
        await stage.clean(*made)
    finally:
        await stage.forget(*made)


async def check(stage: Stage, pod: Pod) -> str:
    answer = await stage.call("CHECK", pod, stage.conf(pod, prevResult=pod.result))
    assert answer.code in (0, 102), answer
    return answer.message if answer.status else ""


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (["link set eth0 mtu 1300"], "has MTU 1300 instead of 1400"),
        (["link set eth0 address 02:00:00:00:00:99"], "has MAC 02:00:00:00:00:99"),
        (["addr flush dev eth0 scope global"], "lacks the address"),
        (["route del default"], "lacks the route 0.0.0.0/0 via 10.77.255.1"),
        (["link set eth0 down"], "is down"),
        (["link set eth0 down", "link set eth0 name other"], "has no interface eth0"),
    ],
)
@pytest.mark.parametrize(("node", "device"), [(DEFAULT, ""), (HOST, vf_address(0))])
async def test_check_sees_damage_in_the_pod(
    stage: Stage, node: str, device: str, damage: list[str], sentence: str
) -> None:
    async with attached(stage, (node, device)) as (pod,):
        assert await check(stage, pod) == ""
        await ip(*damage, namespace=pod.netns)
        assert sentence in await check(stage, pod)


async def test_check_sees_what_the_switch_lacks(stage: Stage) -> None:
    async with attached(stage, (HOST, vf_address(0)), (DEFAULT, "")) as pods:
        for pod, node in zip(pods, (DPU, DEFAULT), strict=True):
            remote = stage.network.chassis[node].ovs
            (port,) = await stage.ports(node)
            await run("ovs-vsctl", f"--db={remote}", "set", "Interface", port, "external_ids:attached-mac=bogus")
            assert "attached-mac='bogus'" in await check(stage, pod)
            await run("ovs-vsctl", f"--db={remote}", "set", "Interface", port, f"external_ids:attached-mac={pod.mac}")
            assert await check(stage, pod) == ""


async def test_check_compares_the_cached_result(stage: Stage) -> None:
    async with attached(stage, (DEFAULT, "")) as (pod,):
        forged = pod.result | {"ips": [{"address": "10.77.9.9/16", "interface": 1}]}
        answer = await stage.call("CHECK", pod, stage.conf(pod, prevResult=forged))
        assert (answer.code, "prevResult is not the result of ADD" in answer.message) == (102, True)
        stranger = await stage.call("CHECK", pod.next_sandbox(), stage.conf(pod, prevResult=pod.result))
        assert (stranger.code, "ADD comes before CHECK" in stranger.message) == (3, True)
        elsewhere = {"CNI_NETNS": str(stage.network.namespace_path(HOST))}
        moved = await stage.call("CHECK", pod, stage.conf(pod, prevResult=pod.result), environment=elsewhere)
        assert (moved.code, "another network namespace than that of ADD" in moved.message) == (102, True)


async def test_gc_removes_exactly_the_unlisted(stage: Stage) -> None:
    async with attached(stage, (DEFAULT, ""), (DEFAULT, ""), (DEFAULT, "")) as (kept, gone, other):
        listed = [{"containerID": pod.container, "ifname": "eth0"} for pod in (kept, other)]
        conf = stage.conf() | {"cni.dev/valid-attachments": listed, "cni.dev/attachments": listed}
        answer = await stage.call("GC", None, conf)
        assert answer.status == 0, answer.message
        assert await stage.links(gone.netns) == []
        assert await stage.ping(kept, other.ip)
        assert len(await stage.ports(DEFAULT)) == 2
        # Another network's list says nothing of this one's attachments.
        elsewhere = conf | {"name": "elsewhere", "cni.dev/valid-attachments": [], "cni.dev/attachments": []}
        assert (await stage.call("GC", None, elsewhere)).status == 0
        assert len(await stage.ports(DEFAULT)) == 2


async def test_gc_on_a_host_frees_the_functions(stage: Stage) -> None:
    async with attached(stage, (HOST, vf_address(0)), (HOST, vf_address(1))) as (kept, gone):
        conf = stage.conf() | {"cni.dev/valid-attachments": [{"containerID": kept.container, "ifname": "eth0"}]}
        answer = await stage.call("GC", None, conf, node=HOST)
        assert answer.status == 0, answer.message
        assert await stage.ports(DPU) == ["pf0vf0"]
        assert await stage.links(gone.netns) == []


@pytest.mark.parametrize(("node", "device", "switch"), [(DEFAULT, "", DEFAULT), (HOST, vf_address(0), DPU)])
async def test_status_and_add_say_at_once_that_ovn_is_away(stage: Stage, node: str, device: str, switch: str) -> None:
    await stage.settled()
    pod = await stage.pod(node, device=device)
    await processes.kill(stage.network.process(f"ovnc-{switch}"))
    try:
        started = time.monotonic()
        answer = await stage.call("ADD", pod)
        seconds = time.monotonic() - started
        report.add(f"cni_ovn_away_told_{switch}", value=seconds, unit="s", goal={"of": "value", "max": 1.0})
        assert "ovn-controller does not answer" in answer.message
        assert (answer.code, seconds < 10) == (112 if device else 11, True)
        async with asyncio.timeout(30):
            while (
                "ovn-controller does not answer"
                not in (status := await stage.call("STATUS", None, stage.conf(), node=node)).message
            ):
                await asyncio.sleep(0.1)
        assert status.code == 50
    finally:
        stage.network.chassis[switch].start_controller(stage.network._record)
        await stage.settled()
        await stage.delete(pod)
        await stage.clean(pod)
        await stage.forget(pod)
