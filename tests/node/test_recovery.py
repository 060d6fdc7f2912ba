"""Everything that may restart, restarts while pods live: they work again untouched, what is orphaned goes."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Callable

import pytest

from foundation.ovsdb import OvsdbSession
from foundation.ovsdb import operations as op
from foundation.ovsdb.values import fresh_name
from lab.network import namespaces
from lab.network.commands import ip, run
from tests.node.stage import DEFAULT, DPU, HOST, MODES, Pod, Stage, vf_address, vf_netdev

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="session")]


@contextlib.asynccontextmanager
async def three(stage: Stage) -> AsyncIterator[tuple[Pod, Pod, Pod]]:
    """One pod in each mode, attached and reaching each other."""
    plain, accelerated, on_dpu = made = (
        await stage.pod(DEFAULT),
        await stage.pod(HOST, device=vf_address(0)),
        await stage.pod(DPU),
    )
    try:
        await asyncio.gather(*(stage.add(pod) for pod in made))
        yield plain, accelerated, on_dpu
        await working(stage, plain, accelerated, on_dpu)
        await asyncio.gather(*(stage.delete(pod) for pod in made))
        await stage.clean(*made)
    finally:
        for node in MODES:
            if node not in stage.processes:
                await stage.start(node)
        await stage.forget(*made)


async def working(stage: Stage, *pods: Pod, seconds: float = 30.0) -> float:
    """Every pod is as CHECK wants it, and reaches the next; the seconds until then."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    while True:
        checks = [await stage.call("CHECK", pod, stage.conf(pod, prevResult=pod.result)) for pod in pods]
        if all(one.status == 0 for one in checks):
            pairs = zip(pods, (*pods[1:], pods[0]), strict=True)
            if all([await stage.ping(one, other.ip, seconds=0) for one, other in pairs]):
                return loop.time() - started
        assert loop.time() - started < seconds, [one.message for one in checks if one.status]
        await asyncio.sleep(0.05)


