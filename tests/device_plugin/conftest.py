"""Machines laid out as sysfs trees, with a kubelet that speaks the device plugin API."""

import asyncio
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from dpu_offload_stubs.kubelet.deviceplugin.v1beta1 import api_pb2, api_pb2_grpc
from foundation.pci import Sysfs

WAIT_SECONDS = 30.0
# A DNS subdomain, a slash, a qualified name's second half.
EXTENDED_RESOURCE = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


class MachineTree:
    """A node's sysfs, /dev and /proc below one directory; functions are made and changed as the kernel would."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sysfs_root, self.devfs, self.procfs = root / "sys", root / "dev", root / "proc"
        for directory in ("bus/pci/devices", "bus/pci/drivers", "class/net", "class/nvme", "block"):
            (self.sysfs_root / directory).mkdir(parents=True)
        self.devfs.mkdir()
        (self.procfs / "net").mkdir(parents=True)

    @property
    def sysfs(self) -> Sysfs:
        return Sysfs(self.sysfs_root)

    def device(self, address: str) -> Path:
        return self.sysfs_root / "devices/pci0000:00" / address

    def function(
        self,
        address: str,
        *,
        vendor: str = "15b3",
        device: str = "101e",
        class_code: str = "020000",
        driver: str = "mlx5_core",
        numa: int = 0,
        group: int | None = None,
        resettable: bool = True,
    ) -> Path:
        directory = self.device(address)
        directory.mkdir(parents=True)
        attributes = {"vendor": f"0x{vendor}", "device": f"0x{device}", "class": f"0x{class_code}", "numa_node": numa}
        for name, value in attributes.items():
            (directory / name).write_text(f"{value}\n")
        (directory / "driver_override").write_text("(null)\n")
        if resettable:
            (directory / "reset").write_text("")
        self.link(self.sysfs_root / "bus/pci/devices" / address, directory)
        if group is not None:
            members = self.sysfs_root / "kernel/iommu_groups" / str(group)
            self.link(members / "devices" / address, directory)
            self.link(directory / "iommu_group", members)
        self.bind(address, driver)
        return directory

    def bind(self, address: str, driver: str) -> None:
        """Bind to another driver; "" leaves the function without."""
        directory = self.device(address)
        (directory / "driver").unlink(missing_ok=True)
        if driver:
            place = self.sysfs_root / "bus/pci/drivers" / driver
            place.mkdir(exist_ok=True)
            self.link(directory / "driver", place)

    def pf(self, address: str, *, vfs: list[str], total: int = 8, **function: Any) -> None:
        """A physical function with VFs at these addresses; the VFs are as the keyword arguments say."""
        self.function(address, **{**function, "group": None})
        (self.device(address) / "sriov_totalvfs").write_text(f"{total}\n")
        (self.device(address) / "sriov_numvfs").write_text(f"{len(vfs)}\n")
        for index, vf in enumerate(vfs):
            group = function.get("group")
            self.function(vf, **{**function, "group": None if group is None else group + index})
            self.link(self.device(vf) / "physfn", self.device(address))
            self.link(self.device(address) / f"virtfn{index}", self.device(vf))

    def netdev(
        self, name: str, address: str, *, operstate: str = "up", port: str = "", switch: str = "", kind: int = 1
    ) -> None:
        directory = self.device(address) / "net" / name
        directory.mkdir(parents=True)
        attributes = {"operstate": operstate, "type": kind, "mtu": 1500, "address": "02:00:00:00:00:01", "ifindex": 5}
        for attribute, value in attributes.items():
            (directory / attribute).write_text(f"{value}\n")
        if port:
            (directory / "phys_port_name").write_text(f"{port}\n")
        if switch:
            (directory / "phys_switch_id").write_text(f"{switch}\n")
        self.link(directory / "device", self.device(address))
        self.link(self.sysfs_root / "class/net" / name, directory)

    def set_operstate(self, name: str, state: str) -> None:
        (self.sysfs_root / "class/net" / name / "operstate").write_text(f"{state}\n")

    def remove_netdev(self, name: str) -> None:
        entry = self.sysfs_root / "class/net" / name
        shutil.rmtree(entry.resolve())
        entry.unlink()

    def remove(self, address: str) -> None:
        """The function leaves the bus."""
        directory = self.device(address)
        if (directory / "iommu_group").exists():
            ((directory / "iommu_group").resolve() / "devices" / address).unlink()
        (self.sysfs_root / "bus/pci/devices" / address).unlink()
        shutil.rmtree(directory)

    def nvme(self, name: str, address: str, *, state: str = "live") -> None:
        directory = self.device(address) / "nvme" / name
        directory.mkdir(parents=True)
        for attribute, value in {"state": state, "transport": "pcie", "subsysnqn": "nqn.x:1"}.items():
            (directory / attribute).write_text(f"{value}\n")
        self.link(self.sysfs_root / "class/nvme" / name, directory)

    @staticmethod
    def link(path: Path, target: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(os.path.relpath(target, path.parent))


class FakeKubelet(api_pb2_grpc.RegistrationServicer):
    """Kubelet's device manager: clears the directory when it starts, dials each plugin back, keeps its list.

    As a real kubelet 1.36 does (pkg/kubelet/cm/devicemanager/plugin/v1beta1): it answers Register when it has dialled
    back and asked for the options, then opens the stream; it forgets a plugin whose stream ends, and knows plugins only
    by what they register in this life of it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.registered: list[api_pb2.RegisterRequest] = []
        self.devices: dict[str, dict[str, api_pb2.Device]] = {}
        self.lists: dict[str, list[int]] = {}
        self.refuse: list[grpc.StatusCode] = []
        self.hang = 0
        self.ignore = 0
        self._changed = asyncio.Condition()
        self._server: grpc.aio.Server | None = None
        self._streams: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        for path in self.directory.iterdir():
            if path.name != "kubelet_internal_checkpoint":
                path.unlink()
        self._server = grpc.aio.server()
        api_pb2_grpc.add_RegistrationServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix:{self.directory}/kubelet.sock")
        await self._server.start()

    async def stop(self) -> None:
        """As a killed kubelet: connections end, nobody says goodbye."""
        for stream in self._streams:
            stream.cancel()
        await asyncio.gather(*self._streams, return_exceptions=True)
        self._streams.clear()
        if self._server is not None:
            await self._server.stop(None)
            self._server = None
        self.registered, self.devices = [], {}

    async def Register(
        self, request: api_pb2.RegisterRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> api_pb2.Empty:
        if self.hang:
            self.hang -= 1
            await asyncio.Event().wait()
        if self.refuse:
            await context.abort(self.refuse.pop(), "refused by the test")
        if request.version != "v1beta1":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"version {request.version} is not supported")
        if not EXTENDED_RESOURCE.fullmatch(request.resource_name) or "kubernetes.io/" in request.resource_name:
            await context.abort(grpc.StatusCode.UNKNOWN, f"the ResourceName {request.resource_name!r} is invalid")
        channel = self.channel(request.endpoint)
        options = await api_pb2_grpc.DevicePluginStub(channel).GetDevicePluginOptions(
            api_pb2.Empty(), timeout=10, wait_for_ready=True
        )
        assert options == request.options
        self.registered.append(request)
        if self.ignore:
            self.ignore -= 1
            await channel.close()
        else:
            task = asyncio.create_task(self._watch(request.resource_name, channel))
            self._streams.add(task)
        return api_pb2.Empty()

    async def _watch(self, resource: str, channel: grpc.aio.Channel) -> None:
        try:
            async with channel:
                async for answer in api_pb2_grpc.DevicePluginStub(channel).ListAndWatch(api_pb2.Empty()):
                    async with self._changed:
                        self.devices[resource] = {device.ID: device for device in answer.devices}
                        self.lists.setdefault(resource, []).append(len(answer.devices))
                        self._changed.notify_all()
        except grpc.aio.AioRpcError:
            pass
        async with self._changed:
            self.devices.pop(resource, None)
            self._changed.notify_all()

    def channel(self, endpoint: str) -> grpc.aio.Channel:
        options = [("grpc.use_local_subchannel_pool", 1)]
        return grpc.aio.insecure_channel(f"unix:{self.directory}/{endpoint}", options=options)

    def plugin(self, resource: str) -> grpc.aio.Channel:
        """A second connection to the plugin of a resource."""
        endpoint = next(request.endpoint for request in reversed(self.registered) if request.resource_name == resource)
        return self.channel(endpoint)

    def health(self, resource: str) -> dict[str, str]:
        return {name: device.health for name, device in self.devices.get(resource, {}).items()}

    async def until(self, resource: str, health: dict[str, str] | None, *, seconds: float = WAIT_SECONDS) -> None:
        """Wait for exactly these devices; None: the resource is unknown."""

        def reached() -> bool:
            return resource not in self.devices if health is None else self.health(resource) == health

        try:
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(lambda: reached() and (health is None or resource in self.devices))
        except TimeoutError:
            pytest.fail(f"kubelet has {self.health(resource)} of {resource}, expected {health}")


@pytest.fixture(scope="session")
def machine_type() -> type[MachineTree]:
    """For tests that need several machines."""
    return MachineTree


@pytest.fixture
def machine(tmp_path: Path) -> MachineTree:
    return MachineTree(tmp_path / "machine")


@pytest.fixture
async def kubelet() -> AsyncIterator[FakeKubelet]:
    # As short as the real one: a socket's path has room for 107 bytes only.
    with tempfile.TemporaryDirectory(prefix="kubelet-device-plugins-") as directory:
        kubelet = FakeKubelet(Path(directory))
        await kubelet.start()
        yield kubelet
        await kubelet.stop()
