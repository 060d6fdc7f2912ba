"""A machine's disk while it migrates, with every daemon as a process: killed in each phase, cut off, grown, plugged."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from benchmarks import report
from dpu_offload_stubs.csi import csi_pb2
from foundation.kube.resources import NODES
from foundation.spdk.client import SpdkClient
from lab.apiserver.faults import Rule
from lab.certificates import Authority
from lab.hardware import loops
from tests.csi_rig.estate import CONTROLLER, DPU_DAEMONS, HOST_DAEMONS, SHARED, Estate, estate, nursery
from tests.csi_rig.machine import Machine
from tests.csi_rig.plant import MIB, plant
from tests.csi_rig.scene import Scene
from tests.csi_rig.target import Target
from tests.dpu_rig.holding import held
from tests.dpu_rig.rig import Pair

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
FAULTS = pytest.mark.faults
SOURCE, TARGET = "source", "target"
# What a DPU's SPDK is asked for, of which one reply is kept back while somebody is killed.
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
SPDK, STORAGE = "SPDK", "storage"
# Named as daemons are; SPDK of a DPU and the storage's own die as well.
VICTIMS: dict[str, tuple[str, ...]] = {
    CONTROLLER: (CONTROLLER,),
    **{f"{host}/{kind}": (f"{host}/{kind}",) for host in (SOURCE, TARGET) for kind in (*HOST_DAEMONS, SPDK)},
    **{f"{host}/DPU": tuple(f"{host}/{kind}" for kind in (SPDK, *DPU_DAEMONS)) for host in (SOURCE, TARGET)},
    STORAGE: (STORAGE,),
    "every daemon": (CONTROLLER, *(f"{host}/{kind}" for host in (SOURCE, TARGET) for kind in HOST_DAEMONS)),
}


@pytest.fixture(scope="module")
def hardware() -> Iterator[tuple[Target, Pair, Pair]]:
    """The storage, and what belongs to either host."""
    with tempfile.TemporaryDirectory(prefix="kv-", dir="/tmp") as name:
        directory = Path(name)
        target = Target(directory, size=4 << 30)
        pairs = [Pair(directory / host) for host in (SOURCE, TARGET)]
        for host in (SOURCE, TARGET):
            (directory / host).mkdir()
        asyncio.run(target.start())
        yield target, pairs[0], pairs[1]
        for pair in pairs:
            pair.end()
        asyncio.run(_cleared(target))


async def _cleared(target: Target) -> None:
    await target.stop()
    for device in await loops.below(target.file.parent):
        await loops.detach(device)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def bearer() -> Iterator[subprocess.Popen[bytes]]:
    with nursery() as process:
        yield process


@pytest.fixture
async def two(
    hardware: tuple[Target, Pair, Pair], authority: Authority, bearer: subprocess.Popen[bytes]
) -> AsyncIterator[Estate]:
    target, *pairs = hardware
    await target.empty()
    with tempfile.TemporaryDirectory(prefix="kv-", dir="/tmp") as name:
        async with (
            plant(Path(name), target, authority) as built,
            estate(built, bearer, list(zip((SOURCE, TARGET), pairs, strict=True))) as running,
        ):
            yield running


@pytest.fixture
async def scene(two: Estate) -> AsyncIterator[Scene]:
    built = Scene(two, await two.create())
    yield built
    built.close()


class Strikes:
    """Kills `victim` again and again; its parts are started anew at once."""

    def __init__(self, estate: Estate, victim: str) -> None:
        self.victim = victim
        self.points = 0
        # Which reply is kept back; another one for each victim and migration.
        self.turn = list(VICTIMS).index(victim)
        self._estate = estate

    async def strike(self) -> None:
        self.points += 1
        parts = VICTIMS[self.victim]
        daemons = [part for part in parts if part != STORAGE and not part.endswith(f"/{SPDK}")]
        await self._estate.kill(*daemons)
        for part in parts:
            if part == STORAGE:
                await self._estate.plant.target.restart()
            elif part.endswith(f"/{SPDK}"):
                await self._estate.hosts[part.partition("/")[0]].restart_spdk()
        await self._estate.start(*daemons)

    async def amid(self, host: str, method: str, work: Awaitable[Any]) -> Any:
        """When the SPDK of that host's DPU has carried out `method`, of which nobody has seen the reply."""
        running = asyncio.ensure_future(work)
        async with self._estate.hosts[host].dpu.held(method) as came:
            await came
            await self.strike()
        return await running

    async def during(self, work: Awaitable[Any]) -> Any:
        """At some moment of it."""
        running = asyncio.ensure_future(work)
        await asyncio.sleep(0.004 * (self.turn % 8))
        await self.strike()
        return await running


