"""Cards of other shapes: two DPUs to one host, scalable functions beside VFs, a DPU that says nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import report
from foundation.kube.resources import NODES
from lab.hardware.sysfs import NETWORK_CLASS, PciEntry, SysfsTree
from lab.network import VirtualFunction
from lab.network.commands import ip
from lab.ports import free_port
from tests.node.stage import DEFAULT, DPU, HOST, PF, SWITCH_ID, Pod, Stage, vf_address

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(120)]

SECOND, SECOND_PF, SECOND_VF = "node-dpu2", "0000:05:00.0", "0000:05:00.2"
FUNCTION, NETDEV, REPRESENTOR, MAC = "mlx5_core.sf.4", "enp3s0f0s88", "pf0sf88", "02:bf:03:00:01:58"


def vpd(serial: str) -> bytes:
    """Vital product data with keyword SN (PCI 3.0 appendix I)."""
    body = b"SN" + bytes([len(serial)]) + serial.encode()
    return b"\x90" + len(body).to_bytes(2, "little") + body + b"\x78"


# --- scalable functions ----------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def scalable_function(stage: Stage) -> AsyncIterator[None]:
    """SF number 88 of the card's first PF, as auxiliary device 4 of its driver."""
    host, dpu = stage.sysfs[HOST], stage.sysfs[DPU]
    await stage.network.add_virtual_functions(VirtualFunction(HOST, NETDEV, DPU, REPRESENTOR, MAC))
    device = host.device(PF) / FUNCTION
    (device / "net" / NETDEV).mkdir(parents=True)
    (device / "sfnum").write_text("88\n")
    auxiliary = host.root / "bus/auxiliary/devices"
    auxiliary.mkdir(parents=True, exist_ok=True)
    (auxiliary / FUNCTION).symlink_to(device)
    dpu.add_netdev(REPRESENTOR, pci=PF, port_name="c1pf0sf88", switch_id=SWITCH_ID)
    try:
        yield
    finally:
        dpu.remove_netdev(REPRESENTOR, pci=PF)
        await ip(f"link del {REPRESENTOR}", namespace=stage.network.namespace(DPU))


async def test_a_scalable_function_goes_to_a_pod_and_comes_back(stage: Stage) -> None:
    await stage.settled()
    pod, peer = await stage.pod(HOST, device=FUNCTION), await stage.pod(DEFAULT)
    info = stage.directory / "sf-devinfo.json"
    try:
        async with scalable_function(stage):
            await stage.add(peer)
            await stage.add(pod, runtimeConfig={"CNIDeviceInfoFile": str(info)})
            assert await stage.ports(DPU) == [REPRESENTOR]
            (link,) = await stage.links(pod.netns)
            assert (link["ifname"], link["address"], link["mtu"]) == ("eth0", pod.mac, pod.mtu)
            assert json.loads(info.read_text())["pci"]["pci-address"] == PF
            assert await stage.ping(peer, pod.ip)
            await stage.check(pod)
            await stage.delete(pod)
            back = next(one for one in await stage.links(stage.network.namespace(HOST)) if one["ifname"] == NETDEV)
            assert (back["address"], back["mtu"]) == (MAC, 1500)
            await stage.delete(peer)
            await stage.clean(pod, peer)
    finally:
        await stage.forget(pod, peer)


# --- two DPUs --------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def second_dpu(stage: Stage, directory: Path) -> AsyncIterator[None]:
    """Another card in the host. Its cni-node has the switch of the plain node, whose own cni-node is away meanwhile."""
    tree, host = SysfsTree(directory / "sys"), stage.sysfs[HOST]
    stage.stop(DEFAULT)
    await stage.network.add_virtual_functions(
        VirtualFunction(HOST, "enp5s0f0v0", DEFAULT, "pf0vf0", "02:bf:05:00:00:00")
    )
    for where, device in ((host, "0xa2dc"), (tree, "0xa2d6")):
        where.root.mkdir(parents=True, exist_ok=True)
        where.add_function(
            PciEntry(SECOND_PF, vendor="0x15b3", device=device, class_code=NETWORK_CLASS, driver="mlx5_core")
        )
        (where.device(SECOND_PF) / "vpd").write_bytes(vpd("CARD2"))
    for where in (host, stage.sysfs[DPU]):
        (where.device(PF) / "vpd").write_bytes(vpd("CARD1"))
    host.add_function(
        PciEntry(SECOND_VF, vendor="0x15b3", device="0x101e", class_code=NETWORK_CLASS, driver="mlx5_core")
    )
    host.add_virtual_functions(SECOND_PF, [SECOND_VF])
    host.add_netdev("enp5s0f0v0", pci=SECOND_VF)
    tree.add_netdev("pf0vf0", pci=SECOND_PF, port_name="c1pf0vf0", switch_id="e2a1c4000500bf05")
    labels = {"dpu-offload.io/mode": "dpu", "dpu-offload.io/host-node": HOST}
    await stage.client.create(NODES, {"metadata": {"name": SECOND, "labels": labels}})
    await stage.start_again(DPU)
    await start_second(stage, directory, tree)
    try:
        yield
    finally:
        stage.stop(SECOND)
        await stage.client.delete(NODES, SECOND)
        host.remove_netdev("enp5s0f0v0", pci=SECOND_VF)
        await ip("link del pf0vf0", namespace=stage.network.namespace(DEFAULT))
        for where in (host, stage.sysfs[DPU]):
            (where.device(PF) / "vpd").unlink()
        # It knows two DPUs, and of those that only vanish from the API server it does not let go.
        await asyncio.gather(stage.start_again(HOST), stage.start_again(DPU))
        await stage.settled()


