"""A machine on real OVN learns its addresses by DHCP, and keeps a TCP connection open while it moves, whoever dies."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from benchmarks import report
from foundation.kube.resources import NETWORK_ATTACHMENT_DEFINITIONS, VIRTUAL_MACHINES
from lab.kubevirt import dhcp
from lab.kubevirt.watched import Watched
from lab.network import namespaces
from lab.network.commands import ip, run
from tests.kubevirt.rig import CONTROLLER, Rig
from tests.kubevirt.test_examples import one
from tests.kubevirt.walks import Running, body, configured, move, started
from tests.node.stage import DEFAULT, DPU, HOST, vf_address, vf_netdev

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]

SEARCH = "default.svc.cluster.local"


def say(text: str) -> None:
    """A figure for whoever looks at the run (`-s`)."""
    sys.stderr.write(f"\n{text}\n")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    rig = Rig(tmp_path_factory.mktemp("rig"))
    try:
        await rig.up()
        yield rig
    finally:
        await rig.down()


@pytest_asyncio.fixture(loop_scope="module")
async def running(rig: Rig) -> AsyncIterator[Running]:
    async with started(rig) as running:
        yield running


async def test_a_guest_learns_all_it_needs_by_dhcp_and_router_advertisement(running: Running) -> None:
    name = running.guest.namespace
    got = await dhcp.lease(name, "eth0")
    v4, v6 = (each.partition("/")[0] for each in running.ips)
    gateways = (await running.given())["gateways"]
    assert got["address"] == v4
    assert got["routers"] == got["dhcp-server-identifier"] == gateways[0]
    assert got["domain-name-servers"] == "10.96.0.10"
    assert got["interface-mtu"] == "1400"
    assert got["host-name"] == '"web"'
    assert got["domain-name"] == f'"{SEARCH}"'
    assert got["domain-search"] == f'"{SEARCH}.", "svc.cluster.local.", "cluster.local."'
    assert got["dhcp-lease-time"] == "3600"
    got = await dhcp.lease(name, "eth0", family=6)
    assert got["address"] == v6
    assert got["dhcp6.name-servers"] == "fd96::a"
    assert got["dhcp6.domain-search"] == f'"{SEARCH}."'
    # A kernel asks for routers when its link comes up.
    await ip("link set eth0 down", "link set eth0 up", namespace=name)
    async with asyncio.timeout(30):
        while "proto ra" not in await run("ip", "-n", name, "-6", "route", "show", "default"):
            await asyncio.sleep(0.1)
    # The pod in front of it has nothing of it.
    pod = [each for each in await running.rig.stage.links(running.sandbox.netns) if each["ifname"] == "eth0"]
    assert [each["local"] for link in pod for each in link["addr_info"] if each["scope"] == "global"] == []


async def test_a_connection_outlives_a_migration_to_a_host_with_a_dpu_and_back(running: Running) -> None:
    await configured(running)
    peer, _ = await running.rig.peer(DPU)
    v4, v6 = (each["address"].partition("/")[0] for each in peer.result["ips"])
    name = running.guest.namespace
    async with Watched(name, peer.netns, v4) as first, Watched(name, peer.netns, v6) as second:
        there = await move(running, HOST, first, second)
        back = await move(running, DEFAULT, first, second)
        untold = await move(running, HOST, first, second, announce=False)
    for gaps, way in ((there, "on the way there"), (back, "on the way back"), (untold, "without an announcement")):
        say(f"the connections stood still for {gaps[0]:.1f} ms (IPv4), {gaps[1]:.1f} ms (IPv6) {way}")
    assert len(running.rig.bindings(running.port)) == 1


async def test_a_migration_that_fails_leaves_the_guest_where_it_was(running: Running) -> None:
    await configured(running)
    peer, address = await running.rig.peer(DPU)
    rig, machine = running.rig, running.machine
    async with Watched(running.guest.namespace, peer.netns, address) as watched:
        for cancelled in (False, True):
            begun = await machine.begin(HOST)
            target = await rig.add(begun.target)
            await machine.running(begun)
            await running.guest.plug(target.netns)
            await machine.fail(begun, cancelled=cancelled)
            await rig.bound(running.port, DEFAULT)
            await running.guest.unplug(target.netns)
            await running.over(begun, kept=True)
            await watched.gap()
        assert len(rig.bindings(running.port)) == 1


async def test_the_machine_keeps_its_address_over_a_stop_and_a_start_elsewhere(rig: Rig) -> None:
    machine = await rig.machine(body(rig.name("m"), masquerade={}))
    seen = []
    for node in (DEFAULT, HOST, DEFAULT):
        pod = await machine.start(node)
        sandbox = await rig.add(pod)
        given = (await rig.given(pod))["default"]
        seen.append((given["ips"], given["mac"]))
        links = {link["ifname"]: link for link in await rig.stage.links(sandbox.netns)}
        # Masquerade: the pod has the address, and hides its guest behind it.
        assert {each["local"] for each in links["eth0"]["addr_info"]} >= {ip.partition("/")[0] for ip in given["ips"]}
        assert links["eth0"]["address"] == given["mac"]
        await rig.bound(f"default_vm_{machine.name}", node)
        await rig.delete(pod)
        await machine.stop()
    assert seen[1:] == seen[:-1]
    kept = await rig.stage.client.get(VIRTUAL_MACHINES, machine.name, machine.namespace)
    assert seen[0][1] in kept.metadata.annotations["dpu-offload.io/vm-networks"]
    await machine.delete()


COUNTED: set[tuple[str, str]] = set()


def here(body: Mapping[str, Any]) -> dict[str, Any]:
    """An example's object in the rig's namespace."""
    return dict(json.loads(json.dumps(body).replace("machines", "default")))


async def test_a_guest_with_a_function_of_its_own_is_configured_over_the_representor(rig: Rig, tmp_path: Path) -> None:
    network, vm = here(one("vm.yaml", "NetworkAttachmentDefinition")), here(one("vm.yaml", "VirtualMachine"))
    await rig.stage.client.apply(NETWORK_ATTACHMENT_DEFINITIONS, network, "examples")
    machine = await rig.machine(vm)
    pod = await machine.start(HOST)
    await rig.add(pod)
    index = rig.stage.vfs - 1
    info = tmp_path / "devinfo.json"
    fast = await rig.add_network(pod, network, device=vf_address(index), info=str(info))
    # KubeVirt finds the function in the device information, the guest's MAC in the network status.
    assert json.loads(info.read_text())["pci"]["pci-address"] == vf_address(index)
    assert fast.result["interfaces"][-1]["mac"] == "02:50:00:00:00:01"
    await rig.bound("default.fast_default_vm_db", HOST)
    # What vfio-pci does with the function: it is in the guest, with the MAC of its spec.
    guest, card = f"{rig.stage.prefix}-fast", vf_netdev(index)
    await namespaces.create(guest)
    await ip(f"link set {card} netns {guest}", namespace=rig.stage.network.namespace(HOST))
    await ip(f"link set {card} address 02:50:00:00:00:01 up", namespace=guest)
    got = await dhcp.lease(guest, card)
    assert got["address"] == fast.result["ips"][0]["address"].partition("/")[0]
    assert "routers" not in got
    await ip(f"link set {card} netns {rig.stage.network.namespace(HOST)}", namespace=guest)
    await namespaces.remove(guest)
    await rig.delete_network(fast, network)
    await rig.delete(pod)
    await machine.stop()
    await machine.delete()


async def test_an_interface_is_plugged_into_a_running_machine_and_taken_out(running: Running) -> None:
    rig, machine = running.rig, running.machine
    network = here(one("nic-hotplug.yaml", "NetworkAttachmentDefinition"))
    await rig.stage.client.apply(NETWORK_ATTACHMENT_DEFINITIONS, network, "examples")
    plain = body(machine.name)["spec"]["template"]
    more = body(machine.name)["spec"]["template"]
    more["spec"]["domain"]["devices"]["interfaces"].append({"name": "backup", "bridge": {}})
    more["spec"]["networks"].append({"name": "backup", "multus": {"networkName": "backup"}})
    port = f"default.backup_default_vm_{machine.name}"
    seen = []
    for _ in range(2):
        backup = await rig.add_network(await machine.replug(more), network)
        await rig.bound(port, DEFAULT)
        seen.append(backup.result["interfaces"][-1]["mac"])
        pod = await machine.replug(plain)
        await rig.delete_network(backup, network)
        async with asyncio.timeout(30):
            while rig.bindings(port) or set(await rig.given(pod)) != {"default"}:
                await asyncio.sleep(0.05)
    assert seen[0] == seen[1]


async def killed_meanwhile(rig: Rig, process: str, work: Awaitable[Any]) -> Any:
    """SIGKILL for a process when `work` has just begun, and a new one at once."""
    task = asyncio.ensure_future(work)
    await asyncio.sleep(0.02)
    rig.stage.kill(process)
    if process == CONTROLLER:
        rig.start_controller()
        await rig.controller_ready()
    else:
        await rig.stage.start(process)
    return await task


PHASES = ("the target's pod is made", "memory is copied", "the guest goes on", "it is over", "the source's pod ends")
SCHEDULES = [
    pytest.param((HOST, CONTROLLER, DPU, DEFAULT, CONTROLLER), id="a different one at each phase"),
    *(
        pytest.param((process,) * len(PHASES), id=process, marks=pytest.mark.faults)
        for process in (CONTROLLER, DEFAULT, HOST, DPU)
    ),
]


@pytest.mark.parametrize("killed", SCHEDULES)
async def test_whoever_is_killed_at_any_phase_one_live_port_is_left(running: Running, killed: tuple[str, ...]) -> None:
    await configured(running)
    rig, machine, guest = running.rig, running.machine, running.guest
    peer, address = await rig.peer(DPU)
    victims = iter(killed)
    async with Watched(guest.namespace, peer.netns, address) as watched:
        begun = await machine.begin(HOST)
        target = await killed_meanwhile(rig, next(victims), rig.add_at_last(begun.target))
        await killed_meanwhile(rig, next(victims), machine.running(begun))
        await guest.plug(target.netns)
        await guest.run(target.netns, announce=True)
        await killed_meanwhile(rig, next(victims), machine.ready(begun))
        await rig.bound(running.port, HOST)
        await killed_meanwhile(rig, next(victims), machine.succeed(begun))
        await guest.unplug(running.sandbox.netns)
        await killed_meanwhile(rig, next(victims), running.over(begun))
        running.sandbox = target
        await rig.bound(running.port, HOST)
        gap = await watched.gap()
    assert len(rig.bindings(running.port)) == 1
    async with asyncio.timeout(30):
        while (await rig.stage.ports(DEFAULT)) or rig.stage.records(DEFAULT):
            await asyncio.sleep(0.05)
    for phase, process in zip(PHASES, killed, strict=True):
        COUNTED.add((phase, process))
    figures = {"points": len(COUNTED), "clean": len(COUNTED)}
    report.merge("faults.json", {"migration": figures})
    say(f"{', '.join(killed)} killed one after another: the connection stood still for {gap:.1f} ms at most")
