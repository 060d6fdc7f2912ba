"""A claim's life in the calls of side-cars and kubelet, with what Kubernetes says exists written beside it."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from csi import identity
from csi.framework import naming
from csi.node_host import mounts
from dpu_offload_stubs.csi import csi_pb2
from foundation.kube.errors import NotFound
from foundation.kube.resources import VOLUME_ATTACHMENTS
from foundation.spdk.client import SpdkClient
from foundation.spdk.errors import SpdkClientError
from tests.csi_rig.mortals import Mortals
from tests.csi_rig.plant import MIB, mount_capability

# XFS: ext4 grows online only with CAP_SYS_RESOURCE, which root may lack here.
CAPABILITY = mount_capability(fs_type="xfs")
SIZE = 320 * MIB
CONTENT = "written before the kill"
_HOST, _DPU = "host1", identity.host_nqn("host1-dpu")
_SETTLE_SECONDS = 40.0


class Life:
    """Every verb is repeated until it succeeds, and only then noted."""

    def __init__(self, mortals: Mortals) -> None:
        self.mortals = mortals
        self.plant = mortals.plant
        self.volumes: dict[str, csi_pb2.Volume] = {}
        self.snapshots: dict[str, str] = {}
        self.contexts: dict[str, dict[str, str]] = {}
        self.staged: set[str] = set()
        self.mounted: dict[str, str] = {}

    async def create(self, name: str, *, snapshot: str = "", volume: str = "") -> None:
        more: dict[str, Any] = {}
        if snapshot:
            source = csi_pb2.VolumeContentSource.SnapshotSource(snapshot_id=self.snapshots[snapshot])
            more["volume_content_source"] = csi_pb2.VolumeContentSource(snapshot=source)
        elif volume:
            of = csi_pb2.VolumeContentSource.VolumeSource(volume_id=self.volumes[volume].volume_id)
            more["volume_content_source"] = csi_pb2.VolumeContentSource(volume=of)
        self.volumes[name] = await self._done(lambda: self.plant.create(name, size=SIZE, capability=CAPABILITY, **more))

    async def delete(self, name: str) -> None:
        await self._done(lambda: self.plant.delete(self.volumes[name]))
        del self.volumes[name]

    async def snapshot(self, name: str, volume: str) -> None:
        request = csi_pb2.CreateSnapshotRequest(name=name, source_volume_id=self.volumes[volume].volume_id)
        answer = await self._done(lambda: self.plant.controller.CreateSnapshot(request))
        self.snapshots[name] = answer.snapshot.snapshot_id

    async def delete_snapshot(self, name: str) -> None:
        request = csi_pb2.DeleteSnapshotRequest(snapshot_id=self.snapshots[name])
        await self._done(lambda: self.plant.controller.DeleteSnapshot(request))
        del self.snapshots[name]

    async def publish(self, name: str) -> None:
        volume = self.volumes[name]
        self.contexts[name] = await self._done(lambda: self.plant.publish(volume, _HOST, CAPABILITY))
        await self.plant.attachment(volume, _HOST, self.contexts[name])

    async def unpublish(self, name: str) -> None:
        volume = self.volumes[name]
        with contextlib.suppress(NotFound):
            await self.plant.kube.delete(VOLUME_ATTACHMENTS, self.plant.attachment_name(volume, _HOST))
        await self._done(lambda: self.plant.unpublish(volume, _HOST))
        del self.contexts[name]

    async def stage(self, name: str) -> None:
        await self._done(lambda: self.plant.stage(self.volumes[name], _HOST, self.contexts[name], CAPABILITY))
        self.staged.add(name)

    async def unstage(self, name: str) -> None:
        await self._done(lambda: self.plant.unstage(self.volumes[name], _HOST))
        self.staged.remove(name)

    async def mount(self, name: str) -> None:
        self.mounted[name] = await self._done(lambda: self.plant.mount(self.volumes[name], _HOST, CAPABILITY))

    async def unmount(self, name: str) -> None:
        await self._done(lambda: self.plant.unmount(self.volumes[name], _HOST))
        del self.mounted[name]

    async def expand(self, name: str) -> None:
        volume = self.volumes[name]
        size = csi_pb2.CapacityRange(required_bytes=volume.capacity_bytes + 16 * MIB)
        request = csi_pb2.ControllerExpandVolumeRequest(volume_id=volume.volume_id, capacity_range=size)
        answer = await self._done(lambda: self.plant.controller.ControllerExpandVolume(request))
        volume.capacity_bytes = answer.capacity_bytes
        if name in self.mounted:
            grow = csi_pb2.NodeExpandVolumeRequest(
                volume_id=volume.volume_id, volume_path=self.mounted[name], capacity_range=size
            )
            await self._done(lambda: self.plant.nodes[_HOST].NodeExpandVolume(grow))

    async def end(self) -> None:
        """Everything that Kubernetes still has goes, in the order in which it would."""
        for name in list(self.mounted):
            await self.unmount(name)
        for name in list(self.staged):
            await self.unstage(name)
        for name in list(self.contexts):
            await self.unpublish(name)
        for name in list(self.snapshots):
            await self.delete_snapshot(name)
        for name in list(self.volumes):
            await self.delete(name)
        await self.check()

    def write(self, name: str) -> None:
        Path(self.mounted[name], "file").write_text(CONTENT)

    async def _done(self, call: Callable[[], Awaitable[Any]]) -> Any:
        return await self.mortals.retried(call)

    # --- judgement --------------------------------------------------------------------------------------------------

    async def check(self) -> None:
        """Exactly what Kubernetes says: on the target (as soon as it is restored), on the DPU, in the mount table."""
        wanted = self._wanted()
        end = asyncio.get_running_loop().time() + _SETTLE_SECONDS
        found: Any = None
        while asyncio.get_running_loop().time() < end:
            with contextlib.suppress(SpdkClientError):
                found = await self._found()
                if found == wanted:
                    break
            await asyncio.sleep(0.02)
        assert found == wanted, f"there is {found}, Kubernetes says {wanted}"
        assert set(self.plant.dpus[_HOST].attached) == {self.volumes[name].volume_id for name in self.contexts}
        points = {mount.point for mount in mounts.table() if mount.point.startswith(f"{self.plant.directory}/")}
        staged = {self.plant.staging(_HOST, self.volumes[name]) for name in self.staged}
        assert points == staged | set(self.mounted.values())
        for path in self.mounted.values():
            if (file := Path(path, "file")).exists():
                assert file.read_text() == CONTENT

    async def leftovers(self) -> list[str]:
        """Everything on the target that is not the discovery subsystem."""
        async with SpdkClient(self.plant.target.address) as client:
            lvols = [each["alias"] for each in await client.call("bdev_lvol_get_lvols")]
            return lvols + [
                each["nqn"] for each in await client.call("nvmf_get_subsystems") if each["subtype"] != "Discovery"
            ]

    def _wanted(self) -> tuple[dict[str, int], dict[str, tuple[list[str], int, list[str]]]]:
        sizes = {_lvol(each.volume_id): each.capacity_bytes for each in self.volumes.values()}
        exports = {}
        for name, each in self.volumes.items():
            hosts = [_DPU] if name in self.contexts else []
            exports[identity.subsystem_nqn(each.volume_id)] = (hosts, 1, [identity.namespace_uuid(each.volume_id)])
        return {**sizes, **{_lvol(each): 0 for each in self.snapshots.values()}}, exports

    async def _found(self) -> tuple[dict[str, int], dict[str, tuple[list[str], int, list[str]]]]:
        async with SpdkClient(self.plant.target.address) as client:
            bdevs = await client.call("bdev_get_bdevs")
            subsystems = await client.call("nvmf_get_subsystems")
        sizes = {}
        for bdev in bdevs:
            for alias in bdev["aliases"]:
                lvol = alias.partition("/")[2]
                if naming.VOLUME.fullmatch(lvol) or naming.UNFINISHED.fullmatch(lvol):
                    sizes[lvol] = bdev["num_blocks"] * bdev["block_size"]
                elif naming.SNAPSHOT.fullmatch(lvol) and not self._hidden(lvol, bdevs):
                    sizes[lvol] = 0
        exports = {
            each["nqn"]: (
                [host["nqn"] for host in each["hosts"]],
                len(each["listen_addresses"]),
                [space["uuid"] for space in each["namespaces"]],
            )
            for each in subsystems
            if identity.is_ours(each["nqn"])
        }
        return sizes, exports

    def _hidden(self, lvol: str, bdevs: list[dict[str, Any]]) -> bool:
        mark = naming.discarded(lvol)
        return any(alias.endswith(f"/{mark}") for bdev in bdevs for alias in bdev["aliases"])


def _lvol(object_id: str) -> str:
    return object_id.rpartition(":")[2].partition(".")[2]
