"""The whole plugin against kubelet's protocol: registration, the list, allocation, restarts of both sides."""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from cni.device_plugin.allocation import Allocator
from cni.device_plugin.app import start
from cni.device_plugin.config import DevicePluginConfig, Pool, Selector
from cni.device_plugin.device_info import DeviceInfoFiles
from cni.device_plugin.errors import BadDirectory
from cni.device_plugin.inventory import Inventory
from cni.device_plugin.kubelet import Patience, refuse_long_paths
from cni.device_plugin.plugin import DevicePlugin
from cni.device_plugin.pools import Pools
from dpu_offload_stubs.kubelet.deviceplugin.v1beta1 import api_pb2, api_pb2_grpc
from foundation.daemon.running import Daemon
from foundation.daemon.work import Backoff
from foundation.pci.uevents import Uevents

VF = "dpu-offload.io/vf"
PF, VF0, VF1 = "0000:03:00.0", "0000:03:00.2", "0000:03:00.3"
BOTH = {VF0: "Healthy", VF1: "Healthy"}
UEVENT_HEADER = struct.Struct("=IHHII")
SECONDS = 30.0
QUICK = Patience(register=SECONDS, dial_back=SECONDS, farewell=SECONDS, backoff=Backoff(0.02, 0.1))

pytestmark = pytest.mark.root

Run = Callable[..., Any]


@pytest.fixture
def card(machine: Any) -> Any:
    machine.pf(PF, vfs=[VF0, VF1], group=40)
    machine.netdev("ens1f0np0", PF)
    return machine


@asynccontextmanager
async def running(machine: Any, kubelet: Any, *pools: Pool, patience: Patience = QUICK) -> AsyncIterator[DevicePlugin]:
    allocator = Allocator(
        machine.sysfs,
        devfs=machine.devfs,
        device_info=DeviceInfoFiles(machine.root / "devinfo"),
        cdi_directory=machine.root / "cdi",
    )
    plugin = DevicePlugin(
        Pools(pools or (Pool(name="vf", selectors=(Selector(),)),), domain="dpu-offload.io"),
        Inventory(machine.sysfs, procfs=machine.procfs),
        allocator,
        directory=kubelet.directory,
        resync_seconds=300,
    )
    with Uevents() as events:
        async with Daemon("sriov-device-plugin", shutdown_seconds=5) as daemon:
            await plugin.start(daemon, events, patience=patience)
            plugin.daemon = daemon  # type: ignore[attr-defined]  # for assertions about its health
            yield plugin


def uevent(action: str, address: str, *, below: str = "", subsystem: str = "pci") -> None:
    """As the kernel broadcasts it."""
    devpath = f"/devices/pci0000:00/{address}{below}"
    lines = [f"{action}@{devpath}", f"ACTION={action}", f"DEVPATH={devpath}", f"SUBSYSTEM={subsystem}", ""]
    body = "\0".join(lines).encode()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 15) as sender:
        sender.sendto(UEVENT_HEADER.pack(UEVENT_HEADER.size + len(body), 0x10, 1, 1, 0) + body, (0, 0))


async def allocate(kubelet: Any, resource: str, *devices: str) -> api_pb2.ContainerAllocateResponse:
    request = api_pb2.AllocateRequest(container_requests=[api_pb2.ContainerAllocateRequest(devices_ids=devices)])
    async with kubelet.plugin(resource) as channel:
        answer = await api_pb2_grpc.DevicePluginStub(channel).Allocate(request, timeout=SECONDS)
    return answer.container_responses[0]


async def test_registered_with_devices_and_numa(card: Any, kubelet: Any) -> None:
    async with running(card, kubelet) as plugin:
        await kubelet.until(VF, BOTH)
        request = kubelet.registered[0]
        assert (request.version, request.resource_name) == ("v1beta1", VF)
        assert request.options.get_preferred_allocation_available
        assert not request.options.pre_start_required
        assert [node.ID for node in kubelet.devices[VF][VF0].topology.nodes] == [0]
        assert plugin.daemon.health.checks[f"kubelet:{VF}"].ok  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("numa", "topology", "told"),
    [("0", True, [0]), ("1", True, [1]), ("-1", True, []), ("", True, []), ("1", False, [])],
)
async def test_topology_hints(card: Any, kubelet: Any, numa: str, topology: bool, told: list[int]) -> None:
    """No hint for a function near no node in particular, on a kernel without NUMA, or where the pool says so."""
    (card.device(VF0) / "numa_node").write_text(numa)
    if not numa:
        (card.device(VF0) / "numa_node").unlink()
    async with running(card, kubelet, Pool(name="vf", selectors=(Selector(),), topology=topology)):
        await kubelet.until(VF, BOTH)
        assert [node.ID for node in kubelet.devices[VF][VF0].topology.nodes] == told


