"""A DPU for tests: answers the attacher contract over mTLS, and lays out what its host's kernel would show.

It stands in for csi-node-dpu, volume-attacher, opi-bridge and the card together. Disks are loop devices over the very
files in which the target's stand-in keeps its volumes. Like a real DPU it is let in only by the target's access list,
and notices when a volume has grown.
"""

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from csi import identity
from dpu_offload_stubs.attacher.v1 import attacher_pb2, attacher_pb2_grpc
from foundation.daemon.serving import ErrorTable, TlsFiles, listen_tls, make_server
from foundation.spdk.client import SpdkClient
from foundation.spdk.errors import SpdkClientError
from lab.hardware import loops
from lab.hardware.sysfs import NVME_CLASS, PciEntry, SysfsTree
from lab.hardware.uevents import UeventSender
from tests.csi_rig.target import LVSTORE, Target

PHYSICAL = "0000:21:00.0"
FUNCTIONS = 8
Context = grpc.aio.ServicerContext[Any, Any]


class Refused(Exception):
    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


def function_address(number: int) -> str:
    return f"0000:21:{number >> 3:02x}.{number & 7}"


@dataclass
class Attached:
    request: attacher_pb2.AttachRequest
    number: int
    loop: Path
    size: int
    device: tuple[int, int] = (0, 0)
    file: Path = Path()


@dataclass
class Faults:
    """What goes wrong next: seconds or an event before an answer, and codes with which calls are refused, in order."""

    delay: float = 0.0
    gate: asyncio.Event | None = None
    refuse: list[grpc.StatusCode] = field(default_factory=list)
    lag: float = 0.0