async def moved(scene: Scene, strikes: Strikes, here: Machine, hosts: tuple[str, str], *, succeeds: bool) -> Machine:
    """A migration between `hosts` with a kill in each of its phases; returns the machine that is left."""
    estate, volume, (source, target) = scene.estate, scene.volume, hosts
    card = estate.hosts[target].card
    card.open.clear()
    context = await strikes.amid(target, ATTACH[strikes.turn % len(ATTACH)], estate.publish(volume, target))
    await scene.write(here)
    staging = asyncio.ensure_future(estate.mount(volume, target, context))
    await asyncio.sleep(0.05)
    await strikes.strike()
    card.open.set()
    there = scene.machine(target, await staging)
    await strikes.strike()
    await scene.write(here)
    assert there.read() == scene.written
    await scene.only(source, target)
    winner, loser, host = (there, here, source) if succeeds else (here, there, target)
    await scene.write(winner)
    await strikes.during(estate.unmount(volume, host))
    await scene.only(source, target)
    await strikes.amid(host, DETACH[strikes.turn % len(DETACH)], estate.unpublish(volume, host))
    late = asyncio.ensure_future(loser.loses(b"late"))
    await scene.write(winner)
    await scene.only(target if succeeds else source)
    assert await late
    assert winner.read() == scene.written
    strikes.turn += 1
    return winner


@FAULTS
@pytest.mark.parametrize("victim", VICTIMS)
async def test_killed_in_each_phase_of_migrations_one_writer_is_left(scene: Scene, victim: str) -> None:
    strikes, walk = Strikes(scene.estate, victim), f"migration of a disk, SIGKILL of {victim}"
    machine = scene.machine(SOURCE, await scene.estate.attach(scene.volume, SOURCE))
    clean = 0
    for hosts, succeeds in (((SOURCE, TARGET), False), ((SOURCE, TARGET), True), ((TARGET, SOURCE), True)):
        report.merge("faults.json", {walk: {"points": strikes.points + 5, "clean": clean}})
        machine = await moved(scene, strikes, machine, hosts, succeeds=succeeds)
        clean = strikes.points
    await scene.estate.detach(scene.volume, SOURCE)
    await scene.only()
    report.merge("faults.json", {walk: {"points": strikes.points, "clean": clean}})


LOSSES = {"its daemons died": DPU_DAEMONS, "all of it died": (SPDK, *DPU_DAEMONS), "it stood still": ()}


@pytest.mark.parametrize(
    "loss", ["it stood still", *(pytest.param(loss, marks=FAULTS) for loss in ("its daemons died", "all of it died"))]
)
async def test_a_lost_dpu_cannot_write_and_lets_go_when_it_is_back(scene: Scene, loss: str) -> None:
    """The source's node is given up in the middle: nobody unmounts anything there."""
    estate, volume = scene.estate, scene.volume
    daemons = [f"{SOURCE}/{kind}" for kind in DPU_DAEMONS]
    here = scene.machine(SOURCE, await estate.attach(volume, SOURCE))
    there = scene.machine(TARGET, await estate.attach(volume, TARGET))
    await scene.write(here)
    if loss == "it stood still":
        estate.signal(signal.SIGSTOP, *daemons)
    else:
        await estate.kill(*daemons)
    if SPDK in LOSSES[loss]:
        await estate.hosts[SOURCE].dpu.dpu.kill()
    await estate.unpublish(volume, SOURCE)
    assert await scene.let_in() == {TARGET}
    late = asyncio.ensure_future(here.loses(b"late"))
    await scene.write(there)
    if SPDK in LOSSES[loss]:
        await estate.hosts[SOURCE].dpu.dpu.start()
    if loss == "it stood still":
        estate.signal(signal.SIGCONT, *daemons)
    else:
        await estate.start(*daemons)
    assert await late
    await estate.unmount(volume, SOURCE)
    await scene.only(TARGET)
    assert there.read() == scene.written