async def test_a_watcher_that_breaks_off_disturbs_nobody(card: Any, kubelet: Any) -> None:
    async with running(card, kubelet):
        await kubelet.until(VF, BOTH)
        channel = kubelet.plugin(VF)
        stream = api_pb2_grpc.DevicePluginStub(channel).ListAndWatch(api_pb2.Empty(), timeout=SECONDS)
        await stream.read()
        await channel.close()
        card.bind(VF1, "")
        uevent("unbind", VF1)
        await kubelet.until(VF, {VF0: "Healthy", VF1: "Unhealthy"})
        assert len(kubelet.registered) == 1


async def test_zero_devices_on_shutdown_and_no_socket_left(card: Any, kubelet: Any) -> None:
    async with running(card, kubelet):
        await kubelet.until(VF, BOTH)
    assert kubelet.lists[VF] == [2, 0]
    assert {path.name for path in kubelet.directory.iterdir()} == {"kubelet.sock"}


async def test_a_second_stream_has_the_list_too(card: Any, kubelet: Any) -> None:
    async with running(card, kubelet):
        await kubelet.until(VF, BOTH)
        async with kubelet.plugin(VF) as channel:
            stream = api_pb2_grpc.DevicePluginStub(channel).ListAndWatch(api_pb2.Empty(), timeout=SECONDS)
            first = await stream.read()
            assert {device.ID for device in first.devices} == {VF0, VF1}
            card.bind(VF1, "")
            uevent("unbind", VF1)
            second = await stream.read()
            assert {device.ID: device.health for device in second.devices} == {VF0: "Healthy", VF1: "Unhealthy"}
            await kubelet.until(VF, {VF0: "Healthy", VF1: "Unhealthy"})
            stream.cancel()
        card.bind(VF1, "mlx5_core")
        uevent("bind", VF1)
        await kubelet.until(VF, BOTH)


@pytest.mark.parametrize(
    ("failure", "patience"),
    [
        ({"refuse": [grpc.StatusCode.UNKNOWN, grpc.StatusCode.INVALID_ARGUMENT]}, {}),
        ({"hang": 1}, {"register": 1.0}),
        ({"ignore": 1}, {"dial_back": 0.3}),
    ],
)
async def test_registration_fails_then_recovers(
    card: Any, kubelet: Any, failure: dict[str, Any], patience: dict[str, float]
) -> None:
    for name, value in failure.items():
        setattr(kubelet, name, value)
    async with running(card, kubelet, patience=replace(QUICK, **patience)):
        await kubelet.until(VF, BOTH)
    assert not any(getattr(kubelet, name) for name in failure), "the failure was met"


async def test_kubelet_comes_later(card: Any, kubelet: Any) -> None:
    await kubelet.stop()
    (kubelet.directory / "kubelet.sock").unlink(missing_ok=True)
    async with running(card, kubelet) as plugin:
        check = plugin.daemon.health.checks.get(f"kubelet:{VF}")  # type: ignore[attr-defined]
        assert check is None or "kubelet is not there" in check.reason
        await kubelet.start()
        await kubelet.until(VF, BOTH)


async def test_kubelet_restarts_are_answered(card: Any, kubelet: Any) -> None:
    async with running(card, kubelet, patience=Patience()):
        await kubelet.until(VF, BOTH)
        for _ in range(2):
            await kubelet.stop()
            await kubelet.start()
            await kubelet.until(VF, BOTH)


async def test_the_directory_is_made_anew(card: Any, kubelet: Any) -> None:
    async with running(card, kubelet):
        await kubelet.until(VF, BOTH)
        await kubelet.stop()
        for path in kubelet.directory.iterdir():
            path.unlink()
        kubelet.directory.rmdir()
        await asyncio.sleep(0.05)
        kubelet.directory.mkdir()
        await kubelet.start()
        await kubelet.until(VF, BOTH)


async def test_resources_with_long_names_keep_apart(card: Any, kubelet: Any) -> None:
    name = "a" * 62
    pools = (
        Pool(name=f"{name}1", selectors=(Selector(addresses=(VF0,)),)),
        Pool(name=f"{name}2", selectors=(Selector(addresses=(VF1,)),)),
    )
    async with running(card, kubelet, *pools):
        await kubelet.until(f"dpu-offload.io/{name}1", {VF0: "Healthy"})
        await kubelet.until(f"dpu-offload.io/{name}2", {VF1: "Healthy"})


