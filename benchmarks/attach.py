"""Attach and detach beside the bare JSON-RPC sequences that they stand for, all against the same two stand-ins.

Three daemons run as processes of their own, with real configuration files. The floors are what a client that knows
exactly what to send would need: the four calls of an attachment one after another, and 40 such sequences pipelined.
"""

import asyncio
import itertools
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import yaml

from benchmarks import report
from dpu_offload_stubs.attacher.v1 import attacher_pb2, attacher_pb2_grpc
from foundation.daemon.serving import dial
from foundation.kube.client import KubeClient
from foundation.kube.resources import NODES
from foundation.spdk.client import SpdkClient
from lab.certificates import Authority
from lab.ports import free_port
from lab.spdk.process import SpdkProcess

ROUNDS = 15
AT_ONCE = 40
MANY = 250
IDLE_SECONDS = 15.0
SETTLED_SECONDS = 12.0
HOST_NQN = "nqn.2026-11.io.dpu-offload:host.bench"
ADDRESS = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1"}


class Bench:
    """The target, the DPU, and calls to both ways of attaching."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.port = port
        self.target = SpdkProcess(directory, "target", mode="target")
        self.dpu = SpdkProcess(directory, "dpu")
        self.at_target = SpdkClient(self.target.address)
        self.at_dpu = SpdkClient(self.dpu.address)
        self.pids: list[int] = []
        self.stub: Any = None

    @staticmethod
    def nqn(number: int) -> str:
        return f"nqn.2026-11.io.dpu-offload:volume.bench.v{number}"

    @staticmethod
    def uuid(number: int) -> str:
        return f"00000000-0000-4000-8000-{number:012x}"

    async def serve(self, number: int) -> None:
        """One volume at the target."""
        call, nqn, uuid = self.at_target.call, self.nqn(number), self.uuid(number)
        disk = {"name": f"m{number}", "num_blocks": 2048, "block_size": 512, "uuid": uuid}
        await call("bdev_malloc_create", disk)
        await call("nvmf_create_subsystem", {"nqn": nqn})
        await call("nvmf_subsystem_add_host", {"nqn": nqn, "host": HOST_NQN})
        nguid = uuid.replace("-", "").upper()
        namespace = {"bdev_name": f"m{number}", "nsid": 1, "uuid": uuid, "nguid": nguid}
        await call("nvmf_subsystem_add_ns", {"nqn": nqn, "namespace": namespace})
        await call(
            "nvmf_subsystem_add_listener", {"nqn": nqn, "listen_address": {**ADDRESS, "trsvcid": str(self.port)}}
        )

    async def bare_attach(self, number: int) -> None:
        """What an attachment costs at least: four calls, each needing the one before."""
        call, nqn = self.at_dpu.call, self.nqn(number)
        connect = {"name": f"bare{number}", **ADDRESS, "trsvcid": str(self.port), "subnqn": nqn, "hostnqn": HOST_NQN}
        timeouts = {"ctrlr_loss_timeout_sec": -1, "reconnect_delay_sec": 2, "fast_io_fail_timeout_sec": 0}
        await call("bdev_nvme_attach_controller", {**connect, **timeouts})
        await call("nvmf_create_subsystem", {"nqn": nqn, "allow_any_host": True, "max_namespaces": 1})
        await call("nvmf_subsystem_add_ns", {"nqn": nqn, "namespace": {"bdev_name": f"bare{number}n1", "nsid": 1}})
        await call("nvmf_subsystem_add_listener", {"nqn": nqn, "listen_address": self._slot(number)})

    async def bare_detach(self, number: int) -> None:
        call, nqn = self.at_dpu.call, self.nqn(number)
        await call("nvmf_subsystem_remove_ns", {"nqn": nqn, "nsid": 1})
        await call("nvmf_subsystem_remove_listener", {"nqn": nqn, "listen_address": self._slot(number)})
        await call("nvmf_delete_subsystem", {"nqn": nqn})
        await call("bdev_nvme_detach_controller", {"name": f"bare{number}"})

    def _slot(self, number: int) -> dict[str, str]:
        place = self.directory / "bare" / str(number)
        place.mkdir(parents=True, exist_ok=True)
        return {"trtype": "VFIOUSER", "traddr": str(place), "trsvcid": "0"}

    async def attach(self, number: int) -> None:
        path = attacher_pb2.Path(transport=attacher_pb2.TRANSPORT_TCP, address="127.0.0.1", port=self.port)
        remote = attacher_pb2.RemoteVolume(
            subsystem_nqn=self.nqn(number), paths=[path], namespace_uuid=self.uuid(number)
        )
        await self.stub.Attach(attacher_pb2.AttachRequest(volume_id=f"bench:v{number}", remote=remote))

    async def detach(self, number: int) -> None:
        await self.stub.Detach(attacher_pb2.DetachRequest(volume_id=f"bench:v{number}"))

    async def attached(self) -> int:
        listed = await self.stub.List(attacher_pb2.ListRequest())
        return sum(one.state == attacher_pb2.ATTACHMENT_STATE_ATTACHED for one in listed.attachments)

    def cpu_seconds(self) -> float:
        """Of the daemons, since their start; to the nanosecond, which /proc/PID/stat is not."""
        tasks = [task for pid in self.pids for task in Path(f"/proc/{pid}/task").iterdir()]
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


@asynccontextmanager
async def daemon(bench: Bench, name: str, configuration: dict[str, Any]) -> AsyncIterator[None]:
    path = bench.directory / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**configuration, "http": "", "log": {"level": "warning"}}))
    script = Path(sys.executable).with_name(name)
    with (bench.directory / f"{name}.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(script, "--config", path, stdout=log, stderr=log)
    bench.pids.append(process.pid)
    try:
        yield
    finally:
        process.terminate()
        await process.wait()


async def timed(work: Awaitable[object]) -> float:
    started = time.perf_counter()
    await work
    return time.perf_counter() - started


async def one_by_one(bench: Bench) -> None:
    bare, ours = [], []
    bare_off, ours_off = [], []
    for number in range(ROUNDS):
        bare.append(await timed(bench.bare_attach(number)))
        bare_off.append(await timed(bench.bare_detach(number)))
        ours.append(await timed(bench.attach(number)))
        ours_off.append(await timed(bench.detach(number)))
    for name, times, floors in (("attach", ours, bare), ("detach", ours_off, bare_off)):
        report.add(
            f"{name}_p50",
            value=statistics.median(times) * 1000,
            unit="ms",
            floor=statistics.median(floors) * 1000,
            goal={"of": "ratio", "max": 1.3},
        )


async def all_at_once(bench: Bench) -> None:
    async def every(act: Callable[[int], Awaitable[None]]) -> float:
        return await timed(asyncio.gather(*(act(number) for number in range(AT_ONCE))))

    floors, times, floors_off, times_off = [], [], [], []
    for _ in range(3):
        floors.append(await every(bench.bare_attach))
        floors_off.append(await every(bench.bare_detach))
        times.append(await every(bench.attach))
        times_off.append(await every(bench.detach))
    for name, ours, bare in (("attach", times, floors), ("detach", times_off, floors_off)):
        report.add(
            f"{name}_{AT_ONCE}_at_once",
            value=min(ours) * 1000,
            unit="ms",
            floor=min(bare) * 1000,
            goal={"of": "ratio", "max": 2.0},
        )


async def many(bench: Bench) -> None:
    await asyncio.gather(*(bench.attach(number) for number in range(MANY)))
    assert await bench.attached() == MANY
    await asyncio.sleep(1.0)
    before = bench.cpu_seconds()
    rounds = 5
    for _ in range(rounds):
        await bench.attached()
    report.add(
        "reconcile_250_cpu",
        value=(bench.cpu_seconds() - before) / rounds * 1000,
        unit="ms",
        floor=None,
        goal={"of": "value", "max": 300},
    )
    # Until the long beat has seen what was attached.
    await asyncio.sleep(SETTLED_SECONDS)
    before = bench.cpu_seconds()
    await asyncio.sleep(IDLE_SECONDS)
    report.add(
        "dpu_daemons_idle_250",
        value=(bench.cpu_seconds() - before) / IDLE_SECONDS * 100,
        unit="% of a core",
        floor=None,
        goal={"of": "value", "max": 0.3},
    )
    await bench.dpu.kill()
    started = time.perf_counter()
    await bench.dpu.start()
    up = time.perf_counter() - started
    for pause in itertools.repeat(0.1):
        if await back(bench) == MANY:
            break
        await asyncio.sleep(pause)
    report.add(
        "restore_250_after_spdk_restart",
        value=time.perf_counter() - started,
        unit="s",
        floor=up,
        goal={"of": "value", "max": 10},
    )


async def back(bench: Bench) -> int:
    """Controllers that the host can see again, asked of SPDK so that the daemons are left to their work."""
    subsystems = await bench.at_dpu.call("nvmf_get_subsystems")
    return sum(bool(one.get("namespaces")) and bool(one["listen_addresses"]) for one in subsystems)


def configurations(bench: Bench, authority: Authority) -> dict[str, dict[str, Any]]:
    directory = bench.directory
    issued = authority.issue(node="dpu-1", component="csi-node-dpu")
    functions = [{"virtual_functions": MANY + 10}]
    return {
        "opi-bridge": {
            "socket": str(directory / "bridge.sock"),
            "spdk": bench.dpu.address,
            "card": {"directory": str(directory / "functions"), "functions": functions},
        },
        "volume-attacher": {
            "socket": str(directory / "attacher.sock"),
            "bridge": f"unix:{directory / 'bridge.sock'}",
            "state_directory": str(directory / "state"),
            "host_nqn": HOST_NQN,
        },
        "csi-node-dpu": {
            "node_name": "dpu-1",
            "listen": "127.0.0.1:0",
            "advertise": "127.0.0.1:1",
            "tls": {"ca": str(issued.ca), "certificate": str(issued.certificate), "key": str(issued.key)},
            "kubeconfig": str(directory / "kubeconfig"),
            "attacher": f"unix:{directory / 'attacher.sock'}",
            "orphan_grace_seconds": 3600,
        },
    }


@asynccontextmanager
async def api_server(directory: Path) -> AsyncIterator[None]:
    command = [sys.executable, "-m", "lab.apiserver", "--kubeconfig", str(directory / "kubeconfig")]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    await process.stdout.readline()
    async with await KubeClient.connect(str(directory / "kubeconfig")) as kube:
        labels = {"dpu-offload.io/host-node": "host-1"}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "dpu-1", "labels": labels}}
        await kube.create(NODES, node)
    try:
        yield
    finally:
        process.terminate()
        await process.wait()


async def ready(bench: Bench) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                await bench.stub.Inventory(attacher_pb2.InventoryRequest())
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)
            else:
                return


async def run(directory: Path) -> None:
    bench = Bench(directory, free_port())
    authority = Authority(directory / "pki")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(bench.target)
        await stack.enter_async_context(bench.dpu)
        await stack.enter_async_context(api_server(directory))
        for name, configuration in configurations(bench, authority).items():
            await stack.enter_async_context(daemon(bench, name, configuration))
        channel = await stack.enter_async_context(
            dial(f"unix:{directory / 'attacher.sock'}", name="volume-attacher", deadline=60)
        )
        bench.stub = attacher_pb2_grpc.VolumeAttacherStub(channel)
        stack.push_async_callback(bench.at_target.close)
        stack.push_async_callback(bench.at_dpu.close)
        await ready(bench)
        await bench.at_target.call("nvmf_create_transport", {"trtype": "TCP"})
        await asyncio.gather(*(bench.serve(number) for number in range(MANY)))
        await one_by_one(bench)
        await all_at_once(bench)
        await many(bench)


def main() -> None:
    # Calls that come before a daemon listens are part of the start.
    logging.getLogger("foundation").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="attach-") as directory:
        asyncio.run(run(Path(directory)))


if __name__ == "__main__":
    main()