async def test_what_a_dpu_kept_while_it_was_cut_off_never_arrives(scene: Scene) -> None:
    """Its daemons are away while the machine leaves, and while it comes back; SPDK waits to be let in again."""
    estate, volume = scene.estate, scene.volume
    daemons = [f"{SOURCE}/{kind}" for kind in DPU_DAEMONS]
    here = scene.machine(SOURCE, await estate.attach(volume, SOURCE))
    there = scene.machine(TARGET, await estate.attach(volume, TARGET))
    await scene.write(here)
    await estate.kill(*daemons)
    await estate.unpublish(volume, SOURCE)
    late = asyncio.ensure_future(here.loses(b"late"))
    await scene.write(there)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await estate.plant.publish(volume, SOURCE, SHARED)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "source-dpu has to let go" in str(refused.value.details())
    assert await scene.let_in() == {TARGET}
    back = asyncio.ensure_future(estate.publish(volume, SOURCE))
    await estate.start(*daemons)
    context = await back
    assert await late
    assert there.read() == scene.written
    await estate.unmount(volume, SOURCE)
    again = scene.machine(SOURCE, await estate.mount(volume, SOURCE, context))
    await scene.write(again)
    assert there.read() == scene.written


async def test_who_is_cut_off_while_a_target_gets_its_list_back_stays_out(scene: Scene) -> None:
    """csi-controller has read that the host has the volume, and finds only then that the target does not let it in."""
    estate, volume = scene.estate, scene.volume
    for host in (SOURCE, TARGET):
        await estate.attach(volume, host)
    await estate.kill(CONTROLLER)
    storage = estate.plant.target
    async with SpdkClient(storage.address) as client:
        for host in estate.hosts.values():
            await client.call("nvmf_subsystem_remove_host", {"nqn": scene.nqn, "host": host.nqn})
    async with held(storage.faults, "bdev_get_bdevs") as came:
        await estate.start(CONTROLLER)
        await came
        await estate.unmount(volume, SOURCE)
        await estate.unpublish(volume, SOURCE)
    await scene.only(TARGET)


@pytest.mark.parametrize("when", ["before the target has it", "with it on both"])
async def test_a_disk_grows_while_the_machine_migrates(scene: Scene, when: str) -> None:
    estate, volume = scene.estate, scene.volume
    here = scene.machine(SOURCE, await estate.attach(volume, SOURCE))
    await scene.write(here)
    context = await estate.publish(volume, TARGET)
    growing: asyncio.Future[Any] = asyncio.ensure_future(asyncio.sleep(0))
    if when == "before the target has it":
        growing = asyncio.ensure_future(estate.expand(volume, 128 * MIB))
    there = scene.machine(TARGET, await estate.mount(volume, TARGET, context))
    await growing
    if when == "with it on both":
        await estate.expand(volume, 128 * MIB)
    for machine, host in ((here, SOURCE), (there, TARGET)):
        assert await estate.grown(volume, host, 128 * MIB) == 128 * MIB
        assert machine.size == 128 * MIB
    await scene.write(there)
    await estate.detach(volume, SOURCE)
    await scene.only(TARGET)
    assert there.read() == scene.written


@FAULTS
async def test_a_disk_grows_whose_dpus_nobody_looks_after(scene: Scene) -> None:
    """SPDK tells the hosts by itself; the daemons that come back find it done."""
    estate, volume = scene.estate, scene.volume
    machines = {host: scene.machine(host, await estate.attach(volume, host)) for host in (SOURCE, TARGET)}
    daemons = [f"{host}/{kind}" for host in machines for kind in DPU_DAEMONS]
    await estate.kill(*daemons)
    await estate.expand(volume, 128 * MIB)
    for host, machine in machines.items():
        assert await estate.grown(volume, host, 128 * MIB) == 128 * MIB
        assert machine.size == 128 * MIB
    await estate.start(*daemons)
    await estate.detach(volume, SOURCE)
    await scene.only(TARGET)


