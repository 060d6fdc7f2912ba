"""File systems on real loop devices: superblocks, what counts as blank, what is refused."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from csi.errors import FailedPrecondition, Internal
from csi.node_host import filesystems, mounts, superblocks
from csi.node_host.disks import Disk
from csi.node_host.filesystems import FileSystems
from lab.hardware import loops

pytestmark = pytest.mark.root
MIB = 1 << 20
SIZES = {"ext4": 32 * MIB, "xfs": 320 * MIB, "btrfs": 128 * MIB}
SYSTEMS = FileSystems(format_options={}, seconds=30)


def disk_of(path: Path, size: int) -> Disk:
    number = os.stat(path).st_rdev
    device = f"{os.major(number)}:{os.minor(number)}"
    return Disk(name=path.name, path=str(path), device=device, size=size, read_only=False, subsystem_nqn="")


@pytest.fixture
async def loop(tmp_path: Path) -> AsyncIterator[Disk]:
    file = tmp_path / "disk"
    with file.open("wb") as opened:
        opened.truncate(512 * MIB)
    path = await loops.attach(file, size=512 * MIB)
    yield disk_of(path, 512 * MIB)
    await loops.detach(path)


@pytest.mark.parametrize("fs_type", filesystems.FILE_SYSTEMS)
async def test_make_know_check_and_grow(fs_type: str, tmp_path: Path) -> None:
    file, point = tmp_path / "disk", tmp_path / "point"
    point.mkdir()
    small, large = SIZES[fs_type], 512 * MIB
    with file.open("wb") as opened:
        opened.truncate(large)
    path = await loops.attach(file, size=small)
    try:
        disk = disk_of(path, small)
        assert await SYSTEMS.signature(disk) == ""
        await SYSTEMS.make(disk, fs_type)
        assert await SYSTEMS.signature(disk) == fs_type
        await SYSTEMS.check(disk, fs_type)
        assert not await SYSTEMS.lags(disk)
        found = superblocks.parse(file.read_bytes()[: superblocks.HEAD_BYTES])
        assert found == superblocks.Superblock(fs_type, small)
        await loops.resize(path, size=large)
        grown = disk_of(path, large)
        assert await SYSTEMS.lags(grown)
        if fs_type == "ext4":
            await SYSTEMS.grow_unmounted(grown)
            assert not await SYSTEMS.lags(grown)
            return
        mounts.mount(str(path), str(point), fs_type, ["rw", *filesystems.MOUNT_OPTIONS.get(fs_type, ())])
        try:
            await SYSTEMS.grow(grown, fs_type, str(point))
            await SYSTEMS.grow(grown, fs_type, str(point))
            assert os.statvfs(point).f_blocks * os.statvfs(point).f_frsize > small
        finally:
            mounts.unmount(str(point))
    finally:
        await loops.detach(path)


# An MBR with one Linux partition; the head of a LUKS2 volume.
MBR = bytes(446) + bytes.fromhex("00202100 83 fe2a 02 00080000 00f80000".replace(" ", "")) + bytes(48) + b"\x55\xaa"
LUKS = b"LUKS\xba\xbe\x00\x02" + (1 << 14).to_bytes(8, "big") + bytes(4080)


@pytest.mark.parametrize(("content", "words"), [(MBR, "partition table"), (LUKS, "crypto_LUKS")])
async def test_what_is_not_blank_is_refused(loop: Disk, content: bytes, words: str) -> None:
    with open(loop.path, "r+b") as opened:
        opened.write(content)
    found = await SYSTEMS.signature(loop)
    assert words in found
    with pytest.raises(FailedPrecondition, match="not blank"):
        filesystems.refuse_other(loop, found, "ext4")


def test_another_file_system_than_asked_for_is_refused() -> None:
    disk = Disk(name="nvme0n1", path="/x", device="1:1", size=1, read_only=False, subsystem_nqn="")
    filesystems.refuse_other(disk, "xfs", "xfs")
    filesystems.refuse_other(disk, "xfs", "")
    with pytest.raises(FailedPrecondition, match="asks for ext4"):
        filesystems.refuse_other(disk, "xfs", "ext4")


async def test_damage_beyond_repair_is_told(loop: Disk) -> None:
    await SYSTEMS.make(loop, "ext4")
    with open(loop.path, "r+b") as opened:
        opened.seek(4096)
        opened.write(os.urandom(MIB))
    with pytest.raises(FailedPrecondition, match=r"fsck.ext4"):
        await SYSTEMS.check(loop, "ext4")


async def test_a_disk_shorter_than_sysfs_says_is_an_error_not_blank(loop: Disk) -> None:
    with pytest.raises(Internal, match="ends before"):
        await SYSTEMS.signature(msgspec.structs.replace(loop, size=1024 * MIB))


async def test_a_missing_device_is_an_error_not_blank(tmp_path: Path) -> None:
    disk = Disk(name="n", path=str(tmp_path / "none"), device="1:1", size=1, read_only=False, subsystem_nqn="")
    with pytest.raises(Internal):
        await SYSTEMS.signature(disk)


async def test_ext4_grows_while_mounted(tmp_path: Path) -> None:
    if not may_resize_online():
        pytest.skip("this machine's root lacks CAP_SYS_RESOURCE, which ext4 demands for growing online")
    file, point = tmp_path / "disk", tmp_path / "point"
    point.mkdir()
    with file.open("wb") as opened:
        opened.truncate(64 * MIB)
    path = await loops.attach(file, size=32 * MIB)
    try:
        await SYSTEMS.make(disk_of(path, 32 * MIB), "ext4")
        mounts.mount(str(path), str(point), "ext4", [])
        try:
            await loops.resize(path, size=64 * MIB)
            grown = disk_of(path, 64 * MIB)
            await SYSTEMS.grow(grown, "ext4", str(point))
            assert not await SYSTEMS.lags(grown)
        finally:
            mounts.unmount(str(point))
    finally:
        await loops.detach(path)


def may_resize_online() -> bool:
    status = Path("/proc/self/status").read_text()
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff"))
    return bool(int(effective, 16) >> 24 & 1)
