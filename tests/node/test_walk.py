"""A pod in each mode: attached, reached over the overlay, checked, taken away with nothing left."""

from __future__ import annotations

import asyncio

import pytest

from tests.node.stage import DEFAULT, DPU, HOST, MODES, Stage, vf_address, vf_netdev

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="session")]


async def test_pods_of_all_modes_reach_each_other_and_leave_nothing(stage: Stage) -> None:
    plain = await stage.pod(DEFAULT)
    accelerated = await stage.pod(HOST, device=vf_address(0))
    on_dpu = await stage.pod(DPU)
    pods = (plain, accelerated, on_dpu)
    try:
        await asyncio.gather(*(stage.add(pod) for pod in pods))
        for source in pods:
            for target in pods:
                if source is not target:
                    assert await stage.ping(source, target.ip), f"{source.node} -> {target.node}"
        assert await stage.ping(plain, accelerated.ip6)
        assert await stage.ping(accelerated, on_dpu.ip6)
        for pod in pods:
            checked = await stage.call("CHECK", pod, stage.conf(pod, prevResult=pod.result))
            assert checked.status == 0, checked.message
        await asyncio.gather(*(stage.delete(pod) for pod in pods))
        assert await stage.leftovers(*pods) == []
    finally:
        await stage.forget(*pods)


async def test_the_result_describes_the_interfaces(stage: Stage) -> None:
    pod = await stage.pod(HOST, device=vf_address(1))
    try:
        await stage.add(pod)
        (interface,) = pod.result["interfaces"]
        assert interface == {
            "name": "eth0",
            "mac": pod.mac,
            "sandbox": pod.netns_path,
            "mtu": 1400,
            "pciID": vf_address(1),
        }
        assert [entry["address"] for entry in pod.result["ips"]] == [f"{pod.ip}/16", f"{pod.ip6}/64"]
        assert pod.result["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.77.255.1"}]
        assert vf_netdev(1) not in {link["ifname"] for link in await stage.links(stage.network.namespace(HOST))}
        await stage.delete(pod)
        await stage.clean(pod)
    finally:
        await stage.forget(pod)


async def test_status_is_well_everywhere(stage: Stage) -> None:
    for node in MODES:
        answer = await stage.call("STATUS", None, stage.conf(), node=node)
        assert (answer.status, answer.output) == (0, {}), answer.message


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
async def test_every_version_gets_its_own_result(stage: Stage, version: str) -> None:
    pod = await stage.pod(DEFAULT)
    try:
        answer = await stage.call("ADD", pod, stage.conf(pod, cniVersion=version))
        assert answer.status == 0, answer.message
        assert answer.output["cniVersion"] == version
        assert ("version" in answer.output["ips"][0]) == (version < "1.0.0")
        assert ("mtu" in answer.output["interfaces"][1]) == (version == "1.1.0")
        removed = await stage.call("DEL", pod, stage.conf(pod, cniVersion=version))
        assert removed.status == 0, removed.message
        assert await stage.leftovers(pod) == []
    finally:
        await stage.forget(pod)
