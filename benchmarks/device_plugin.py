"""What the device plugin costs: discovery of 256 VFs, Allocate, idleness, and how soon a new kubelet hears of it."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc.aio
import msgspec

from benchmarks import report
from cni.device_plugin.config import DevicePluginConfig, Pool, Selector
from cni.device_plugin.inventory import Inventory
from cni.device_plugin.pools import Pools
from dpu_offload_stubs.kubelet.deviceplugin.v1beta1 import api_pb2, api_pb2_grpc
from foundation.pci import Sysfs
from lab.hardware.sysfs import NETWORK_CLASS, PciEntry, SysfsTree, write

PFS, VFS_EACH = 2, 128
RESOURCE = "dpu-offload.io/vf"
ALLOCATIONS = 400
IDLE_SECONDS = 10.0
START_SECONDS = 20.0
RESTARTS = 5
# What every discovery has to read of a function.
ATTRIBUTES = ("vendor", "device", "class", "numa_node")
LINKS = ("driver", "physfn", "iommu_group")


def lay_out(root: Path) -> list[str]:
    """Two PFs in switchdev mode with 128 VFs each, and all their representors; returns the VFs."""
    tree, vfs = SysfsTree(root), []
    for port in range(PFS):
        pf, switch = f"0000:{0x40 + port:02x}:00.0", f"b8cef6ffff0a1b2{port}"
        tree.add_function(PciEntry(pf, vendor="0x15b3", device="0x101d", class_code=NETWORK_CLASS, driver="mlx5_core"))
        addresses = [f"0000:{0x50 + port:02x}:{index >> 3:02x}.{index & 7}" for index in range(VFS_EACH)]
        for index, address in enumerate(addresses):
            tree.add_function(
                PciEntry(
                    address,
                    vendor="0x15b3",
                    device="0x101e",
                    class_code=NETWORK_CLASS,
                    driver="mlx5_core",
                    numa_node=port,
                    iommu_group=100 + port * VFS_EACH + index,
                )
            )
            tree.add_netdev(f"enp{port}npf{port}vf{index}", pci=pf, port_name=f"pf{port}vf{index}", switch_id=switch)
        tree.add_virtual_functions(pf, addresses)
        # VFs sit sixteen buses above their PF, one after another.
        write(tree.device(pf) / "sriov_offset", "4096")
        write(tree.device(pf) / "sriov_stride", "1")
        tree.add_netdev(f"enp{port}np{port}", pci=pf, port_name=f"p{port}", switch_id=switch)
        vfs += addresses
    return vfs


def cpu_milliseconds(work: Any, *, rounds: int = 5) -> float:
    """Least CPU time of several rounds: the others met a colder cache."""
    spent = []
    for _ in range(rounds):
        before = time.process_time()
        work()
        spent.append((time.process_time() - before) * 1000)
    return min(spent)


def bare_reads(root: Path) -> None:
    """The floor: each needed attribute read once, nothing made of it."""
    for address in os.listdir(root / "bus/pci/devices"):
        directory = f"{root}/bus/pci/devices/{address}"
        for name in ATTRIBUTES:
            with open(f"{directory}/{name}", "rb", buffering=0) as file:
                file.read(64)
        for name in LINKS:
            if os.path.lexists(f"{directory}/{name}"):
                os.readlink(f"{directory}/{name}")


def discovery(root: Path, vfs: list[str]) -> None:
    pools = Pools((Pool(name="vf", selectors=(Selector(),)),), domain="dpu-offload.io")
    inventory = Inventory(Sysfs(root))

    def discover() -> None:
        inventory.scan()
        found = pools.divide(inventory.candidates)[RESOURCE]
        assert [device.id for device in found] == sorted(vfs)
        assert all(device.healthy for device in found)

    floor = cpu_milliseconds(lambda: bare_reads(root))
    value = cpu_milliseconds(discover)
    report.add(
        "device_plugin.discovery_256_vfs", value=value, unit="ms CPU", floor=floor, goal={"of": "value", "max": 150}
    )
    value = cpu_milliseconds(lambda: inventory.refresh({vfs[0]}))
    report.add("device_plugin.refresh_one_vf", value=value, unit="ms CPU")


class Kubelet(api_pb2_grpc.RegistrationServicer):
    """Takes registrations, whose endpoints are queued."""

    def __init__(self, directory: Path) -> None:
        self.endpoints: asyncio.Queue[str] = asyncio.Queue()
        self._socket = directory / "kubelet.sock"
        self._server = grpc.aio.server()

    async def start(self) -> None:
        self._server = grpc.aio.server()
        api_pb2_grpc.add_RegistrationServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix:{self._socket}")
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)
        self._socket.unlink(missing_ok=True)

    async def Register(
        self, request: api_pb2.RegisterRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> api_pb2.Empty:
        self.endpoints.put_nowait(request.endpoint)
        return api_pb2.Empty()


class Floor(api_pb2_grpc.DevicePluginServicer):
    """The same answers with no work behind them: what gRPC costs by itself."""

    async def Allocate(self, request: api_pb2.AllocateRequest, context: Any) -> api_pb2.AllocateResponse:
        return api_pb2.AllocateResponse(container_responses=[api_pb2.ContainerAllocateResponse(envs={"A": "b"})])

    async def GetDevicePluginOptions(self, request: Any, context: Any) -> api_pb2.DevicePluginOptions:
        return api_pb2.DevicePluginOptions()

    async def ListAndWatch(self, request: Any, context: Any) -> Any:
        yield api_pb2.ListAndWatchResponse()

    async def GetPreferredAllocation(self, request: Any, context: Any) -> api_pb2.PreferredAllocationResponse:
        return api_pb2.PreferredAllocationResponse()

    async def PreStartContainer(self, request: Any, context: Any) -> api_pb2.PreStartContainerResponse:
        return api_pb2.PreStartContainerResponse()


async def serve_floor(socket: str) -> None:
    server = grpc.aio.server()
    api_pb2_grpc.add_DevicePluginServicer_to_server(Floor(), server)
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    await server.wait_for_termination()


async def allocations(target: str, vfs: list[str]) -> float:
    """Median milliseconds of an Allocate, one after another."""
    spent = []
    async with grpc.aio.insecure_channel(target) as channel:
        plugin = api_pb2_grpc.DevicePluginStub(channel)
        for number in range(ALLOCATIONS):
            request = api_pb2.AllocateRequest()
            request.container_requests.add(devices_ids=[vfs[number % len(vfs)]])
            before = time.perf_counter()
            await plugin.Allocate(request, timeout=5, wait_for_ready=True)
            spent.append((time.perf_counter() - before) * 1000)
    return statistics.median(spent[ALLOCATIONS // 4 :])


def cpu_of(process: int) -> float:
    """CPU seconds that all threads of a process have spent, by the scheduler's clock (ticks are too coarse)."""
    threads = Path(f"/proc/{process}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


async def daemon(root: Path, work: Path, vfs: list[str]) -> None:
    directory = work / "dp"
    directory.mkdir()
    config = DevicePluginConfig(
        pools=(Pool(name="vf", selectors=(Selector(),)),),
        plugins_directory=str(directory),
        device_info_directory=str(work / "devinfo"),
        sysfs=str(root),
    )
    (work / "config.yaml").write_bytes(msgspec.json.encode(config))
    kubelet = Kubelet(directory)
    await kubelet.start()
    command = [sys.executable, "-m", "cni.device_plugin.app", "--config", str(work / "config.yaml")]
    process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.DEVNULL)
    command = [sys.executable, "-m", "benchmarks.device_plugin", "floor", str(work / "floor")]
    bare = await asyncio.create_subprocess_exec(*command)
    try:
        endpoint = await asyncio.wait_for(kubelet.endpoints.get(), START_SECONDS)
        target = f"unix:{directory}/{endpoint}"
        async with grpc.aio.insecure_channel(target) as channel:
            watching: Any = api_pb2_grpc.DevicePluginStub(channel).ListAndWatch(api_pb2.Empty())
            devices = (await watching.read()).devices
            assert len(devices) == len(vfs)
            floor = await allocations(f"unix:{work}/floor", vfs)
            value = await allocations(target, vfs)
            report.add(
                "device_plugin.allocate_p50", value=value, unit="ms", floor=floor, goal={"of": "value", "max": 2}
            )
            await asyncio.sleep(1)
            before = cpu_of(process.pid)
            await asyncio.sleep(IDLE_SECONDS)
            share = (cpu_of(process.pid) - before) / IDLE_SECONDS * 100
            report.add("device_plugin.idle", value=share, unit="% of a core", goal={"of": "value", "max": 0.1})
            watching.cancel()
        await restarts(kubelet)
    finally:
        for started in (process, bare):
            started.terminate()
            await asyncio.wait_for(started.wait(), 10)
        await kubelet.stop()


async def restarts(kubelet: Kubelet) -> None:
    """Longest wait of several new kubelets for the registration."""
    waits = []
    for _ in range(RESTARTS):
        await kubelet.stop()
        while not kubelet.endpoints.empty():
            kubelet.endpoints.get_nowait()
        before = time.perf_counter()
        await kubelet.start()
        await asyncio.wait_for(kubelet.endpoints.get(), START_SECONDS)
        waits.append((time.perf_counter() - before) * 1000)
    report.add("device_plugin.registered_again", value=max(waits), unit="ms", goal={"of": "value", "max": 1000})


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="dp-") as scratch:
        root = Path(scratch) / "sys"
        vfs = lay_out(root)
        discovery(root, vfs)
        asyncio.run(daemon(root, Path(scratch), vfs))


if __name__ == "__main__":
    if sys.argv[1:2] == ["floor"]:
        asyncio.run(serve_floor(sys.argv[2]))
    else:
        main()
