"""The verbs of backend kind `nvmet`: the shelf first, the kernel's target second, both looked at anew each time."""

import asyncio
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from csi.errors import AlreadyExists, FailedPrecondition, Internal, InvalidArgument, NotFound, OutOfRange, Unavailable
from csi.framework import naming
from csi.framework.backend import (
    Capabilities,
    Capacity,
    Finding,
    HostKeys,
    Qos,
    Segments,
    SizeRange,
    Snapshot,
    Volume,
    VolumeSpec,
)
from csi.framework.backends.nvmet.config import NvmetConfig, NvmetParameters
from csi.framework.backends.nvmet.configfs import Configfs
from csi.framework.backends.nvmet.files import Files
from csi.framework.backends.nvmet.lvm import Lvm
from csi.framework.backends.nvmet.shelf import Shelf
from csi.framework.locks import Locks
from csi.framework.minimal import MinimalBackend
from csi.framework.sizes import rounded
from csi.identity import VolumeId, subsystem_nqn, volume_of_nqn

R = TypeVar("R")


class NvmetBackend(MinimalBackend[NvmetParameters]):
    """A volume's key is its name on the shelf."""

    def __init__(
        self, name: str, config: NvmetConfig, *, configfs: Configfs | None = None, shelf: Shelf | None = None
    ) -> None:
        if not config.portals:
            raise ValueError("portals: at least one address for the DPUs is needed")
        self.name = name
        self._config = config
        self._shelf = shelf or _shelf(config)
        self._place = config.directory or f"volume group {config.volume_group}"
        self._target = configfs or Configfs(Path(config.configfs))
        self._ports = {config.first_port + number: portal for number, portal in enumerate(config.portals)}
        self._locks = Locks()
        self._clones = False

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            expand=True, snapshots=self._clones, clones=self._clones, capacity=True, authentication=True
        )

    async def start(self) -> None:
        self._clones = await self._do("look at the volumes' directory", self._shelf.can_clone)
        await self.converge({}, {})

    # --- volumes ----------------------------------------------------------------------------------------------------

    async def create(self, spec: VolumeSpec[NvmetParameters]) -> Volume:
        if spec.qos != Qos():
            raise InvalidArgument("the kernel's target has no quality of service")
        if spec.parameters.provisioning == "thick" and not self._shelf.can_reserve():
            raise InvalidArgument("StorageClass parameter provisioning: volumes of an LVM thin pool are always thin")
        name = naming.volume(spec.token)
        wanted = await self._rounded(spec.size)
        async with self._locks.hold(name):
            have = await self._do("look", lambda: self._shelf.size(name))
            if have is not None:
                if have < spec.size.required or (spec.size.limit and have > spec.size.limit):
                    raise AlreadyExists(f"volume {self._id(name)} exists with {have} bytes")
                await self._compare_source(name, spec)
            else:
                await self._make(name, wanted, spec)
            await self._do("offer", lambda: self._target.offer(self._id(name), self._shelf.path(name), self._ports))
            return await self.get(name)

    async def delete(self, key: str) -> None:
        if not naming.VOLUME.fullmatch(key):
            return
        async with self._locks.hold(key):
            hosts = await self._do("look", lambda: self._target.hosts(self._nqn(key)))
            if hosts:
                raise FailedPrecondition(
                    f"volume {self._id(key)} is published to {', '.join(hosts)}: unpublish it first"
                )
            await self._do("withdraw", lambda: self._target.withdraw(self._nqn(key)))
            await self._do("delete", lambda: self._shelf.delete(key))

    async def get(self, key: str) -> Volume:
        return await self._do(f"look at {key}", lambda: self._look(key))

    async def volumes(self) -> Sequence[Volume]:
        def look() -> list[Volume]:
            return [
                self._seen(name, size)
                for name, size in sorted(self._shelf.sizes().items())
                if naming.VOLUME.fullmatch(name)
            ]

        return await self._do("list volumes", look)

    async def grant(self, key: str, host_nqn: str, *, keys: HostKeys, shared: bool) -> Volume:
        if keys.tls_psk:
            raise InvalidArgument("the kernel's target takes no TLS keys from here; leave encryptionInTransit away")
        async with self._locks.hold(key):
            volume = await self.get(key)
            others = [host for host in volume.hosts if host != host_nqn]
            if others and not shared:
                raise FailedPrecondition(
                    f"volume {self._id(key)} is in use by {', '.join(others)}; unpublish it there first"
                )
            if not volume.exported:
                await self._do("offer", lambda: self._target.offer(self._id(key), self._shelf.path(key), self._ports))
            await self._do("let the host in", lambda: self._target.admit(self._nqn(key), host_nqn, keys))
            return volume

    async def revoke(self, key: str, host_nqn: str) -> None:
        if naming.VOLUME.fullmatch(key):
            async with self._locks.hold(key):
                await self._do("cut the host off", lambda: self._target.expel(self._nqn(key), host_nqn, self._ports))

    async def expand(self, key: str, size: SizeRange) -> Volume:
        async with self._locks.hold(key):
            volume = await self.get(key)
            if size.limit and volume.size > size.limit:
                raise OutOfRange(f"volume {self._id(key)} has {volume.size} bytes already; volumes never shrink")
            if volume.size >= size.required:
                return volume
            wanted = await self._rounded(size)
            _, total = await self._do("look", self._shelf.free)
            if wanted > total:
                raise OutOfRange(f"{wanted} bytes are more than {self._place} has in all ({total})")

            def grow() -> None:
                self._shelf.grow(key, wanted)
                self._target.resized(self._nqn(key))

            await self._do("grow", grow)
            return await self.get(key)

    # --- snapshots --------------------------------------------------------------------------------------------------

    async def snapshot(self, token: str, source_key: str) -> Snapshot:
        if not self._clones:
            raise InvalidArgument(f"{self._place} has no reflinks, so there are no snapshots")
        async with self._locks.hold(f"snapshot {token}"):
            for present in await self.snapshots():
                name = naming.parse_snapshot(present.key)
                if name is not None and name.token == token:
                    if present.source_key == source_key:
                        return present
                    raise AlreadyExists(f"the snapshot exists, but of volume {self._id(present.source_key)}")
            async with self._locks.hold(source_key):
                volume = await self.get(source_key)
                made = naming.SnapshotName(token=token, created=int(time.time()), source=source_key)
                await self._do("snapshot", lambda: self._shelf.snapshot(source_key, str(made)))
                return _snapshot(str(made), volume.size)

    async def delete_snapshot(self, key: str) -> None:
        if naming.SNAPSHOT.fullmatch(key):
            await self._do("delete", lambda: self._shelf.delete(key))

    async def snapshots(self) -> Sequence[Snapshot]:
        def look() -> list[Snapshot]:
            return [
                _snapshot(name, size)
                for name, size in sorted(self._shelf.sizes().items())
                if naming.SNAPSHOT.fullmatch(name)
            ]

        return await self._do("list snapshots", look)

    # --- the storage as a whole -------------------------------------------------------------------------------------

    async def capacity(self, parameters: NvmetParameters | None, topology: Segments | None) -> Capacity:
        free, total = await self._do("look", self._shelf.free)
        thick = parameters is not None and parameters.provisioning == "thick"
        return Capacity(
            available=free, largest=free if thick else total, smallest=await self._do("look", self._shelf.unit)
        )

    async def converge(self, wanted: Mapping[str, Mapping[str, HostKeys]], qos: Mapping[str, Qos]) -> None:
        for volume in await self.volumes():
            async with self._locks.hold(volume.key):
                restore = functools.partial(self._restore, volume.key, wanted.get(volume.key, {}))
                await self._do("restore", restore)

    async def garbage(self) -> Sequence[Finding]:
        def look() -> list[Finding]:
            files = self._shelf.sizes()
            found: list[Finding] = []
            for nqn in self._target.subsystems():
                volume = volume_of_nqn(nqn)
                if volume is not None and volume.backend == self.name and volume.key not in files:
                    found.append(
                        Finding(kind="subsystem", name=nqn, reason="its volume does not exist", volume_key=volume.key)
                    )
            found.extend(
                Finding(kind="unfinished", name=name, reason=reason)
                for name, reason in sorted(self._shelf.unfinished().items())
            )
            return found

        return await self._do("look for leftovers", look)

    async def remove(self, finding: Finding) -> None:
        if finding not in await self.garbage():
            return
        if finding.kind == "subsystem":
            await self._do("withdraw", lambda: self._target.withdraw(finding.name))
        else:
            await self._do("delete", lambda: self._shelf.delete_unfinished(finding.name))

    # --- inner ------------------------------------------------------------------------------------------------------

    def _id(self, key: str) -> VolumeId:
        return VolumeId(self.name, key)

    def _nqn(self, key: str) -> str:
        return subsystem_nqn(self._id(key))

    async def _rounded(self, size: SizeRange) -> int:
        unit = await self._do("look", self._shelf.unit)
        return rounded(size, cluster=unit, default=self._config.default_size)

    def _look(self, key: str) -> Volume:
        size = self._shelf.size(key) if naming.VOLUME.fullmatch(key) else None
        if size is None:
            raise NotFound(f"volume {self._id(key)} does not exist in {self._place}")
        return self._seen(key, size)

    def _seen(self, key: str, size: int) -> Volume:
        nqn = self._nqn(key)
        return Volume(
            key=key,
            size=size,
            portals=self._config.portals,
            hosts=self._target.hosts(nqn),
            exported=self._target.offered(nqn, self._ports),
        )

    def _restore(self, key: str, hosts: Mapping[str, HostKeys]) -> None:
        try:
            volume = self._look(key)
        except NotFound:
            return
        if not volume.exported:
            self._target.offer(self._id(key), self._shelf.path(key), self._ports)
        for host, keys in hosts.items():
            if host not in volume.hosts:
                self._target.admit(self._nqn(key), host, keys)

    async def _make(self, name: str, size: int, spec: VolumeSpec[NvmetParameters]) -> None:
        _, total = await self._do("look", self._shelf.free)
        if size > total:
            raise OutOfRange(f"{size} bytes are more than {self._place} has in all ({total})")
        thick = spec.parameters.provisioning == "thick"
        if spec.source is None:
            await self._do("create", lambda: self._shelf.create(name, size, thick=thick))
            return
        source = spec.source.key
        have = await self._do("look", lambda: self._shelf.size(source) if _fits(spec) else None)
        if have is None:
            raise NotFound(f"source {spec.source.kind} {self._id(source)} does not exist")
        if spec.size.limit and have > spec.size.limit:
            raise OutOfRange(f"source {self._id(source)} has {have} bytes, more than limit_bytes {spec.size.limit}")

        await self._do("clone", lambda: self._shelf.clone(source, name, size))

    async def _compare_source(self, name: str, spec: VolumeSpec[NvmetParameters]) -> None:
        made_from = await self._do("look", lambda: self._shelf.source(name))
        if made_from != (spec.source.key if spec.source else ""):
            raise AlreadyExists(f"volume {self._id(name)} exists, but was made from {made_from or 'nothing'}")

    async def _do(self, what: str, work: Callable[[], R]) -> R:
        try:
            return await asyncio.to_thread(work)
        except FileNotFoundError as error:
            raise Unavailable(
                f"backend {self.name}: {what}: {error}; is nvmet loaded and the directory mounted?"
            ) from error
        except OSError as error:
            raise Internal(f"backend {self.name}: {what}: {error}") from error


def _shelf(config: NvmetConfig) -> Shelf:
    if bool(config.directory) == bool(config.volume_group):
        raise ValueError("directory, volume_group: the volumes need one of them, and not both")
    if bool(config.volume_group) != bool(config.thin_pool):
        raise ValueError("volume_group, thin_pool: logical volumes need both")
    return Lvm(config.volume_group, config.thin_pool) if config.volume_group else Files(Path(config.directory))


def _fits(spec: VolumeSpec[NvmetParameters]) -> bool:
    assert spec.source is not None
    pattern = naming.VOLUME if spec.source.kind == "volume" else naming.SNAPSHOT
    return pattern.fullmatch(spec.source.key) is not None


def _snapshot(name: str, size: int) -> Snapshot:
    parsed = naming.parse_snapshot(name)
    assert parsed is not None
    return Snapshot(key=name, source_key=parsed.source, size=size, created=parsed.created)
