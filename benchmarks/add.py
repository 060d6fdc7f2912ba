"""ADD and DEL in default, host+DPU and vfio modes, one at a time and 32 at once, beside the floor of the same run.

The floor is the least that any plugin must do, written straight against the same OVN: insert the logical switch port,
make or move the link with bare netlink calls, add the port to OVS, wait for `ovn-installed` by row event. Both include
the insert, because OVN's own time starts there. Rounds are interleaved. Needs root.
`.venv/bin/python -m benchmarks.add`
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from pyroute2 import IPRoute

from benchmarks import report
from cni.node.netns import node_namespace, opened
from foundation.ovsdb import OvsdbSession, fresh_name
from foundation.ovsdb import operations as op
from tests.node.stage import BINARY, DEFAULT, DPU, HOST, MODES, Pod, Stage, vf_address, vf_netdev

ROUNDS, BURST = 12, 32
VFS, VFIO = 40, 4
PEER_ADD_MS = 236.0
IDLE_SECONDS = 10.0


class Floor:
    """Attaches a pod with nothing but what the kernel, OVS and OVN ask for."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._ovs = {node: OvsdbSession(stage.network.chassis[node].ovs, "Open_vSwitch") for node in (DEFAULT, DPU)}
        self._nodes = {node: node_namespace(str(stage.network.namespace_path(node))) for node in MODES}

    async def start(self) -> None:
        for session in self._ovs.values():
            session.monitor({"Interface": ["name", "external_ids"], "Bridge": ["name", "ports"], "Port": ["name"]})
            await session.start()

    async def stop(self) -> None:
        for session in self._ovs.values():
            await session.stop()
        for node in self._nodes.values():
            node.close()

    async def add(self, pod: Pod, vf: int = -1) -> None:
        with opened(pod.netns_path) as namespace:
            if pod.node == DEFAULT:
                link = f"fl{pod.name}"
                await namespace.run(lambda netlink: _veth(netlink, pod, link, self._nodes[DEFAULT].fd))
                await self._nodes[DEFAULT].run(lambda netlink: _up(netlink, link))
                await self._plug(DEFAULT, link, pod)
            elif vf < self._stage.vfs - self._stage.vfio:
                await self._nodes[HOST].run(lambda netlink: _move(netlink, vf_netdev(vf), namespace.fd))
                await namespace.run(lambda netlink: _configure(netlink, pod))
                await self._representor(vf, pod)
            else:
                await self._representor(vf, pod)

    async def _representor(self, vf: int, pod: Pod) -> None:
        await self._nodes[DPU].run(lambda netlink: _up(netlink, f"pf0vf{vf}"))
        await self._plug(DPU, f"pf0vf{vf}", pod)

    async def _plug(self, node: str, link: str, pod: Pod) -> None:
        session = self._ovs[node]
        bridge = next(row for row in session.rows("Bridge").values() if row["name"] == "br-int")
        interface, port = fresh_name(), fresh_name()
        ids = {"iface-id": pod.port, "attached-mac": pod.mac}
        await session.transact(
            op.insert("Interface", {"name": link, "external_ids": ids}, uuid_name=interface),
            op.insert("Port", {"name": link, "interfaces": interface}, uuid_name=port),
            op.mutate("Bridge", bridge.uuid, [("ports", "insert", port)]),
        )
        await session.until(
            "Interface",
            lambda row: row["name"] == link and row["external_ids"].get("ovn-installed") == "true",
            deadline=20,
        )

    async def delete(self, pod: Pod, vf: int = -1) -> None:
        node, link = (DEFAULT, f"fl{pod.name}") if pod.node == DEFAULT else (DPU, f"pf0vf{vf}")
        session = self._ovs[node]
        row = next(row for row in session.rows("Port").values() if row["name"] == link)
        bridge = next(row for row in session.rows("Bridge").values() if row["name"] == "br-int")
        await session.transact(op.mutate("Bridge", bridge.uuid, [("ports", "delete", row.uuid)]))
        if node == DEFAULT:
            await self._nodes[DEFAULT].run(lambda netlink: netlink.link("del", ifname=link))
        elif vf < self._stage.vfs - self._stage.vfio:
            host = self._nodes[HOST].fd
            with opened(pod.netns_path) as namespace:
                await namespace.run(lambda netlink: _return(netlink, vf_netdev(vf), host))
            await self._nodes[HOST].run(
                lambda netlink: netlink.link("set", ifname=vf_netdev(vf), address=f"02:bf:03:00:00:{vf:02x}", mtu=1500)
            )


