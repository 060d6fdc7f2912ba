"""csi-node-host killed before or after anything it does to the node: whoever starts next ends the walk, data intact.

A kill is an exception that nothing catches, at a command, a system call or a record; the next daemon is a new object
that knows only what is on the node.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from csi.calls import Calls
from csi.node_host import commands, filesystems, mounts, points, publish, stage
from csi.node_host.disks import Disks
from csi.node_host.fabrics import Fabrics
from csi.node_host.filesystems import FileSystems
from csi.node_host.host import Host
from csi.node_host.passthrough import Passthrough
from csi.node_host.records import Records
from dpu_offload_stubs.csi import csi_pb2
from foundation.pci.sysfs import Sysfs
from foundation.pci.uevents import Uevents
from tests.csi_rig.dpu import PHYSICAL
from tests.csi_rig.plant import Plant, mount_capability

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]


class Killed(BaseException):
    """SIGKILL, as far as Python code can tell."""


@dataclass
class Executioner:
    """Kills at the deed that is `left` deeds away."""

    left: int = -1
    after: bool = False
    kills: int = 0

    def strike(self) -> bool:
        if self.left < 0:
            return False
        self.left -= 1
        if self.left >= 0:
            return False
        self.kills += 1
        if not self.after:
            raise Killed
        return True


@pytest.fixture
def executioner(monkeypatch: pytest.MonkeyPatch) -> Executioner:
    found = Executioner()

    def deadly(deed: Callable[..., Any]) -> Callable[..., Any]:
        def done(*given: Any, **named: Any) -> Any:
            last = found.strike()
            result = deed(*given, **named)
            if last:
                raise Killed
            return result

        return done

    async def run(*argv: str, seconds: float, accept: Any = (0,)) -> Any:
        last = found.strike()
        result = await commands.run(*argv, seconds=seconds, accept=accept)
        if last:
            raise Killed
        return result

    monkeypatch.setattr(filesystems, "run", run)
    for name in ("mount", "bind", "unmount"):
        monkeypatch.setattr(mounts, name, deadly(getattr(mounts, name)))
    for name in ("make", "remove"):
        monkeypatch.setattr(points, name, deadly(getattr(points, name)))
    for name in ("put", "drop"):
        monkeypatch.setattr(Records, name, deadly(getattr(Records, name)))
    return found


@pytest.fixture
async def uevents() -> AsyncIterator[Uevents]:
    with Uevents() as found:
        yield found


def host_of(plant: Plant, uevents: Uevents) -> Host:
    """A daemon that has just started."""
    config, dpu = plant.node_config("host1"), plant.dpus["host1"]
    sysfs = Sysfs(dpu.sysfs)
    return Host(
        config=config,
        disks=Disks(sysfs=sysfs, dev_root=dpu.devices, physical_functions={0: PHYSICAL}, uevents=uevents),
        fabrics=Fabrics(sysfs=sysfs, dev_root=dpu.devices, node="host1"),
        file_systems=FileSystems(format_options={}, seconds=20),
        passthrough=Passthrough(sysfs=sysfs, dev_root=dpu.devices, directory=Path(config.state_directory, "p")),
        records=Records(Path(config.state_directory)),
        calls=Calls(),
    )


@dataclass
class Walk:
    """The four calls of kubelet on one volume."""

    volume_id: str
    context: dict[str, str]
    staging: str
    target: str

    async def stage(self, host: Host) -> None:
        await stage.stage(
            host,
            csi_pb2.NodeStageVolumeRequest(
                volume_id=self.volume_id,
                publish_context=self.context,
                staging_target_path=self.staging,
                volume_capability=mount_capability(),
            ),
        )

    async def publish(self, host: Host) -> None:
        request = csi_pb2.NodePublishVolumeRequest(
            volume_id=self.volume_id,
            staging_target_path=self.staging,
            target_path=self.target,
            volume_capability=mount_capability(),
        )
        await publish.publish(host, request)

    async def unpublish(self, host: Host) -> None:
        request = csi_pb2.NodeUnpublishVolumeRequest(volume_id=self.volume_id, target_path=self.target)
        await publish.unpublish(host, request)

    async def unstage(self, host: Host) -> None:
        request = csi_pb2.NodeUnstageVolumeRequest(volume_id=self.volume_id, staging_target_path=self.staging)
        await stage.unstage(host, request)


STEPS = ("stage", "publish", "unpublish", "unstage")


@pytest.mark.parametrize("step", STEPS)
async def test_a_kill_at_every_deed(one: Plant, uevents: Uevents, executioner: Executioner, step: str) -> None:
    points = 0
    for left in range(20):
        before = executioner.kills
        for after in (False, True):
            await _walk(one, uevents, executioner, step, replace(Executioner(), left=left, after=after))
        points += executioner.kills - before
        if executioner.kills == before:
            break
    else:
        raise AssertionError("the step has more deeds than expected")
    report.merge("faults.json", {f"claim: node {step}": {"points": points, "clean": points}})
    assert points >= 2


async def _walk(one: Plant, uevents: Uevents, executioner: Executioner, step: str, kill: Executioner) -> None:
    volume = await one.create(f"{step}-{kill.left}-{kill.after}", size=8 << 20)
    walk = Walk(
        volume_id=volume.volume_id,
        context=await one.publish(volume, "host1"),
        staging=one.staging("host1", volume),
        target=one.pod("host1", volume),
    )
    host = host_of(one, uevents)
    # Once untouched, so that there is a file to lose; the step under test comes on the second round, or on the first.
    first_round = step == "stage" and kill.left % 2 == 0
    if not first_round:
        for each in STEPS[:2]:
            await getattr(walk, each)(host)
        Path(walk.target, "file").write_text("kept")
        for each in STEPS[2:]:
            await getattr(walk, each)(host)
    for each in STEPS:
        if each == step:
            executioner.left, executioner.after = kill.left, kill.after
        try:
            await _survived(getattr(walk, each), lambda: host_of(one, uevents), host)
        finally:
            executioner.left = -1
        if each == "publish" and not first_round:
            assert Path(walk.target, "file").read_text() == "kept"
    assert mounts.at(walk.staging) is None
    assert mounts.at(walk.target) is None
    assert not Path(walk.target).exists()
    assert host.records.get(volume.volume_id) is None
    await one.unpublish(volume, "host1")
    await one.delete(volume)


async def _survived(call: Callable[[Host], Awaitable[None]], born: Callable[[], Host], host: Host) -> None:
    try:
        await call(host)
    except Killed:
        await call(born())


async def test_half_a_file_system_is_made_anew_only_in_the_same_life_of_the_disk(
    one: Plant, uevents: Uevents, executioner: Executioner
) -> None:
    """mkfs killed in the middle leaves a signature; elsewhere, or later, that is somebody's data."""
    volume = await one.create(size=8 << 20)
    context = await one.publish(volume, "host1")
    walk = Walk(volume.volume_id, context, one.staging("host1", volume), one.pod("host1", volume))
    executioner.left = 2
    with pytest.raises(Killed):
        await walk.stage(host_of(one, uevents))
    executioner.left = -1
    sequence = one.dpus["host1"].sysfs / "block/nvme1n1/diskseq"
    host = host_of(one, uevents)
    node = one.dpus["host1"].devices / "nvme1n1"
    await asyncio.to_thread(_spoil, node)
    sequence.write_text("7\n")
    record = host.records.get(volume.volume_id)
    assert record is not None
    host.records.put(_with(record, formatting=host.life_of("nvme1n1")))
    sequence.write_text("8\n")
    with pytest.raises(Exception, match="damaged"):
        await walk.stage(host)
    host.records.put(_with(record, formatting=host.life_of("nvme1n1")))
    await walk.stage(host)
    await walk.unstage(host)


