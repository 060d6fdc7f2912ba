"""A DPU for tests: two SPDK stand-ins as target and as DPU, opi-bridge and volume-attacher in this process."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio

import opi_bridge.app
import volume_attacher.app
from csi import identity
from dpu_offload_stubs.attacher.v1 import attacher_pb2, attacher_pb2_grpc
from foundation.daemon.running import Daemon
from foundation.daemon.serving import dial
from foundation.spdk.client import SpdkClient
from lab.ports import free_port
from opi_bridge.config import CardConfig, OpiBridgeConfig, PhysicalFunction, TimeoutsConfig
from tests.dpu_rig import holding
from tests.dpu_rig.guest import Guest
from volume_attacher.config import VolumeAttacherConfig

HOST_NQN = "nqn.2026-11.io.dpu-offload:host.dpu-1"
# A second of SPDK's reconnecting, in milliseconds.
SECOND_MS = 20
QUICK = ("--attach-ms", "5", "--beat-ms", "0.5", "--dhchap-ms", "20", "--second-ms", str(SECOND_MS))


@dataclass
class Volume:
    """A volume at the target: a disk in a subsystem of its own, of memory or, with `file`, of that file."""

    id: str
    nqn: str
    uuid: str
    ports: tuple[int, ...]
    addresses: tuple[str, ...] = ("127.0.0.1",)
    file: str = ""

    @property
    def data(self) -> bytes:
        """What a volume with a file begins with."""
        return self.uuid.encode()

    def request(self, **more: Any) -> attacher_pb2.AttachRequest:
        paths = [
            attacher_pb2.Path(transport=attacher_pb2.TRANSPORT_TCP, address=address, port=port)
            for address, port in zip(self.addresses, self.ports, strict=True)
        ]
        remote = attacher_pb2.RemoteVolume(subsystem_nqn=self.nqn, paths=paths, namespace_uuid=self.uuid)
        return attacher_pb2.AttachRequest(volume_id=self.id, remote=remote, **more)


class Standing:
    """A stand-in for SPDK that several tests share; killed and started by one of them, it is fresh for the next."""

    def __init__(self, directory: Path, name: str, *, mode: str, arguments: Sequence[str] = QUICK) -> None:
        self.socket = directory / f"{name}.sock"
        self.faults = directory / f"{name}.faults"
        self._log = directory / f"{name}.log"
        self._vhost = directory / f"{name}.vhost"
        self._mode = mode
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"unix:{self.socket}"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    async def start(self) -> None:
        """Returns when it answers."""
        if not self.running:
            self._vhost.mkdir(exist_ok=True)
            command = [sys.executable, "-m", "lab.spdk", "-r", str(self.socket), "--mode", self._mode]
            command += ["-S", str(self._vhost), "--faults", str(self.faults), *self._arguments]
            self._spawn(command)
        async with SpdkClient(self.address) as client:
            await client.connect(deadline=20)
            await client.call("framework_wait_init")

    def _spawn(self, command: Sequence[str]) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    async def kill(self) -> None:
        self.end()

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Pair:
    """Target and DPU."""

    def __init__(self, directory: Path, *, arguments: Sequence[str] = QUICK) -> None:
        self.target = Standing(directory, "target", mode="target", arguments=arguments)
        self.dpu = Standing(directory, "dpu", mode="dpu", arguments=arguments)

    def end(self) -> None:
        self.target.end()
        self.dpu.end()


async def wipe(client: SpdkClient) -> None:
    """Take everything out of a stand-in, in an order that harms nothing."""

    async def each(method: str, parameter: str, names: Iterable[str]) -> None:
        await asyncio.gather(*(client.call(method, {parameter: name}) for name in names))

    subsystems = await client.call("nvmf_get_subsystems")
    await each("nvmf_delete_subsystem", "nqn", (s["nqn"] for s in subsystems if s["subtype"] != "Discovery"))
    vhost = await client.call("vhost_get_controllers")
    await each("vhost_delete_controller", "ctrlr", (one["ctrlr"] for one in vhost))
    bdevs = await client.call("bdev_get_bdevs")

    def of(product: str) -> list[str]:
        return [bdev["name"] for bdev in bdevs if bdev["product_name"] == product]

    await each("bdev_crypto_delete", "name", of("crypto"))
    keys = await client.call("accel_crypto_keys_get")
    await each("accel_crypto_key_destroy", "key_name", (key["name"] for key in keys))
    controllers = await client.call("bdev_nvme_get_controllers")
    await each("bdev_nvme_detach_controller", "name", (one["name"] for one in controllers))
    keys = await client.call("keyring_get_keys")
    await each("keyring_file_remove_key", "name", (key["name"] for key in keys))
    await each("bdev_null_delete", "name", of("Null disk"))
    await each("bdev_malloc_delete", "name", of("Malloc disk"))
    await each("bdev_aio_delete", "name", of("AIO disk"))


@dataclass
class DpuRig:
    """Its parts can be stopped, killed and started one by one."""

    directory: Path
    pair: Pair
    functions: int = 8
    hotplug: int = 0
    beat: float = 0.2
    with_attacher: bool = True
    bridge_options: dict[str, Any] = field(default_factory=dict)
    attacher_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.target, self.dpu = self.pair.target, self.pair.dpu
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
    def records(self) -> Path:
        return self.directory / "state" / "attachments.jsonl"

    @property
    def stub(self) -> Any:
        """Of the attacher."""
        return attacher_pb2_grpc.VolumeAttacherStub(self.channel)

    async def start(self) -> None:
        await self.start_spdks()
        await self.start_daemons()

    async def start_spdks(self) -> None:
        await asyncio.gather(self.target.start(), self.dpu.start())
        await self.open_target()

    async def start_daemons(self) -> None:
        await self.start_bridge()
        if self.with_attacher:
            await self.start_attacher()

    async def open_target(self) -> None:
        """What a storage node does once after its SPDK's start."""
        if not await self.at_target.call("nvmf_get_transports"):
            await self.at_target.call("nvmf_create_transport", {"trtype": "TCP"})

    async def start_bridge(self) -> None:
        self.bridge = Daemon("opi-bridge")
        await opi_bridge.app.start(self.bridge_config(), self.bridge)

    def bridge_config(self) -> OpiBridgeConfig:
        ranges = [PhysicalFunction(physical_function=0, virtual_functions=self.functions, vuid="TEST{pf}.{vf}")]
        if self.hotplug:
            ranges.append(PhysicalFunction(physical_function=1, virtual_functions=self.hotplug, hotplug=True))
        return OpiBridgeConfig(
            socket=str(self.bridge_socket),
            spdk=self.dpu.address,
            keys=str(self.directory / "keys"),
            path_beat_seconds=self.beat,
            state_beat_seconds=1.0,
            card=CardConfig(directory=str(self.sockets), functions=ranges),
            timeouts=TimeoutsConfig(reconnect_delay=1),
            http="",
            **self.bridge_options,
        )

    def attacher_config(self) -> VolumeAttacherConfig:
        return VolumeAttacherConfig(
            socket=str(self.attacher_socket),
            bridge=f"unix:{self.bridge_socket}",
            state_directory=str(self.directory / "state"),
            host_nqn=HOST_NQN,
            http="",
            **self.attacher_options,
        )

    async def start_attacher(self) -> None:
        self.attacher = Daemon("volume-attacher")
        await volume_attacher.app.start(self.attacher_config(), self.attacher)
        self.dial()
        await self.ready()

    def dial(self) -> None:
        """Open the channel to the attacher, whoever runs it."""
        if self.channel is None:
            self.channel = dial(f"unix:{self.attacher_socket}", name="volume-attacher", deadline=30)

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
        for process, client in ((self.target, self.at_target), (self.dpu, self.at_dpu)):
            if process.running:
                await wipe(client)
            await client.close()

    async def fault(self, **wish: Any) -> None:
        """Have the DPU's stand-in make trouble, e.g. do="delay", method=..., seconds=..., times=1."""
        await holding.fault(self.dpu.faults, **wish)

    def held(self, method: str) -> AbstractAsyncContextManager[Awaitable[object]]:
        """Keep back the DPU's reply to the next call of `method`, until the block ends; yields the call's coming."""
        return holding.held(self.dpu.faults, method)

    async def restart_dpu(self) -> None:
        await self.dpu.kill()
        await self.dpu.start()

    # --- at the target

    async def volume(
        self, key: str, *, ports: tuple[int, ...] = (), mib: int = 8, admit: bool = True, disk: str = ""
    ) -> Volume:
        ports = ports or (free_port(),)
        volume = Volume(
            id=f"main:{key}",
            nqn=identity.subsystem_nqn(f"main:{key}"),
            uuid=identity.namespace_uuid(f"main:{key}"),
            ports=ports,
            addresses=("127.0.0.1",) * len(ports),
        )
        await self.serve(volume, mib=mib, admit=admit, disk=disk)
        return volume

    async def file_volume(self, key: str, *, port: int = 0) -> Volume:
        """A volume with data that outlives its target."""
        name = f"main:{key}"
        volume = Volume(
            id=name,
            nqn=identity.subsystem_nqn(name),
            uuid=identity.namespace_uuid(name),
            ports=(port or free_port(),),
            file=str(self.directory / f"{key}.img"),
        )
        with open(volume.file, "wb") as file:
            file.write(volume.data)
            file.truncate(1 << 20)
        await self.serve(volume)
        return volume

    async def serve(self, volume: Volume, *, mib: int = 8, admit: bool = True, disk: str = "") -> None:
        """Make the volume at the target, as after the target's restart."""
        call = self.at_target.call
        if volume.file:
            disk = volume.id
            made = {"name": disk, "filename": volume.file, "block_size": 512, "uuid": volume.uuid}
            await call("bdev_aio_create", made)
        elif not disk:
            disk = volume.id
            made = {"name": disk, "num_blocks": mib * 2048, "block_size": 512, "uuid": volume.uuid}
            await call("bdev_malloc_create", made)
        await call("nvmf_create_subsystem", {"nqn": volume.nqn, "max_namespaces": 1})
        if admit:
            await call("nvmf_subsystem_add_host", {"nqn": volume.nqn, "host": HOST_NQN})
        namespace = {
            "bdev_name": disk,
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
            "records": _recorded(self.records),
            "sockets": [str(path) for path in self.sockets.glob("*/cntrl")],
        }
        return {kind: names for kind, names in found.items() if names}

    def guest(self, attachment: attacher_pb2.Attachment) -> Guest:
        function = attachment.function
        return Guest(self.sockets / f"pf{function.physical_function}vf{function.virtual_function}" / "cntrl")


def _recorded(path: Path) -> list[str]:
    """The volumes that the attacher has written down."""
    known: dict[str, None] = {}
    for line in path.read_bytes().splitlines() if path.exists() else []:
        change = json.loads(line)
        if "record" in change:
            known[change["record"]["specification"]["volume_id"]] = None
        known.pop(change.get("dropped", ""), None)
    return list(known)


async def eventually(condition: Callable[[], Any], what: str, *, seconds: float = 30.0, pause: float = 0.02) -> None:
    """Wait until `condition` holds; for state of other processes, which send nothing."""
    try:
        async with asyncio.timeout(seconds):
            while not await condition():
                await asyncio.sleep(pause)
    except TimeoutError:
        raise AssertionError(f"it did not come true within {seconds:g} s that {what}") from None