async def test_resources_that_differ_in_a_dot_keep_apart(card: Any, kubelet: Any) -> None:
    pools = [
        Pool(name=name, selectors=(Selector(addresses=(address,)),)) for name, address in (("vf.a", VF0), ("vf_a", VF1))
    ]
    async with running(card, kubelet, *pools) as plugin:
        await kubelet.until("dpu-offload.io/vf.a", {VF0: "Healthy"})
        await kubelet.until("dpu-offload.io/vf_a", {VF1: "Healthy"})
        assert not plugin.daemon.failure  # type: ignore[attr-defined]  # see `running`


async def test_a_start_leaves_the_device_information_of_other_pools(card: Any, kubelet: Any) -> None:
    files = card.root / "devinfo"
    files.mkdir()
    kept = [f"dpu-offload.io-vf-{VF0}-device.json", f"dpu-offload.io-vf-fast-{VF1}-device.json", "other.json"]
    for name in (*kept, "dpu-offload.io-vf-0000:99:00.1-device.json"):
        (files / name).write_text("{}")
    pools = [
        Pool(name=name, selectors=(Selector(addresses=(address,)),))
        for name, address in (("vf", VF0), ("vf-fast", VF1))
    ]
    async with running(card, kubelet, *pools):
        assert sorted(path.name for path in files.iterdir()) == sorted(kept)


def test_a_directory_whose_sockets_would_have_too_long_names_is_refused() -> None:
    refuse_long_paths(Path(f"/{'d' * 65}"), [VF])
    with pytest.raises(BadDirectory, match=r"plugins_directory /d* is too long: dpu-offload_io_vf-.* makes 117 bytes"):
        refuse_long_paths(Path(f"/{'d' * 75}"), [VF])


async def test_own_socket_removed_behind_our_back(card: Any, kubelet: Any) -> None:
    async with running(card, kubelet):
        await kubelet.until(VF, BOTH)
        (kubelet.directory / kubelet.registered[0].endpoint).unlink()
        async with asyncio.timeout(SECONDS):
            while len(kubelet.registered) < 2:
                await asyncio.sleep(0.01)
        await kubelet.until(VF, BOTH)
        assert (kubelet.directory / kubelet.registered[1].endpoint).is_socket()


async def test_leftover_socket_of_a_killed_plugin_is_removed(card: Any, kubelet: Any) -> None:
    leftover = kubelet.directory / "dpu-offload_io_vf-c5a83519.00000000.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(leftover))
    async with running(card, kubelet):
        await kubelet.until(VF, BOTH)
        assert not leftover.exists()


async def test_allocate_a_network_device(card: Any, kubelet: Any) -> None:
    async with running(card, kubelet):
        await kubelet.until(VF, BOTH)
        answer = await allocate(kubelet, VF, VF1, VF0)
        assert answer.envs["PCIDEVICE_DPU_OFFLOAD_IO_VF"] == f"{VF1},{VF0}"
        assert answer.envs["PCIDEVICE_DPU-OFFLOAD_IO_VF"] == f"{VF1},{VF0}"
        assert list(answer.devices) == []
        information = json.loads((card.root / f"devinfo/dpu-offload.io-vf-{VF0}-device.json").read_text())
        assert information == {"type": "pci", "version": "1.1.0", "pci": {"pci-address": VF0, "pf-pci-address": PF}}


@pytest.mark.parametrize(
    ("devices", "code", "says"),
    [
        (["0000:99:00.0"], grpc.StatusCode.NOT_FOUND, "no device of dpu-offload.io/vf"),
        ([], grpc.StatusCode.INVALID_ARGUMENT, "no device at all"),
        ([VF0, VF0], grpc.StatusCode.INVALID_ARGUMENT, "a device is asked for more than once"),
    ],
)
async def test_allocate_nonsense(card: Any, kubelet: Any, devices: list[str], code: grpc.StatusCode, says: str) -> None:
    async with running(card, kubelet):
        await kubelet.until(VF, BOTH)
        with pytest.raises(grpc.aio.AioRpcError, match=says) as caught:
            await allocate(kubelet, VF, *devices)
        assert caught.value.code() is code
        assert not (card.root / "devinfo").exists()


async def test_two_containers_do_not_get_one_device(card: Any, kubelet: Any) -> None:
    one = api_pb2.ContainerAllocateRequest(devices_ids=[VF0])
    async with running(card, kubelet):
        await kubelet.until(VF, BOTH)
        async with kubelet.plugin(VF) as channel:
            with pytest.raises(grpc.aio.AioRpcError, match="a device is asked for more than once"):
                await api_pb2_grpc.DevicePluginStub(channel).Allocate(
                    api_pb2.AllocateRequest(container_requests=[one, one]), timeout=SECONDS
                )
    assert not list(card.root.glob("devinfo/*"))


