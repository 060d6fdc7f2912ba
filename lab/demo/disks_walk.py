"""Walks 2 and 3: a claim becomes a disk with real bytes, and outlives the death of the DPU's SPDK."""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from csi.node_host import mounts
from foundation.kube import resources
from foundation.spdk.client import SpdkClient
from lab import objects
from lab.demo import inventory, pods_walk
from lab.demo.observer import NotSeen, Observer
from lab.demo.steps import Recorder
from lab.kubelet.pods import PodRecord
from lab.layout import HOST_NODE, Layout
from lab.network import Network
from lab.suite import SPDK_DPU, Suite

VOLUME_SECONDS = 30.0
RESTORE_SECONDS = 30.0
_CHUNK = 1 << 20
NO_GUEST = "a real spdk_tgt opens a real vfio-user socket, and there is no guest here to take the disk"


class WrongBytes(RuntimeError):
    """Data is not where it should be."""


async def walk(steps: Recorder, observer: Observer, suite: Suite, network: Network) -> None:
    """A claim, a disk, a file system, bytes in the target's file, and back to nothing."""
    layout, disks = suite.layout, suite.options.spdk_tgt is None
    steps.section("A claim becomes a disk")
    async with steps.step("what is there before, listed"):
        before = await inventory.take(layout, network)
    volume = await _claim(steps, observer, "claim")
    pod = await _publish(steps, observer, suite, "with-disk", "claim", volume)
    if disks:
        assert pod is not None
        async with steps.step("a file written on the mounted disk"):
            marker = await asyncio.to_thread(write_marker, mount_point(pod))
        async with steps.step("its bytes found in the storage target's backing file") as notes:
            notes.text = await asyncio.to_thread(find_bytes, layout.target_file.parent, marker)
    else:
        for name in ("a file written on the mounted disk", "its bytes found in the storage target's backing file"):
            steps.not_run(name, NO_GUEST)
    await _give_back(steps, observer, "with-disk", "claim", volume)
    async with steps.step("nothing is left: mounts, disks, subsystems, volumes, files") as notes:
        notes.text = await inventory.same_again(before, layout, network)


async def crash_walk(steps: Recorder, observer: Observer, suite: Suite, network: Network) -> None:
    """The DPU's SPDK is killed and started again while a volume is attached."""
    layout, disks = suite.layout, suite.options.spdk_tgt is None
    steps.section("The DPU's SPDK dies")
    async with steps.step("what is there before, listed"):
        before = await inventory.take(layout, network)
    volume = await _claim(steps, observer, "survivor")
    pod = await _publish(steps, observer, suite, "survivor", "survivor", volume)
    marker = b""
    if disks:
        assert pod is not None
        async with steps.step("a file written before"):
            marker = await asyncio.to_thread(write_marker, mount_point(pod))
    async with steps.step("SPDK on the DPU killed, and started again empty"):
        exported = await _exported(layout)
        await suite.kill(SPDK_DPU)
        suite.start_spdk(SPDK_DPU)
        await suite.spdk_answers(SPDK_DPU)
    async with steps.step(
        "the suite restores the attachment: the same subsystem, namespace uuid and function"
    ) as notes:
        notes.text = await _restored(layout, exported)
    if disks:
        assert pod is not None
        async with steps.step("the file is still there, and another can be written"):
            await asyncio.to_thread(read_marker, mount_point(pod), marker)
            await asyncio.to_thread(write_marker, mount_point(pod))
    else:
        steps.not_run("the file is still there, and another can be written", NO_GUEST)
    await _give_back(steps, observer, "survivor", "survivor", volume)
    async with steps.step("nothing is left: mounts, disks, subsystems, volumes, files") as notes:
        notes.text = await inventory.same_again(before, layout, network)


async def _claim(steps: Recorder, observer: Observer, name: str) -> str:
    """Create a claim; returns its PersistentVolume's name."""
    async with steps.step("claim: CreateVolume, an lvol and an NVMe-oF subsystem of its own") as notes:
        created = await observer.client.create(resources.PERSISTENT_VOLUME_CLAIMS, objects.claim(name))
        volume = f"pvc-{created.metadata.uid}"
        found = await observer.until(
            resources.PERSISTENT_VOLUMES,
            volume,
            lambda pv: pv is not None and pv.status.phase == "Bound",
            seconds=VOLUME_SECONDS,
            what=f"claim {name} is bound",
        )
        if found is not None and found.spec.csi is not None:
            notes.text = found.spec.csi.volume_handle
    return volume


async def _publish(
    steps: Recorder, observer: Observer, suite: Suite, name: str, claim: str, volume: str
) -> PodRecord | None:
    attached = "publish: target access for the DPU, which attaches and emulates"
    mounted = "the host finds the disk, makes a file system and mounts it"
    body = objects.pod(name, node_name=HOST_NODE, claim_name=claim)
    async with steps.step(attached) as notes:
        created = await observer.client.create(resources.PODS, body)
        notes.text = await _attached(observer, volume)
    if suite.options.spdk_tgt is not None:
        steps.not_run(mounted, NO_GUEST)
        return None
    async with steps.step(mounted) as notes:
        record = await pods_walk.running(observer, suite.layout, created.metadata.uid, name, HOST_NODE)
        notes.text = _device_of(mount_point(record))
    return record


