"""A DPU for tests: two SPDK stand-ins as target and as DPU, opi-bridge and volume-attacher in this process."""

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio

import opi_bridge.app
import volume_attacher.app
from dpu_offload_stubs.attacher.v1 import attacher_pb2, attacher_pb2_grpc
from foundation.daemon.running import Daemon
from foundation.daemon.serving import dial
from foundation.spdk.client import SpdkClient
from lab.spdk.process import SpdkProcess
from opi_bridge.config import CardConfig, OpiBridgeConfig, PhysicalFunction
from volume_attacher.config import VolumeAttacherConfig

HOST_NQN = "nqn.2026-11.io.dpu-offload:host.dpu-1"
QUICK = ("--attach-ms", "5", "--beat-ms", "0.5", "--dhchap-ms", "20")


@dataclass
class Volume:
    """A volume at the target: a malloc disk in a subsystem of its own."""

    id: str
    nqn: str
    uuid: str
    ports: tuple[int, ...]
    addresses: tuple[str, ...] = ("127.0.0.1",)

    def request(self, **more: Any) -> attacher_pb2.AttachRequest:
        paths = [
            attacher_pb2.Path(transport=attacher_pb2.TRANSPORT_TCP, address=address, port=port)
            for address, port in zip(self.addresses, self.ports, strict=True)
        ]
        remote = attacher_pb2.RemoteVolume(subsystem_nqn=self.nqn, paths=paths, namespace_uuid=self.uuid)
        return attacher_pb2.AttachRequest(volume_id=self.id, remote=remote, **more)


@dataclass
class DpuRig:
    """Its parts can be stopped, killed and started one by one."""

    directory: Path
    functions: int = 8
    hotplug: int = 0
    beat: float = 0.2
    bridge_options: dict[str, Any] = field(default_factory=dict)
    attacher_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.target = SpdkProcess(self.directory, "target", mode="target", arguments=QUICK)
        self.dpu = SpdkProcess(self.directory, "dpu", arguments=QUICK)
        self.at_target = SpdkClient(self.target.address)
        self.at_dpu = SpdkClient(self.dpu.address)
        self.bridge: Daemon | None = None
        self.attacher: Daemon | None = None
        self.channel: grpc.aio.Channel | None = None

    @property
    def sockets(self) -> Path:
        return self.directory / "f"

    @property
    def bridge_socket(self) -> Path:
        return self.directory / "bridge.sock"

    @property
    def attacher_socket(self) -> Path:
        return self.directory / "attacher.sock"

    @property
    def stub(self) -> Any:
        """Of the attacher."""
        return attacher_pb2_grpc.VolumeAttacherStub(self.channel)

    async def start(self) -> None:
        await asyncio.gather(self.target.start(), self.dpu.start())
        await self.at_target.call("nvmf_create_transport", {"trtype": "TCP"})
        await self.start_bridge()
        await self.start_attacher()

    async def start_bridge(self) -> None:
        ranges = [PhysicalFunction(physical_function=0, virtual_functions=self.functions, vuid="TEST{pf}.{vf}")]
        if self.hotplug:
            ranges.append(PhysicalFunction(physical_function=1, virtual_functions=self.hotplug, hotplug=True))
        config = OpiBridgeConfig(
            socket=str(self.bridge_socket),
            spdk=self.dpu.address,
            keys=str(self.directory / "keys"),
            path_beat_seconds=self.beat,
            state_beat_seconds=1.0,
            card=CardConfig(directory=str(self.sockets), functions=ranges),
            http="",
            **self.bridge_options,
        )
        self.bridge = Daemon("opi-bridge")
        await opi_bridge.app.start(config, self.bridge)

    async def start_attacher(self) -> None:
        config = VolumeAttacherConfig(
            socket=str(self.attacher_socket),
            bridge=f"unix:{self.bridge_socket}",
            state_directory=str(self.directory / "state"),
            host_nqn=HOST_NQN,
            http="",
            **self.attacher_options,
        )
        self.attacher = Daemon("volume-attacher")
        await volume_attacher.app.start(config, self.attacher)
        if self.channel is None:
            self.channel = dial(f"unix:{self.attacher_socket}", name="volume-attacher", deadline=30)
        await self.ready()

    async def ready(self) -> None:
        """Wait until the attacher has read the card."""

        async def read() -> bool:
            try:
                await self.stub.Inventory(attacher_pb2.InventoryRequest())
            except grpc.aio.AioRpcError:
                return False
            return True

        await eventually(read, "the attacher has read the card")

    async def stop(self) -> None:
        for daemon in (self.attacher, self.bridge):
            if daemon is not None:
                await daemon.aclose()
        if self.channel is not None:
            await self.channel.close()
        for client in (self.at_target, self.at_dpu):
            await client.close()
        await asyncio.gather(self.target.stop(), self.dpu.stop())

    async def restart_dpu(self) -> None:
        await self.dpu.kill()
        await self.dpu.start()

    # --- at the target

    async def volume(self, key: str, *, ports: tuple[int, ...] = (), mib: int = 8, admit: bool = True) -> Volume:
        ports = ports or (free_port(),)
        volume = Volume(
            id=f"main:{key}",
            nqn=f"nqn.2026-11.io.dpu-offload:volume.main.{key}",
            uuid=str(uuid.uuid5(uuid.NAMESPACE_URL, key)),
            ports=ports,
            addresses=("127.0.0.1",) * len(ports),
        )
        await self.serve(volume, mib=mib, admit=admit)
        return volume

    async def serve(self, volume: Volume, *, mib: int = 8, admit: bool = True) -> None:
        """Make the volume at the target, as after the target's restart."""
        call = self.at_target.call
        disk = {"name": volume.id, "num_blocks": mib * 2048, "block_size": 512, "uuid": volume.uuid}
        await call("bdev_malloc_create", disk)
        await call("nvmf_create_subsystem", {"nqn": volume.nqn, "max_namespaces": 1})
        if admit:
            await call("nvmf_subsystem_add_host", {"nqn": volume.nqn, "host": HOST_NQN})
        namespace = {
            "bdev_name": volume.id,
            "nsid": 1,
            "uuid": volume.uuid,
            "nguid": volume.uuid.replace("-", "").upper(),
        }
        await call("nvmf_subsystem_add_ns", {"nqn": volume.nqn, "namespace": namespace})
        for port in volume.ports:
            await self.listen(volume, port)

    async def listen(self, volume: Volume, port: int) -> None:
        address = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": str(port)}
        await self.at_target.call("nvmf_subsystem_add_listener", {"nqn": volume.nqn, "listen_address": address})

    async def unlisten(self, volume: Volume, port: int) -> None:
        address = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": str(port)}
        await self.at_target.call("nvmf_subsystem_remove_listener", {"nqn": volume.nqn, "listen_address": address})

    # --- what the DPU and its host have

    async def leftovers(self) -> dict[str, Any]:
        """Everything on the DPU that an attachment is made of; empty when nothing is left."""
        bdevs, subsystems, controllers, keys = await asyncio.gather(
            self.at_dpu.call("bdev_get_bdevs"),
            self.at_dpu.call("nvmf_get_subsystems"),
            self.at_dpu.call("bdev_nvme_get_controllers"),
            self.at_dpu.call("keyring_get_keys"),
        )
        found = {
            "bdevs": [one["name"] for one in bdevs],
            "subsystems": [one["nqn"] for one in subsystems if one["subtype"] != "Discovery"],
            "controllers": [one["name"] for one in controllers],
            "keys": [one["name"] for one in keys],
            "crypto keys": [one["name"] for one in await self.at_dpu.call("accel_crypto_keys_get")],
            "records": [path.name for path in (self.directory / "state" / "attachments").glob("*")],
            "sockets": [str(path) for path in self.sockets.glob("*/cntrl")],
        }
        return {kind: names for kind, names in found.items() if names}

    def guest(self, attachment: attacher_pb2.Attachment) -> "Guest":
        function = attachment.function
        return Guest(self.sockets / f"pf{function.physical_function}vf{function.virtual_function}" / "cntrl")