async def test_disks_are_plugged_in_and_taken_out_while_the_machine_migrates(scene: Scene) -> None:
    """KubeVirt has them in a pod of their own beside the launcher's, on either host."""
    estate, system = scene.estate, scene.volume
    here = scene.machine(SOURCE, await estate.attach(system, SOURCE))
    await scene.write(here)
    one, two = [Scene(estate, await estate.create(name)) for name in ("one", "two")]
    try:
        first = one.machine(SOURCE, await estate.attach(one.volume, SOURCE))
        await one.write(first)
        # One goes and the other comes while the target gets the system's disk.
        context, path, _ = await asyncio.gather(
            estate.publish(system, TARGET), estate.attach(two.volume, SOURCE), estate.detach(one.volume, SOURCE)
        )
        second = two.machine(SOURCE, path)
        await asyncio.gather(two.write(second), scene.write(here))
        # With the machine go the disks it has by then.
        paths = await asyncio.gather(estate.mount(system, TARGET, context), estate.attach(two.volume, TARGET))
        there, beside = scene.machine(TARGET, paths[0]), two.machine(TARGET, paths[1])
        assert (there.read(), beside.read()) == (scene.written, two.written)
        # The first one comes back to where the machine is now.
        *_, path = await asyncio.gather(
            estate.detach(system, SOURCE), estate.detach(two.volume, SOURCE), estate.attach(one.volume, TARGET)
        )
        assert one.machine(TARGET, path).read() == one.written
        await asyncio.gather(scene.write(there), two.write(beside))
        for each in (scene, one, two):
            await each.only(TARGET)
    finally:
        one.close()
        two.close()


async def test_a_dpu_whose_node_is_deleted_is_cut_off(scene: Scene) -> None:
    """Nobody but the VolumeAttachment knows any more by which name the storage lets it in."""
    estate, volume = scene.estate, scene.volume
    for host in (SOURCE, TARGET):
        await estate.attach(volume, host)
    await estate.kill(*(f"{SOURCE}/{kind}" for kind in HOST_DAEMONS))
    for node in (SOURCE, estate.hosts[SOURCE].node):
        await estate.plant.kube.delete(NODES, node)
    # Nor does csi-controller remember.
    await estate.kill(CONTROLLER)
    await estate.start(CONTROLLER)
    await estate.unpublish(volume, SOURCE)
    assert await scene.let_in() == {TARGET}


async def test_who_has_not_read_kubernetes_yet_cuts_nobody_off(scene: Scene) -> None:
    estate, volume = scene.estate, scene.volume
    for host in (SOURCE, TARGET):
        await estate.attach(volume, host)
    await estate.unmount(volume, SOURCE)
    request = csi_pb2.ControllerUnpublishVolumeRequest(volume_id=volume.volume_id, node_id=SOURCE)
    for resources in ("nodes", "volumeattachments"):
        await estate.kill(CONTROLLER)
        silent = estate.plant.api.faults.add(Rule(path=f".*/{resources}", verbs=("list",), code=503))
        await estate.start(CONTROLLER)
        with pytest.raises(grpc.aio.AioRpcError):
            await estate.plant.controller.ControllerUnpublishVolume(request, timeout=1)
        assert await scene.let_in() == {SOURCE, TARGET}
        estate.plant.api.faults.remove(silent)
    await estate.unpublish(volume, SOURCE)
    await scene.only(TARGET)


async def test_on_kubernetes_before_1_34_a_restarted_target_gets_its_lists_back(scene: Scene) -> None:
    """Which has no VolumeAttributesClass."""
    estate = scene.estate
    await estate.attach(scene.volume, SOURCE)
    await estate.kill(CONTROLLER)
    estate.plant.api.kinds.remove("storage.k8s.io", "volumeattributesclasses")
    await estate.start(CONTROLLER)
    await estate.plant.target.restart()
    await scene.only(SOURCE)