async def start_second(stage: Stage, directory: Path, tree: SysfsTree) -> None:
    identity = stage.authority.issue(node=SECOND, component="cni-node")
    tls = {"ca": str(identity.ca), "certificate": str(identity.certificate), "key": str(identity.key)}
    address = f"127.0.0.1:{free_port()}"
    config = stage.config(DEFAULT) | {
        "mode": "dpu",
        "node_name": SECOND,
        "cni_socket": str(stage.socket(SECOND)),
        "http": f"unix:{stage.socket(SECOND)}.http",
        "state_dir": str(directory / "state"),
        "sysfs_root": str(tree.root),
        "link": {"tls": tls, "listen": address, "advertise": address},
    }
    path = directory / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    stage._spawn(SECOND, ["-m", stage.module, "--config", str(path)], CNI_NODE_FAULT=str(directory / "none"))
    await stage.ready(SECOND)


async def test_each_function_is_plugged_by_its_own_cards_dpu(stage: Stage, tmp_path: Path) -> None:
    await stage.settled()
    first, second = await stage.pod(HOST, device=vf_address(0)), await stage.pod(HOST, device=SECOND_VF)
    other = await stage.pod(HOST, device=vf_address(1))
    try:
        async with second_dpu(stage, tmp_path):
            await eventually_added(stage, first, second)
            assert await stage.ports(DPU) == ["pf0vf0"]
            assert await stage.ports(DEFAULT) == ["pf0vf0"]
            assert await stage.ping(first, second.ip)
            # One card's DPU away does not stop the other's pods, though STATUS has to tell: any pod may need it.
            stage.kill(SECOND)
            await stage.add(other)
            status = await stage.call("STATUS", None, stage.conf(), node=HOST)
            assert (status.code, f"DPU {SECOND}" in status.message) == (50, True)
            await stage.delete(other)
            await start_second(stage, tmp_path, SysfsTree(tmp_path / "sys"))
            assert await stage.ping(first, second.ip)
            await asyncio.gather(stage.delete(first), stage.delete(second))
            async with asyncio.timeout(30):
                while await stage.ports(DEFAULT):
                    await asyncio.sleep(0.1)
        await stage.clean(first, second, other)
    finally:
        await stage.forget(first, second, other)


async def eventually_added(stage: Stage, *pods: Pod) -> None:
    """The host hears of its second DPU in its own time; until then it says that it does not know the card."""
    async with asyncio.timeout(40):
        for pod in pods:
            while (answer := await stage.call("ADD", pod)).status:
                assert answer.code in (7, 11, 112), answer
                await asyncio.sleep(0.2)
            pod.result = answer.output


# --- a DPU that says nothing -----------------------------------------------------------------------------------------


async def impatient(stage: Stage) -> None:
    """The host's cni-node with the time limits that it has in production."""
    link: dict[str, Any] = stage.config(HOST)["link"] | {"accept_seconds": 0.8}
    await stage.start_again(HOST, link=link, unplug_seconds=2.0)


async def refused(stage: Stage, pod: Pod, figure: str) -> None:
    started = time.monotonic()
    answer = await stage.call("ADD", pod)
    seconds = time.monotonic() - started
    report.add(figure, value=seconds, unit="s", goal={"of": "value", "max": 1.0})
    assert (answer.code, "DPU node-dpu" in answer.message, seconds < 20) == (11, True, True), answer
    async with asyncio.timeout(30):
        while (status := await stage.call("STATUS", None, stage.conf(), node=HOST)).code != 50:
            await asyncio.sleep(0.1)
    assert "DPU node-dpu" in status.message


async def test_a_dpu_that_stands_still_holds_up_neither_add_nor_del(stage: Stage) -> None:
    await stage.settled()
    attached, pod = await stage.pod(HOST, device=vf_address(0)), await stage.pod(HOST, device=vf_address(1))
    await impatient(stage)
    still = stage.processes[DPU]
    try:
        await stage.add(attached)
        still.send_signal(signal.SIGSTOP)
        await refused(stage, pod, "cni_still_dpu_told")
        started = time.monotonic()
        await stage.delete(attached)
        assert time.monotonic() - started < 20
        still.send_signal(signal.SIGCONT)
        await stage.clean(attached, pod)
    finally:
        still.send_signal(signal.SIGCONT)
        await stage.start_again(HOST)
        await stage.settled()
        await stage.forget(attached, pod)


async def test_a_port_that_accepts_and_never_answers_is_no_dpu(stage: Stage) -> None:
    await stage.settled()
    pod = await stage.pod(HOST, device=vf_address(0))
    stage.stop(DPU)
    held: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _, writer: held.append(writer), "127.0.0.1", stage.link_port)
    try:
        await impatient(stage)
        await refused(stage, pod, "cni_silent_dpu_told")
    finally:
        silent.close()
        for writer in held:
            writer.close()
        await stage.start_again(HOST)
        await stage.settled()
        await stage.add(pod)
        await stage.delete(pod)
        await stage.clean(pod)
        await stage.forget(pod)