class Guest:
    """The host behind a function, as far as the stand-in tells it."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self.controller: dict[str, Any] = {}
        self.namespaces: dict[int, dict[str, Any]] = {}
        self.gone = asyncio.Event()
        self._news = asyncio.Event()

    @contextlib.asynccontextmanager
    async def __call__(self) -> AsyncIterator["Guest"]:
        reader, writer = await asyncio.open_unix_connection(str(self._socket))
        task = asyncio.create_task(self._read(reader))
        try:
            yield self
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            event = json.loads(line)
            match event["event"]:
                case "controller":
                    self.controller = event
                case "namespace_add":
                    self.namespaces[event["nsid"]] = event
                case "namespace_remove":
                    self.namespaces.pop(event["nsid"], None)
                case "namespace_resize":
                    self.namespaces[event["nsid"]]["size"] = event["size"]
            self._news.set()
        self.gone.set()
        self._news.set()

    async def until(self, condition: Callable[["Guest"], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition(self):
                self._news.clear()
                await self._news.wait()


async def eventually(condition: Callable[[], Any], what: str, *, seconds: float = 15.0) -> None:
    """Wait until `condition` holds; for state of other processes, which send nothing."""
    try:
        async with asyncio.timeout(seconds):
            while not await condition():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"it did not come true within {seconds:g} s that {what}") from None


_next_port = 20000 + (uuid.uuid4().int % 20000)


def free_port() -> int:
    """A port nobody in this run was given before; the stand-ins bind it themselves."""
    global _next_port
    _next_port += 1
    return _next_port