def _veth(netlink: IPRoute, pod: Pod, peer: str, fd: int) -> None:
    netlink.link(
        "add",
        ifname="eth0",
        kind="veth",
        address=pod.mac,
        mtu=pod.mtu,
        peer={"ifname": peer, "net_ns_fd": fd, "mtu": pod.mtu},
    )
    _configure(netlink, pod)


def _configure(netlink: IPRoute, pod: Pod) -> None:
    (link,) = netlink.link("get", ifname="eth0")
    index = link["index"]
    netlink.link("set", index=index, state="up", address=pod.mac, mtu=pod.mtu)
    netlink.addr("add", index=index, address=pod.ip, prefixlen=16)
    netlink.addr("add", index=index, address=pod.ip6, prefixlen=64, flags=2)
    netlink.route("add", dst="0.0.0.0/0", gateway="10.77.255.1", oif=index)


def _up(netlink: IPRoute, name: str) -> None:
    netlink.link("set", ifname=name, state="up")


def _move(netlink: IPRoute, name: str, fd: int) -> None:
    (link,) = netlink.link("get", ifname=name)
    netlink.link("set", index=link["index"], net_ns_fd=fd, ifname="eth0")


def _return(netlink: IPRoute, name: str, fd: int) -> None:
    (link,) = netlink.link("get", ifname="eth0")
    netlink.link("set", index=link["index"], state="down")
    netlink.link("set", index=link["index"], net_ns_fd=fd, ifname=name)


async def run_plugin(stage: Stage, verb: str, pod: Pod) -> None:
    """As a runtime does, with little of a runtime: one spawned process, its input and output in memory."""
    variables = {key: value for key, value in stage.variables(verb, pod).items() if value is not None}
    given, answer = os.memfd_create("stdin"), os.memfd_create("stdout")
    try:
        os.write(given, json.dumps(stage.conf(pod)).encode())
        os.lseek(given, 0, os.SEEK_SET)
        actions = [(os.POSIX_SPAWN_DUP2, given, 0), (os.POSIX_SPAWN_DUP2, answer, 1)]
        status = await _spawned(variables, actions)
        if status:
            raise RuntimeError(f"{verb} failed: {os.pread(answer, 4096, 0).decode()}")
    finally:
        os.close(given)
        os.close(answer)


def _spawned(variables: dict[str, str], actions: list[tuple[int, int, int]]) -> asyncio.Future[int]:
    """The exit status of a plugin that begins now."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()
    child = os.pidfd_open(os.posix_spawn(BINARY, [str(BINARY)], variables, file_actions=actions))

    def reap() -> None:
        loop.remove_reader(child)
        found = os.waitid(os.P_PIDFD, child, os.WEXITED)
        os.close(child)
        ended.set_result(found.si_status if found is not None else -1)

    loop.add_reader(child, reap)
    return ended


async def timed(work: Awaitable[object]) -> float:
    started = time.perf_counter()
    await work
    return (time.perf_counter() - started) * 1000


async def made(stage: Stage, mode: str, index: int = 0) -> tuple[Pod, int]:
    """A pod without a logical port yet, with the function that its mode takes."""
    vf = -1 if mode == "default" else index if mode == "host" else VFS - VFIO + index % VFIO
    node = DEFAULT if mode == "default" else HOST
    pod = await stage.pod(node, device=vf_address(vf) if vf >= 0 else "", port=False)
    # The annotation has to be known before the clock starts: it is cni-controller's time, not cni-node's.
    await asyncio.sleep(0.03)
    return pod, vf


async def one_by_one(stage: Stage, floor: Floor, mode: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"add": [], "del": [], "floor add": [], "floor del": [], "bare add": []}

    async def whole(pod: Pod, attach: Callable[[], Awaitable[object]]) -> None:
        await stage.add_port(pod)
        await attach()

    for number in range(ROUNDS + 1):
        pod, vf = await made(stage, mode)
        ours = await timed(whole(pod, functools.partial(run_plugin, stage, "ADD", pod)))
        away = await timed(run_plugin(stage, "DEL", pod))
        # A second sandbox of the same pod: the logical port is there already, as it is in a cluster.
        # OVN is given time to let go of the first one.
        await asyncio.sleep(0.1)
        bare = await timed(run_plugin(stage, "ADD", pod))
        await stage.delete(pod)
        await stage.forget(pod)
        pod, vf = await made(stage, mode)
        least = await timed(whole(pod, functools.partial(floor.add, pod, vf)))
        gone = await timed(floor.delete(pod, vf))
        await stage.forget(pod)
        if number:  # the first round warms everything up
            for key, value in zip(found, (ours, away, least, gone, bare), strict=True):
                found[key].append(value)
    return found


async def burst(stage: Stage, attach: Callable[[Pod, int], Awaitable[object]], mode: str) -> tuple[list[Pod], float]:
    """The pods with the rate at which they came up, in pods a second."""
    pods = [await made(stage, mode, index) for index in range(BURST)]

    async def whole(pod: Pod, vf: int) -> None:
        await stage.add_port(pod)
        await attach(pod, vf)

    started = time.perf_counter()
    await asyncio.gather(*(whole(pod, vf) for pod, vf in pods))
    return [pod for pod, _ in pods], BURST / (time.perf_counter() - started)


def cpu_seconds(pid: int) -> float:
    """By the process's own clock (clock_getcpuclockid(3), as Linux numbers it): /proc tells hundredths only."""
    return time.clock_gettime(~pid << 3 | 2)