class StandInDpu(attacher_pb2_grpc.VolumeAttacherServicer):
    def __init__(self, *, node: str, host: str, directory: Path, target: Target) -> None:
        self.node = node
        self.host = host
        self.sysfs = directory / "sys"
        self.devices = directory / "dev"
        self.faults = Faults()
        self.attached: dict[str, Attached] = {}
        self.calls: list[str] = []
        self.requests: list[attacher_pb2.AttachRequest] = []
        self._tree = SysfsTree(self.sysfs)
        self._volumes = target.file.with_name(f"{target.file.name}.lvs")
        self._real_target = bool(target.binary)
        self._target = SpdkClient(target.address)
        self._uevents: UeventSender | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._server: grpc.aio.Server | None = None
        self.port = 0
        self.devices.mkdir(parents=True, exist_ok=True)
        self._tree.add_function(PciEntry(PHYSICAL, vendor="0x15b3", device="0x6001", class_code=NVME_CLASS))
        addresses = [function_address(number) for number in range(1, FUNCTIONS + 1)]
        for number, address in enumerate(addresses, 1):
            entry = PciEntry(address, vendor="0x15b3", device="0x6001", class_code=NVME_CLASS, iommu_group=40 + number)
            self._tree.add_function(entry)
        self._tree.add_virtual_functions(PHYSICAL, addresses)

    async def start(self, tls: TlsFiles, *, port: int = 0) -> None:
        self._uevents = UeventSender()
        self._server = make_server(
            errors=ErrorTable({Refused: lambda error: error.code}), service="stand-in DPU", callers={"csi-controller"}
        )
        attacher_pb2_grpc.add_VolumeAttacherServicer_to_server(self, self._server)
        self.port = listen_tls(self._server, f"127.0.0.1:{port}", tls)
        await self._server.start()
        self._watcher = asyncio.create_task(self._watch_sizes())

    async def stop(self) -> None:
        """It dies; what it emulated stays on the host as it was."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        if self._server is not None:
            await self._server.stop(0)
            self._server = None
        if self._uevents is not None:
            self._uevents.close()
            self._uevents = None
        await self._target.close()

    async def clear(self) -> None:
        """Takes everything down, as a card without power does."""
        for volume_id in list(self.attached):
            await self._remove(volume_id)

    @property
    def annotation(self) -> dict[str, object]:
        return {
            "endpoint": f"127.0.0.1:{self.port}",
            "serverName": f"{self.node}.csi-node-dpu.dpu-offload.io",
            "hostNqn": identity.host_nqn(self.node),
            "hostId": identity.host_id(self.node),
            "functions": {"total": FUNCTIONS, "free": FUNCTIONS - len(self.attached)},
            "transports": ["tcp"],
        }

    def set_state(self, volume_id: str, state: str) -> None:
        """The state of the volume's controller as the host's kernel sees it."""
        number = self.attached[volume_id].number
        self._tree.set_nvme_state(number, pci=function_address(number), state=state)

    def show_again(self, address: str) -> None:
        """The NVMe driver has been bound to the function anew."""
        for volume_id, attached in self.attached.items():
            if function_address(attached.number) == address:
                self._show(volume_id, attached)

    # --- the contract -----------------------------------------------------------------------------------------------

    async def Attach(self, request: attacher_pb2.AttachRequest, context: Context) -> attacher_pb2.Attachment:
        await self._misbehave("Attach")
        self.requests.append(request)
        present = self.attached.get(request.volume_id)
        if present is None:
            used = {each.number for each in self.attached.values()}
            number = next((each for each in range(1, FUNCTIONS + 1) if each not in used), 0)
            if not number:
                raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, f"all {FUNCTIONS} functions are in use")
            await self._add(request, number)
        elif present.request.read_only != request.read_only:
            raise Refused(grpc.StatusCode.ALREADY_EXISTS, "attached with another read_only")
        return self._answer(request.volume_id)

    async def Detach(self, request: attacher_pb2.DetachRequest, context: Context) -> attacher_pb2.DetachResponse:
        # csi-controller has a DPU let go of what is not there before it lets it in: no work, so no fault.
        if request.volume_id in self.attached:
            await self._misbehave("Detach")
            await self._remove(request.volume_id)
        return attacher_pb2.DetachResponse()

    async def List(self, request: attacher_pb2.ListRequest, context: Context) -> attacher_pb2.ListResponse:
        await self._misbehave("List")
        return attacher_pb2.ListResponse(attachments=[self._answer(each) for each in self.attached])

    async def Get(self, request: attacher_pb2.GetRequest, context: Context) -> attacher_pb2.Attachment:
        if request.volume_id not in self.attached:
            raise Refused(grpc.StatusCode.NOT_FOUND, f"{request.volume_id} is not attached")
        return self._answer(request.volume_id)

    async def Inventory(
        self, request: attacher_pb2.InventoryRequest, context: Context
    ) -> attacher_pb2.InventoryResponse:
        return attacher_pb2.InventoryResponse(
            host_nqn=identity.host_nqn(self.node), functions_total=FUNCTIONS, card="stand-in"
        )

    def Watch(self, request: attacher_pb2.WatchRequest, context: Context) -> AsyncIterator[attacher_pb2.WatchEvent]:
        raise Refused(grpc.StatusCode.UNIMPLEMENTED, "nobody watches a stand-in")

    # --- inner ------------------------------------------------------------------------------------------------------

    async def _misbehave(self, call: str) -> None:
        self.calls.append(call)
        if self.faults.delay:
            await asyncio.sleep(self.faults.delay)
        if self.faults.gate is not None:
            await self.faults.gate.wait()
        if self.faults.refuse:
            raise Refused(self.faults.refuse.pop(0), "told to refuse")

    def _nqn(self, volume_id: str) -> str:
        return f"nqn.2026-11.io.dpu-offload:emulated.{identity.hashed(volume_id)}"

    def _answer(self, volume_id: str) -> attacher_pb2.Attachment:
        attached = self.attached[volume_id]
        return attacher_pb2.Attachment(
            volume_id=volume_id,
            state=attacher_pb2.ATTACHMENT_STATE_ATTACHED,
            function=attacher_pb2.Function(physical_function=0, virtual_function=attached.number),
            subsystem_nqn=self._nqn(volume_id),
            nsid=1,
            namespace_uuid=attached.request.remote.namespace_uuid,
            size_bytes=attached.size,
        )

    async def _add(self, request: attacher_pb2.AttachRequest, number: int) -> None:
        volume_id = request.volume_id
        # Taken before the first await, as a real card's inventory is.
        attached = self.attached[volume_id] = Attached(request, number, Path(), request.remote.size_bytes)
        try:
            (subsystem,) = await self._target.call("nvmf_get_subsystems", {"nqn": request.remote.subsystem_nqn})
            if identity.host_nqn(self.node) not in [host["nqn"] for host in subsystem["hosts"]]:
                raise Refused(grpc.StatusCode.UNAVAILABLE, "the target does not let this DPU in")
            bdev = await self._bdev(volume_id)
        except (SpdkClientError, Refused) as error:
            del self.attached[volume_id]
            raise Refused(grpc.StatusCode.UNAVAILABLE, f"cannot reach the target: {error}") from error
        attached.size = bdev["block_size"] * bdev["num_blocks"]
        attached.file = self._volumes / f"{bdev['uuid']}.img"
        if self._real_target and not attached.file.exists():
            # A real target's volumes are no files: the host gets a disk beside them, of the same size and life.
            attached.file.parent.mkdir(exist_ok=True)
            attached.file.touch()
            os.truncate(attached.file, attached.size)
        attached.loop = await loops.attach(attached.file, size=attached.size, read_only=request.read_only)
        attached.device = loops.device_number(attached.loop)
        if self.faults.lag:
            asyncio.get_running_loop().call_later(self.faults.lag, self._show, volume_id, attached)
        else:
            self._show(volume_id, attached)

    def _show(self, volume_id: str, attached: Attached) -> None:
        number, address = attached.number, function_address(attached.number)
        uuid = attached.request.remote.namespace_uuid
        self._tree.add_nvme_controller(
            number, pci=address, nqn=self._nqn(volume_id), serial="S", model="M", firmware="1", cntlid=1
        )
        node = self.devices / f"nvme{number}n1"
        node.unlink(missing_ok=True)
        os.mknod(node, 0o600 | stat.S_IFBLK, os.makedev(*attached.device))
        self._tree.add_nvme_namespace(
            number,
            1,
            pci=address,
            nsid=1,
            uuid=uuid,
            nguid=uuid,
            size=attached.size,
            device=attached.device,
        )
        self._tell("add", number)

    async def _remove(self, volume_id: str) -> None:
        attached = self.attached.pop(volume_id, None)
        if attached is None:
            return
        number, address = attached.number, function_address(attached.number)
        self._tree.remove_nvme_namespace(number, 1, pci=address, device=attached.device)
        self._tree.remove_nvme_controller(number, pci=address)
        (self.devices / f"nvme{number}n1").unlink(missing_ok=True)
        self._tell("remove", number)
        await loops.detach(attached.loop)

    def _tell(self, action: str, number: int) -> None:
        if self._uevents is not None:
            self._uevents.send(action, f"/devices/virtual/nvme-subsystem/nvme-subsys{number}/nvme{number}n1", "block")

    async def _bdev(self, volume_id: str) -> dict[str, Any]:
        lvol = volume_id.rpartition(".")[2]
        found: list[dict[str, Any]] = await self._target.call("bdev_get_bdevs", {"name": f"{LVSTORE}/{lvol}"})
        return found[0]

    async def _watch_sizes(self) -> None:
        while True:
            await asyncio.sleep(0.05)
            for volume_id, attached in list(self.attached.items()):
                # The target may be away, and the volume be detached meanwhile.
                with contextlib.suppress(SpdkClientError, OSError):
                    bdev = await self._bdev(volume_id)
                    size = bdev["block_size"] * bdev["num_blocks"]
                    if size > attached.size and self.attached.get(volume_id) is attached:
                        await loops.resize(attached.loop, size=size)
                        attached.size = size
                        self._tree.set_nvme_size(attached.number, 1, size=size)
                        self._tell("change", attached.number)