async def _attached(observer: Observer, volume: str) -> str:
    """Wait for the VolumeAttachment of a volume; returns the function it is on."""

    def context() -> dict[str, str] | None:
        for attachment in observer.store(resources.VOLUME_ATTACHMENTS).values():
            if attachment.spec.source.persistent_volume_name == volume and attachment.status.attached:
                return dict(attachment.status.attachment_metadata or {})
        return None

    await observer.until_true(
        lambda: context() is not None, seconds=VOLUME_SECONDS, what=f"volume {volume} is attached"
    )
    found = context() or {}
    return f"function pf{found.get('pf', '?')} vf{found.get('vf', '?')}"


async def _give_back(steps: Recorder, observer: Observer, pod: str, claim: str, volume: str) -> None:
    async with steps.step("pod deleted: unmount, unpublish (the target shuts the DPU out first)"):
        key = f"{objects.NAMESPACE}/{pod}"
        await observer.client.delete(resources.PODS, pod, objects.NAMESPACE)
        await observer.until(
            resources.PODS, key, lambda found: found is None, seconds=VOLUME_SECONDS, what=f"pod {pod} is gone"
        )
        await observer.until_true(
            lambda: all(
                attachment.spec.source.persistent_volume_name != volume
                for attachment in observer.store(resources.VOLUME_ATTACHMENTS).values()
            ),
            seconds=VOLUME_SECONDS,
            what=f"volume {volume} is detached",
        )
    async with steps.step("claim deleted: DeleteVolume"):
        await observer.client.delete(resources.PERSISTENT_VOLUME_CLAIMS, claim, objects.NAMESPACE)
        await observer.until(
            resources.PERSISTENT_VOLUMES,
            volume,
            lambda found: found is None,
            seconds=VOLUME_SECONDS,
            what=f"volume {volume} is deleted",
        )


async def _exported(layout: Layout) -> dict[str, tuple[str, ...]]:
    """What the DPU shows its host: by subsystem, the namespaces' uuids and the functions' directories."""
    client = SpdkClient(f"unix:{layout.dpu_spdk_socket}")
    try:
        subsystems = await client.call("nvmf_get_subsystems", deadline=2.0)
    finally:
        await client.close()
    return {
        entry["nqn"]: (
            *(namespace["uuid"] for namespace in entry["namespaces"]),
            *(address["traddr"] for address in entry["listen_addresses"]),
        )
        for entry in subsystems
        if entry["subtype"] == "NVMe"
    }


async def _restored(layout: Layout, wanted: dict[str, tuple[str, ...]]) -> str:
    """Look until the DPU shows what it showed before. SPDK has no event for it that an outsider could wait on."""
    found: dict[str, tuple[str, ...]] = {}
    try:
        async with asyncio.timeout(RESTORE_SECONDS):
            while True:
                found = await _exported(layout)
                if found == wanted:
                    return ", ".join(wanted)
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise NotSeen(f"the DPU shows {found}, before it showed {wanted}") from None


def mount_point(pod: PodRecord) -> Path:
    return Path(pod.volumes[0].target_path)


def write_marker(directory: Path) -> bytes:
    """A file with 64 KiB of a random 64-byte pattern, on the disk when this returns."""
    marker = secrets.token_bytes(64)
    with (directory / "marker").open("wb") as file:
        file.write(marker * 1024)
        file.flush()
        os.fsync(file.fileno())
    return marker


def read_marker(directory: Path, marker: bytes) -> None:
    # From the disk, not from the page cache.
    with (directory / "marker").open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if file.read() != marker * 1024:
            raise WrongBytes(f"{directory / 'marker'} does not hold what was written")


def find_bytes(directory: Path, marker: bytes) -> str:
    """The file below ``directory`` that holds the marker, with the offset. Raises WrongBytes when none does.

    By reads, not by a mapping: a file that its daemon cuts short meanwhile would end this process.
    """
    for file in sorted(path for path in directory.rglob("*") if path.is_file()):
        with file.open("rb") as opened:
            for start, end in data_extents(opened.fileno()):
                before = b""
                for at in range(start, end, _CHUNK):
                    content = before + os.pread(opened.fileno(), min(_CHUNK, end - at), at)
                    if (offset := content.find(marker)) >= 0:
                        return f"{file.name} at {at - len(before) + offset:#x}"
                    before = content[-len(marker) :]
    raise WrongBytes(f"no file below {directory} holds the bytes that were written on the mounted disk")


def data_extents(descriptor: int) -> Iterator[tuple[int, int]]:
    """The parts of a sparse file that are not holes (lseek(2), SEEK_DATA)."""
    end = 0
    while True:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data after this
                return
            raise
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end


def _device_of(directory: Path) -> str:
    mount = mounts.at(str(directory))
    if mount is not None:
        return f"{mount.fs_type} on {Path(mount.source).name}"
    raise NotSeen(f"{directory} is not a mount point")
