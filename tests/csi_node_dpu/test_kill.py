"""SIGKILL of each daemon alone, and of all, at each step of Attach and Detach: it ends as Kubernetes wants it."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from benchmarks import report
from dpu_offload_stubs.attacher.v1 import attacher_pb2 as pb
from foundation.kube.resources import PERSISTENT_VOLUMES, VOLUME_ATTACHMENTS
from tests.csi_node_dpu.conftest import NodeDpuRig
from tests.dpu_rig.processes import DaemonProcesses
from tests.dpu_rig.rig import eventually

# What SPDK is asked for, in this order or side by side: a kill at each is a kill at each step.
ATTACH = (
    "bdev_null_create",
    "nvmf_create_subsystem",
    "bdev_nvme_attach_controller",
    "nvmf_subsystem_add_ns",
    "nvmf_subsystem_allow_any_host",
    "nvmf_subsystem_add_listener",
)
DETACH = (
    "nvmf_subsystem_remove_ns",
    "nvmf_subsystem_remove_listener",
    "nvmf_delete_subsystem",
    "bdev_nvme_detach_controller",
    "bdev_null_delete",
)
BRIDGE, ATTACHER, NODE_DPU = "opi_bridge.app", "volume_attacher.app", "csi.node_dpu.app"
VICTIMS = {
    "opi-bridge": (BRIDGE,),
    "volume-attacher": (ATTACHER,),
    "csi-node-dpu": (NODE_DPU,),
    "all three": (BRIDGE, ATTACHER, NODE_DPU),
}
# The codes after which external-attacher calls again, since work may still be going on.
RETRY = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)


class Killing:
    """The three daemons, of which `victims` are killed while SPDK has a call of a given method in hand."""

    def __init__(self, rig: NodeDpuRig, walk: str, victims: tuple[str, ...]) -> None:
        configs = {
            BRIDGE: rig.dpu.bridge_config(),
            ATTACHER: rig.dpu.attacher_config(),
            NODE_DPU: rig.config(),
        }
        self._rig = rig
        self._walk = walk
        self._victims = victims
        self._points = self._clean = 0
        self._daemons = DaemonProcesses(configs, rig.directory)

    def start(self) -> None:
        for module in (BRIDGE, ATTACHER, NODE_DPU):
            self._daemons.start(module)

    def end(self) -> None:
        self._daemons.end()

    async def during(self, method: str, call: Callable[[], Awaitable[object]]) -> None:
        """Let `call` run until SPDK has carried out a `method` whose reply is not seen; kill there, and start again."""
        self._count(points=1)
        in_hand = asyncio.Event()

        async def until_in_hand() -> None:
            # Daemons that were just started may say at first that the next one does not answer yet.
            while not in_hand.is_set():
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await call()
                await asyncio.sleep(0.05)

        running = asyncio.ensure_future(until_in_hand())
        async with self._rig.dpu.held(method) as came:
            await came
            in_hand.set()
            for module in self._victims:
                self._daemons.kill(module)
            for module in self._victims:
                self._daemons.start(module)
        await running

    def survived(self) -> None:
        self._count(clean=1)

    def _count(self, *, points: int = 0, clean: int = 0) -> None:
        self._points += points
        self._clean += clean
        report.merge("faults.json", {self._walk: {"points": self._points, "clean": self._clean}})


@pytest.mark.timeout(240)
@pytest.mark.parametrize("victims", VICTIMS)
async def test_a_volume_comes_and_goes_through_a_kill_at_each_step(bare: NodeDpuRig, victims: str) -> None:
    killing = Killing(bare, f"dpu attach and detach, SIGKILL of {victims}", VICTIMS[victims])
    bare.dpu.dial()
    try:
        killing.start()
        await bare.dpu.ready()
        async with bare.dial() as channel:
            stub = bare.stub(channel)
            for number, method in enumerate(ATTACH):
                undo = DETACH[number] if number < len(DETACH) else ""
                await _walk(bare, stub, killing, f"v{number}", method, undo)
    finally:
        killing.end()


async def _walk(rig: NodeDpuRig, stub: Any, killing: Killing, name: str, do: str, undo: str) -> None:
    volume = await rig.dpu.volume(name)
    await rig.persistent_volume(volume, name)
    await rig.attachment(name, name, attached=False)
    # The first call also waits until everything serves.
    await _again(lambda: stub.Inventory(pb.InventoryRequest()))
    await killing.during(do, lambda: stub.Attach(volume.request()))
    attached = await _again(lambda: stub.Attach(volume.request()))
    assert attached.state == pb.ATTACHMENT_STATE_ATTACHED
    async with rig.dpu.guest(attached)() as guest:
        await guest.until(lambda g: 1 in g.namespaces)
        assert guest.namespaces[1]["uuid"] == volume.uuid
    killing.survived()
    await rig.confirm(name)
    detach = pb.DetachRequest(volume_id=volume.id)
    if undo:
        # Nobody calls again: what is written down, or that Kubernetes wants it no more, ends it.
        await killing.during(undo, lambda: stub.Detach(detach))
        await rig.kube.delete(VOLUME_ATTACHMENTS, name)
        await _nothing_left(rig, undo)
        killing.survived()
    else:
        await _again(lambda: stub.Detach(detach))
        await rig.kube.delete(VOLUME_ATTACHMENTS, name)
        await _nothing_left(rig, "no kill")
    await rig.kube.delete(PERSISTENT_VOLUMES, name)


async def _again(call: Callable[[], Awaitable[Any]]) -> Any:
    async with asyncio.timeout(40):
        while True:
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                if error.code() not in RETRY:
                    raise
                await asyncio.sleep(0.05)


async def _nothing_left(rig: NodeDpuRig, when: str) -> None:
    async def nothing() -> bool:
        return not await rig.dpu.leftovers()

    try:
        await eventually(nothing, "nothing is left")
    except AssertionError as error:
        raise AssertionError(f"after a kill during {when} there is left: {await rig.dpu.leftovers()}") from error