def memory_mib(pid: int) -> float:
    """Resident set size."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"no Rss for process {pid}")


async def measure(stage: Stage) -> None:
    floor = Floor(stage)
    await floor.start()
    medians: dict[str, float] = {}
    for mode in ("default", "host", "vfio"):
        found = await one_by_one(stage, floor, mode)
        p50 = {key: statistics.median(values) for key, values in found.items()}
        medians[mode] = p50["add"]
        goal = {"of": "ratio", "max": 1.3}
        report.add(f"cni_add_{mode}_p50", value=p50["add"], unit="ms", floor=p50["floor add"], goal=goal)
        report.add(
            f"cni_add_{mode}_p50_port_known",
            value=p50["bare add"],
            unit="ms",
            goal={"of": "value", "max": PEER_ADD_MS / 3},
        )
        report.add(f"cni_add_{mode}_worst", value=max(found["add"]), unit="ms", floor=max(found["floor add"]))
        report.add(
            f"cni_del_{mode}_p50", value=p50["del"], unit="ms", floor=p50["floor del"], goal={"of": "value", "max": 30}
        )
    report.add(
        "cni_add_against_peer",
        value=medians["default"],
        unit="ms",
        floor=PEER_ADD_MS,
        goal={"of": "ratio", "max": 1 / 3},
    )
    # With vfio nothing happens on the host: what it costs above a plain pod is the way to the DPU and back.
    report.add("cni_dpu_hop", value=medians["vfio"] - medians["default"], unit="ms", goal={"of": "value", "max": 10})
    for mode in ("default", "host"):
        await bursts(stage, floor, mode)
    # The DPU quiets the burst's representors first, ten seconds after the last.
    await asyncio.sleep(13)
    await idle(stage)
    await floor.stop()


async def bursts(stage: Stage, floor: Floor, mode: str) -> None:
    pods, least = await burst(stage, floor.add, mode)
    for index, pod in enumerate(pods):
        await floor.delete(pod, index)
    await stage.forget(*pods)
    pods, rate = await burst(stage, lambda pod, _: run_plugin(stage, "ADD", pod), mode)
    started = time.perf_counter()
    await asyncio.gather(*(run_plugin(stage, "DEL", pod) for pod in pods))
    away = BURST / (time.perf_counter() - started)
    await stage.forget(*pods)
    report.add(
        f"cni_add_{mode}_burst", value=rate, unit="pods/s", floor=least, goal={"of": "value", "min": min(20.0, least)}
    )
    report.add(f"cni_del_{mode}_burst", value=away, unit="pods/s")


async def idle(stage: Stage) -> None:
    pids = {node: stage.processes[node].pid for node in MODES}
    before = {node: cpu_seconds(pid) for node, pid in pids.items()}
    await asyncio.sleep(IDLE_SECONDS)
    for node, pid in pids.items():
        share = (cpu_seconds(pid) - before[node]) / IDLE_SECONDS * 100
        report.add(f"cni_node_{MODES[node]}_idle", value=share, unit="% of a core", goal={"of": "value", "max": 0.2})
        report.add(f"cni_node_{MODES[node]}_memory", value=memory_mib(pid), unit="MiB", goal={"of": "value", "max": 80})


async def run() -> None:
    with tempfile.TemporaryDirectory(prefix="bench-add-") as scratch:
        stage = Stage(Path(scratch), vfs=VFS, vfio=VFIO, module="cni.node.app")
        try:
            await stage.up()
            # As installed, where the tests' shorter beats are not.
            await asyncio.gather(*(stage.start(node, offload={}) for node in MODES))
            await stage.settled()
            await measure(stage)
        finally:
            await stage.down()


def main() -> None:
    asyncio.run(run())


if __name__ == "__main__":
    main()