async def eventually(check: Callable[[], object], *, seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not check():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("change", ["down", "mtu 1280"])
async def test_a_representor_that_somebody_changed_between_two_pods_is_put_right(stage: Stage, change: str) -> None:
    """It stays up for the next pod for a while, so its state then is remembered, not asked for."""
    pod = await stage.pod(HOST, device=vf_address(0))
    try:
        await stage.add(pod)
        await stage.delete(pod)
        await ip(f"link set pf0vf0 {change}", namespace=stage.network.namespace(DPU))
        await stage.add(pod)
        (link,) = [one for one in await stage.links(stage.network.namespace(DPU)) if one["ifname"] == "pf0vf0"]
        assert "UP" in link["flags"]
        assert link["mtu"] == pod.mtu
        await stage.check(pod)
        await stage.delete(pod)
    finally:
        await stage.forget(pod)


@pytest.mark.parametrize("node", sorted(MODES))
async def test_a_killed_agent_comes_back_to_its_pods(stage: Stage, node: str) -> None:
    async with three(stage) as pods:
        stage.kill(node)
        await stage.start(node)
        await working(stage, *pods)


async def test_ovs_restarts_on_both_sides(stage: Stage) -> None:
    async with three(stage) as pods:
        for node in (DEFAULT, DPU):
            await stage.network.restart_switch(node)
        await working(stage, *pods)


async def test_ports_that_vanish_from_ovs_are_put_back(stage: Stage) -> None:
    async with three(stage) as pods:
        for node in (DEFAULT, DPU):
            for port in await stage.ports(node):
                await run("ovs-vsctl", f"--db={stage.network.chassis[node].ovs}", "del-port", "br-int", port)
        await working(stage, *pods)


async def test_an_older_conf_db_gets_its_ports_back(stage: Stage) -> None:
    """OVS' database as it was before there were any pods, in place of the present one."""
    await stage.settled()
    remotes = {node: stage.network.chassis[node].ovs for node in (DEFAULT, DPU)}
    for node, remote in remotes.items():
        await run("bash", "-c", f"ovsdb-client backup {remote} > {stage.directory}/{node}.backup")
    async with three(stage) as pods:
        for node, remote in remotes.items():
            await run("bash", "-c", f"ovsdb-client restore {remote} < {stage.directory}/{node}.backup")
        await working(stage, *pods)


async def test_a_rebooted_dpu_gets_everything_back_from_its_host(stage: Stage) -> None:
    async with three(stage) as pods:
        stage.kill(DPU)
        shutil.rmtree(stage.directory / "state" / DPU)
        await run("ovs-vsctl", f"--db={stage.network.chassis[DPU].ovs}", "del-port", "br-int", "pf0vf0")
        await stage.start(DPU)
        plain, accelerated, on_dpu = pods
        await working(stage, plain, accelerated)
        # The DPU's own pod is on no record any more; its port went as an orphan. Its runtime makes it anew.
        await stage.delete(on_dpu)
        await namespaces.remove(on_dpu.netns)
        await namespaces.create(on_dpu.netns)
        await stage.add(on_dpu)


async def test_a_pod_that_died_while_its_agent_was_away_is_cleared(stage: Stage) -> None:
    pod = await stage.pod(DEFAULT)
    try:
        await stage.add(pod)
        stage.kill(DEFAULT)
        await namespaces.remove(pod.netns)
        await stage.start(DEFAULT)
        await stage.clean()
    finally:
        await stage.forget(pod)


async def test_a_removal_that_the_dpu_missed_is_made_good(stage: Stage) -> None:
    pod, later = [await stage.pod(HOST, device=vf_address(0)) for _ in range(2)]
    try:
        await stage.add(pod)
        stage.kill(DPU)
        await stage.delete(pod)
        assert vf_netdev(0) in {link["ifname"] for link in await stage.links(stage.network.namespace(HOST))}
        assert await stage.ports(DPU) == ["pf0vf0"]
        early = await stage.call("ADD", later)
        assert (
            early.code,
            f"still has the port of interface eth0 of pod {pod.namespace}/{pod.name}" in early.message,
        ) == (11, True), early
        await stage.start(DPU)
        await stage.clean(pod)
    finally:
        await stage.forget(pod, later)


async def test_orphans_go_and_foreign_things_stay(stage: Stage) -> None:
    chassis = stage.network.chassis[DEFAULT]
    netns = stage.network.namespace(DEFAULT)
    stage.stop(DEFAULT)
    await ip(
        "link add dpo111122223333 type veth peer name orphan-peer",
        "link set dpo111122223333 alias dpu-offload:1111222233334444:",
        "link add foreign0 type veth peer name foreign1",
        "link set foreign0 alias somebody",
        namespace=netns,
    )
    session = OvsdbSession(chassis.ovs, "Open_vSwitch")
    session.monitor({"Bridge": ["name"], "Interface": ["name"]})
    async with session:
        bridge = next(row for row in session.rows("Bridge").values() if row["name"] == "br-int")
        for name, ids in (("dpo111122223333", {"dpu-offload/attachment": "1111222233334444"}), ("foreign0", {})):
            interface, port = fresh_name(), fresh_name()
            await session.transact(
                op.insert("Interface", {"name": name, "external_ids": ids}, uuid_name=interface),
                op.insert("Port", {"name": name, "interfaces": interface}, uuid_name=port),
                op.mutate("Bridge", bridge.uuid, [("ports", "insert", port)]),
            )
        await stage.start(DEFAULT)
        await stage.clean()
        assert "foreign0" in {row["name"] for row in session.rows("Interface").values()}
        assert {"foreign0", "foreign1"} <= {link["ifname"] for link in await stage.links(netns)}
        await run("ovs-vsctl", f"--db={chassis.ovs}", "del-port", "br-int", "foreign0")
    await ip("link del foreign0", namespace=netns)


async def test_a_damaged_record_costs_only_its_own_pod(stage: Stage) -> None:
    kept, lost = await stage.pod(DEFAULT), await stage.pod(DEFAULT)
    try:
        await stage.add(kept)
        before = set(stage.records(DEFAULT))
        await stage.add(lost)
        (name,) = set(stage.records(DEFAULT)) - before
        stage.kill(DEFAULT)
        path = stage.directory / "state" / DEFAULT / "attachments" / name
        path.write_bytes(path.read_bytes()[:-40])
        await stage.start(DEFAULT)
        await working(stage, kept)
        await eventually(lambda: len(stage.records(DEFAULT)) == 1)
        await stage.delete(lost)
        await stage.delete(kept)
        await stage.clean(kept)
    finally:
        await stage.forget(kept, lost)


async def test_a_function_comes_back_as_it_was(stage: Stage) -> None:
    host = stage.network.namespace(HOST)
    await ip(
        f"link property add dev {vf_netdev(3)} altname enp3s0f0v3-long-alternative-name",
        f"link set {vf_netdev(3)} mtu 1900",
        namespace=host,
    )
    pod = await stage.pod(HOST, device=vf_address(3))
    try:
        await stage.add(pod)
        (link,) = await stage.links(pod.netns)
        assert (link["ifname"], link["mtu"], link.get("altnames", [])) == ("eth0", 1400, [])
        await stage.delete(pod)
        link = next(one for one in await stage.links(host) if one["ifname"] == vf_netdev(3))
        assert (link["mtu"], link["address"], link["altnames"]) == (
            1900,
            "02:bf:03:00:00:03",
            ["enp3s0f0v3-long-alternative-name"],
        )
    finally:
        await ip(
            f"link property del dev {vf_netdev(3)} altname enp3s0f0v3-long-alternative-name",
            f"link set {vf_netdev(3)} mtu 1500",
            namespace=host,
        )
        await stage.forget(pod)


async def test_a_function_whose_name_was_taken_comes_back_under_ours(stage: Stage) -> None:
    host = stage.network.namespace(HOST)
    pod = await stage.pod(HOST, device=vf_address(3))
    try:
        await stage.add(pod)
        await ip(f"link add {vf_netdev(3)} type bridge", namespace=host)
        await stage.delete(pod)
        names = {link["ifname"] for link in await stage.links(host)}
        (ours,) = [name for name in names if name.startswith("dpo")]
        await ip(f"link del {vf_netdev(3)}", f"link set {ours} name {vf_netdev(3)}", namespace=host)
        await stage.clean(pod)
    finally:
        await stage.forget(pod)


async def test_a_renamed_representor_is_followed(stage: Stage) -> None:
    dpu = stage.network.namespace(DPU)
    tree = stage.sysfs[DPU]
    pod, peer = await stage.pod(HOST, device=vf_address(4)), await stage.pod(DEFAULT)
    switch = {"port_name": "c1pf0vf4", "switch_id": "e2a1c4000300bf03"}
    try:
        await stage.add(peer)
        tree.remove_netdev("pf0vf4", pci="0000:03:00.0")
        tree.add_netdev("newname4", pci="0000:03:00.0", **switch)
        await ip("link set pf0vf4 down", "link set pf0vf4 name newname4", namespace=dpu)
        await stage.add(pod)
        assert await stage.ports(DPU) == ["newname4"]
        assert await stage.ping(peer, pod.ip)
        # Renamed again under a living pod.
        tree.remove_netdev("newname4", pci="0000:03:00.0")
        tree.add_netdev("pf0vf4", pci="0000:03:00.0", **switch)
        await ip("link set newname4 down", "link set newname4 name pf0vf4", namespace=dpu)
        await working(stage, peer, pod)
        assert await stage.ports(DPU) == ["pf0vf4"]
        await stage.delete(pod)
        await stage.delete(peer)
        await stage.clean(pod, peer)
    finally:
        await stage.forget(pod, peer)