async def test_a_device_vanishes_between_list_and_allocate(card: Any, kubelet: Any) -> None:
    async with running(card, kubelet):
        await kubelet.until(VF, BOTH)
        card.remove(VF1)
        with pytest.raises(grpc.aio.AioRpcError, match="has vanished") as caught:
            await allocate(kubelet, VF, VF0, VF1)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        card.bind(VF0, "vfio-pci")
        with pytest.raises(grpc.aio.AioRpcError, match="bound to vfio-pci since a moment ago"):
            await allocate(kubelet, VF, VF0)
        uevent("remove", VF1)
        uevent("bind", VF0)
        await kubelet.until(VF, {VF0: "Unhealthy"})


async def test_new_functions_appear(card: Any, kubelet: Any) -> None:
    async with running(card, kubelet):
        await kubelet.until(VF, BOTH)
        fresh = "0000:03:00.4"
        card.function(fresh)
        card.link(card.device(fresh) / "physfn", card.device(PF))
        card.link(card.device(PF) / "virtfn2", card.device(fresh))
        uevent("add", fresh)
        await kubelet.until(VF, {**BOTH, fresh: "Healthy"})


async def test_a_vm_gets_its_group_as_numbered_now(card: Any, kubelet: Any) -> None:
    card.bind(VF0, "vfio-pci")
    vm = Pool(name="vm", selectors=(Selector(drivers=("vfio-pci",)),), use="vfio")
    async with running(card, kubelet, vm):
        await kubelet.until("dpu-offload.io/vm", {VF0: "Healthy"})
        assert kubelet.registered[0].options.pre_start_required
        answer = await allocate(kubelet, "dpu-offload.io/vm", VF0)
        assert [(node.container_path, node.permissions) for node in answer.devices] == [
            ("/dev/vfio/vfio", "rw"),
            ("/dev/vfio/40", "rw"),
        ]
        assert answer.devices[1].host_path == str(card.devfs / "vfio/40")
        assert answer.envs["PCI_RESOURCE_DPU-OFFLOAD_IO_VM"] == VF0
        # The group gets another number behind our back, as with a hot reset of the bus.
        (card.device(VF0) / "iommu_group").unlink()
        card.link(card.device(VF0) / "iommu_group", card.sysfs_root / "kernel/iommu_groups/77")
        assert [node.container_path for node in (await allocate(kubelet, "dpu-offload.io/vm", VF0)).devices] == [
            "/dev/vfio/vfio",
            "/dev/vfio/77",
        ]
        (card.device(VF0) / "iommu_group").unlink()
        with pytest.raises(grpc.aio.AioRpcError, match="has no VFIO group: driver vfio-pci, IOMMU group -1"):
            await allocate(kubelet, "dpu-offload.io/vm", VF0)


async def test_a_function_is_reset_before_a_vm_starts(card: Any, kubelet: Any) -> None:
    card.bind(VF0, "vfio-pci")
    vm = Pool(name="vm", selectors=(Selector(drivers=("vfio-pci",)),), use="vfio")
    async with running(card, kubelet, vm):
        await kubelet.until("dpu-offload.io/vm", {VF0: "Healthy"})
        async with kubelet.plugin("dpu-offload.io/vm") as channel:
            plugin = api_pb2_grpc.DevicePluginStub(channel)
            await plugin.PreStartContainer(api_pb2.PreStartContainerRequest(devices_ids=[VF0]), timeout=SECONDS)
            assert (card.device(VF0) / "reset").read_text() == "1"
            (card.device(VF0) / "reset").unlink()
            (card.device(VF0) / "reset").mkdir()
            with pytest.raises(grpc.aio.AioRpcError, match="cannot be reset") as caught:
                await plugin.PreStartContainer(api_pb2.PreStartContainerRequest(devices_ids=[VF0]), timeout=SECONDS)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_cdi_names_instead_of_nodes(card: Any, kubelet: Any) -> None:
    card.bind(VF0, "vfio-pci")
    card.bind(VF1, "vfio-pci")
    vm = Pool(name="vm.fast", selectors=(Selector(),), use="vfio", cdi=True)
    async with running(card, kubelet, vm):
        await kubelet.until("dpu-offload.io/vm.fast", BOTH)
        answer = await allocate(kubelet, "dpu-offload.io/vm.fast", VF1)
        assert [device.name for device in answer.cdi_devices] == [f"dpu-offload.io/vm_fast={VF1}"]
        assert list(answer.devices) == []
        spec = json.loads((card.root / "cdi/dpu-offload.io-vm_fast.json").read_text())
        assert spec["kind"] == "dpu-offload.io/vm_fast"
        edits = {device["name"]: device["containerEdits"]["deviceNodes"] for device in spec["devices"]}
        assert [node["path"] for node in edits[VF1]] == ["/dev/vfio/vfio", "/dev/vfio/41"]
        assert set(edits) == {VF0, VF1}