async def test_a_mkfs_that_went_down_with_the_node_is_begun_again(
    one: Plant, uevents: Uevents, executioner: Executioner
) -> None:
    """mkfs.ext4 writes its superblock late; until then nothing tells its work from somebody's data but our note."""
    volume = await one.create(size=8 << 20)
    context = await one.publish(volume, "host1")
    walk = Walk(volume.volume_id, context, one.staging("host1", volume), one.pod("host1", volume))
    (one.dpus["host1"].sysfs / "block/nvme1n1/diskseq").write_text("7\n")
    executioner.left = 2
    with pytest.raises(Killed):
        await walk.stage(host_of(one, uevents))
    executioner.left = -1
    with (one.dpus["host1"].devices / "nvme1n1").open("r+b") as device:
        device.seek(8192)
        device.write(b"\2\200\0\0" * 1024)
    host = host_of(one, uevents)
    record = host.records.get(volume.volume_id)
    assert record is not None
    assert record.formatting
    host.records.put(_with(record, formatting=""))
    with pytest.raises(Exception, match="unknown kind"):
        await walk.stage(host)
    host.records.put(_with(record, formatting="of an earlier boot"))
    await walk.stage(host)
    await walk.unstage(host)


def _with(record: Any, **changed: Any) -> Any:
    import msgspec

    return msgspec.structs.replace(record, **changed)


def _spoil(node: Path) -> None:
    """A file system's signature with nothing sensible behind it."""
    import subprocess

    subprocess.run(["mkfs.ext4", "-q", "-F", str(node)], check=True)
    with node.open("r+b") as device:
        device.seek(2048)
        device.write(b"\xff" * (256 << 10))