async def test_containers_of_before_find_their_cdi_names_after_a_reboot(card: Any, kubelet: Any) -> None:
    """Kubelet keeps what Allocate answered: it asks again neither after a reboot nor for a container's restart."""
    card.bind(VF0, "vfio-pci")
    vm = Pool(name="vm", selectors=(Selector(),), use="vfio", cdi=True)
    async with running(card, kubelet, vm):
        path = card.root / "cdi/dpu-offload.io-vm.json"
        assert [device["name"] for device in json.loads(path.read_text())["devices"]] == [VF0]
        card.bind(VF1, "vfio-pci")
        uevent("bind", VF1)
        await kubelet.until("dpu-offload.io/vm", BOTH)
        assert [device["name"] for device in json.loads(path.read_text())["devices"]] == [VF0, VF1]


async def test_files_that_cannot_be_written_are_told_in_words(card: Any, kubelet: Any) -> None:
    (card.root / "devinfo").write_text("a file where the directory should be")
    async with running(card, kubelet):
        await kubelet.until(VF, BOTH)
        with pytest.raises(grpc.aio.AioRpcError, match=f"no device information of {VF0} for Multus: .*Not a directory"):
            await allocate(kubelet, VF, VF0)


async def test_preferred_allocation_over_the_wire(card: Any, kubelet: Any) -> None:
    async with running(card, kubelet):
        await kubelet.until(VF, BOTH)
        request = api_pb2.PreferredAllocationRequest()
        request.container_requests.add(available_deviceIDs=[VF1, VF0], allocation_size=1)
        request.container_requests.add(available_deviceIDs=[VF1, VF0], allocation_size=1)
        async with kubelet.plugin(VF) as channel:
            answer = await api_pb2_grpc.DevicePluginStub(channel).GetPreferredAllocation(request, timeout=SECONDS)
            assert [list(one.deviceIDs) for one in answer.container_responses] == [[VF0], [VF1]]
            request.container_requests[0].allocation_size = 3
            with pytest.raises(grpc.aio.AioRpcError, match="3 devices are asked for"):
                await api_pb2_grpc.DevicePluginStub(channel).GetPreferredAllocation(request, timeout=SECONDS)


async def test_a_representor_goes_and_comes(machine: Any, kubelet: Any) -> None:
    switch = "1f2e3d4c5b6a7988"
    machine.pf(PF, vfs=[VF0, VF1])
    machine.netdev("ens1f0np0", PF, port="p0", switch=switch)
    machine.netdev("ens1f0npf0vf0", PF, port="pf0vf0", switch=switch)
    machine.netdev("ens1f0npf0vf1", PF, port="pf0vf1", switch=switch)
    async with running(machine, kubelet) as plugin:
        await kubelet.until(VF, BOTH)
        machine.remove_netdev("ens1f0npf0vf1")
        uevent("remove", PF, below="/net/ens1f0npf0vf1", subsystem="net")
        await kubelet.until(VF, {VF0: "Healthy", VF1: "Unhealthy"})
        assert plugin.devices[VF][1].reason == "representor pf0vf1 is missing, though ens1f0np0 is in switchdev mode"
        machine.netdev("ens1f0npf0vf1", PF, port="pf0vf1", switch=switch)
        uevent("add", PF, below="/net/ens1f0npf0vf1", subsystem="net")
        await kubelet.until(VF, BOTH)


async def test_the_daemon_itself(card: Any, kubelet: Any) -> None:
    """The program's own start, from configuration."""
    config = DevicePluginConfig(
        pools=(Pool(name="vf", selectors=(Selector(),)),),
        plugins_directory=str(kubelet.directory),
        device_info_directory="",
        sysfs=str(card.sysfs_root),
        devfs=str(card.devfs),
        procfs=str(card.procfs),
    )
    async with Daemon("sriov-device-plugin") as daemon:
        await start(config, daemon)
        await kubelet.until(VF, BOTH)
    assert list(Path(kubelet.directory).glob("dpu-offload*")) == []
