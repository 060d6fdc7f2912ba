"""The verbs of backend kind `spdk`: each looks at what is there, then does only what is missing."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

from csi.errors import AlreadyExists, CsiError, FailedPrecondition, InvalidArgument, NotFound, OutOfRange
from csi.framework import naming as names
from csi.framework.backend import (
    NO_LIMITS,
    Capabilities,
    Capacity,
    Condition,
    Finding,
    HostKeys,
    Qos,
    Segments,
    SizeRange,
    Snapshot,
    Volume,
    VolumeSpec,
)
from csi.framework.backends.spdk import placement
from csi.framework.backends.spdk.calls import Target
from csi.framework.backends.spdk.config import SpdkConfig, SpdkParameters
from csi.framework.backends.spdk.groups import Groups, whole
from csi.framework.backends.spdk.making import Maker
from csi.framework.backends.spdk.store import Store
from csi.framework.backends.spdk.upkeep import Upkeep
from csi.framework.sizes import rounded
from csi.identity import subsystem_nqn
from foundation.spdk.errors import SpdkUnavailable

_log = logging.getLogger(__name__)


class SpdkBackend:
    """Each verb in a few lines; what they share is in the rooms beside this one."""

    def __init__(self, name: str, config: SpdkConfig) -> None:
        self.name = name
        self._store = Store(name, config)
        self._maker = Maker(self._store)
        self._groups = Groups(self._store)
        self._upkeep = Upkeep(self._store)
        self._tasks: set[asyncio.Task[None]] = set()
        self._callbacks: list[Callable[[], Awaitable[None]]] = []

    @property
    def capabilities(self) -> Capabilities:
        pools = self._store.pools.values()
        return Capabilities(
            expand=True,
            snapshots=True,
            clones=True,
            group_snapshots=True,
            qos=True,
            capacity=True,
            authentication=any(pool.config.key_directory for pool in pools),
            encryption_in_transit=any(pool.config.key_directory and pool.config.secure_portals for pool in pools),
        )

    # --- life -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        for target in self._store.targets.values():
            target.client.on_connect(self._returned)
            self._spawn(self._first_connection(target))

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._store.close()

    def on_return(self, callback: Callable[[], Awaitable[None]]) -> None:
        self._callbacks.append(callback)

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _first_connection(self, target: Target) -> None:
        while True:
            try:
                await target.client.connect(deadline=60)
                return
            except SpdkUnavailable as error:
                _log.warning("backend %s: %s", self.name, error)

    def _returned(self) -> None:
        for callback in self._callbacks:
            self._spawn(self._called(callback))

    async def _called(self, callback: Callable[[], Awaitable[None]]) -> None:
        try:
            await callback()
        except CsiError as error:
            _log.warning("backend %s: after the target's return: %s", self.name, error)

    # --- volumes ----------------------------------------------------------------------------------------------------

    async def create(self, spec: VolumeSpec[SpdkParameters]) -> Volume:
        _refuse_unsupported_limits(spec.qos)
        self._store.chosen(spec.parameters)
        async with self._store.locks.hold(names.volume(spec.token)):
            seen = await self._maker.survey(names.volume(spec.token))
            if seen.found is not None:
                pool, bdev = seen.found
                await self._maker.compare(pool, bdev, spec)
            else:
                pool, size = self._maker.place(spec, seen)
                size = await self._maker.make(pool, size, spec)
                bdev = None
            key = names.Place(pool.name, names.volume(spec.token)).key
            await self._store.ensure_export(key, known=None, looked=bdev is None)
            if spec.qos != NO_LIMITS:
                await self._store.exports_of(pool).limit(pool.bdev_name(names.volume(spec.token)), spec.qos)
            if bdev is not None:
                return await self.get(key)
            return msgspec.structs.replace(self._store.volume(pool, key, size, None), exported=True)

    async def delete(self, key: str) -> None:
        try:
            place = names.volume_place(key)
            pool = self._store.pool(place.pool)
        except NotFound:
            return
        async with self._store.locks.hold(place.lvol):
            nqn = subsystem_nqn(self._store.id(key))
            subsystem = await self._store.exports_of(pool).find(nqn)
            if subsystem is not None:
                if subsystem.hosts:
                    raise FailedPrecondition(
                        f"volume {self._store.id(key)} is published to "
                        f"{', '.join(host.nqn for host in subsystem.hosts)}: unpublish it first"
                    )
                await self._store.exports_of(pool).remove(nqn)
            await pool.delete(place.lvol)

    async def get(self, key: str) -> Volume:
        pool, bdev, subsystem = await self._store.look(key)
        return self._store.volume(pool, key, bdev.size, subsystem)

    async def volumes(self) -> Sequence[Volume]:
        volumes: list[Volume] = []
        for pool in self._store.pools.values():
            bdevs, subsystems = await asyncio.gather(pool.all(), self._store.exports_of(pool).all())
            for lvol, bdev in bdevs.items():
                if names.VOLUME.fullmatch(lvol):
                    key = names.Place(pool.name, lvol).key
                    subsystem = subsystems.get(subsystem_nqn(self._store.id(key)))
                    volumes.append(self._store.volume(pool, key, bdev.size, subsystem))
        return sorted(volumes, key=lambda volume: volume.key)

    async def expand(self, key: str, size: SizeRange) -> Volume:
        place = names.volume_place(key)
        pool = self._store.pool(place.pool)
        async with self._store.locks.hold(place.lvol):
            _, bdev, subsystem = await self._store.look(key)
            if size.limit and bdev.size > size.limit:
                raise OutOfRange(
                    f"volume {self._store.id(key)} has {bdev.size} bytes, more than limit_bytes {size.limit}: "
                    "volumes never shrink"
                )
            if bdev.size < size.required:
                state = await pool.state()
                wanted = rounded(size, cluster=state.cluster, default=self._store.config.default_size)
                if not bdev.lvol.thin_provision:
                    placement.refuse_overfull(state, wanted - bdev.size)
                placement.refuse_oversized(state, wanted)
                bdev = await pool.grow(place.lvol, wanted)
            return self._store.volume(pool, key, bdev.size, subsystem)

    async def grant(self, key: str, host_nqn: str, *, keys: HostKeys, shared: bool) -> Volume:
        place = names.volume_place(key)
        async with self._store.locks.hold(place.lvol):
            pool, bdev, subsystem = await self._store.look(key)
            await self._store.admit(pool, key, subsystem, host_nqn, keys, shared=shared)
            return self._store.volume(pool, key, bdev.size, subsystem)

    async def revoke(self, key: str, host_nqn: str) -> None:
        try:
            place = names.volume_place(key)
            pool = self._store.pool(place.pool)
        except NotFound:
            return
        async with self._store.locks.hold(place.lvol):
            keyring = self._store.keyrings.get(pool.name)
            await self._store.exports_of(pool).expel(subsystem_nqn(self._store.id(key)), host_nqn, keyring=keyring)

    async def set_qos(self, key: str, qos: Qos) -> None:
        _refuse_unsupported_limits(qos)
        place = names.volume_place(key)
        async with self._store.locks.hold(place.lvol):
            pool, _, subsystem = await self._store.look(key)
            if subsystem is None or not subsystem.whole(pool.config.listening):
                await self._store.ensure_export(key, known=subsystem, looked=True)
            await self._store.exports_of(pool).limit(pool.bdev_name(place.lvol), qos)

    # --- snapshots --------------------------------------------------------------------------------------------------

    async def snapshot(self, token: str, source_key: str) -> Snapshot:
        place = names.volume_place(source_key)
        async with self._store.locks.hold(f"snapshot {token}"):
            for present in await self._snapshots(needed=place.pool):
                name = names.parse_snapshot(names.snapshot_place(present.key).lvol)
                if name is None or name.token != token or name.members:
                    continue
                if present.source_key == source_key:
                    return present
                raise AlreadyExists(
                    f"the snapshot exists, but of volume {self._store.id(present.source_key)} and not of "
                    f"{self._store.id(source_key)}: choose another name"
                )
            async with self._store.locks.hold(place.lvol):
                pool, bdev, _ = await self._store.look(source_key)
                name = names.SnapshotName(token=token, created=int(time.time()), source=place.lvol)
                lvol = str(await pool.unused(name))
                await pool.snapshot(place.lvol, lvol)
                return self._store.snapshot_record(pool, lvol, bdev.size)

    async def delete_snapshot(self, key: str) -> None:
        try:
            place = names.snapshot_place(key)
            pool = self._store.pool(place.pool)
        except NotFound:
            return
        name = names.parse_snapshot(place.lvol)
        if name is not None and name.members:
            raise InvalidArgument(f"snapshot {self._store.id(key)} belongs to a group snapshot: delete that")
        async with self._store.locks.hold(place.lvol):
            await pool.discard_snapshot(place.lvol)

    async def snapshot_group(self, token: str, source_keys: Sequence[str]) -> Sequence[Snapshot]:
        return await self._groups.take(token, source_keys)

    async def delete_group(self, key: str) -> None:
        await self._groups.delete(key)

    async def snapshots(self) -> Sequence[Snapshot]:
        return await self._snapshots()

    async def _snapshots(self, *, needed: str = "") -> Sequence[Snapshot]:
        """Of all pools; with `needed` of that one, and of those others that answer."""
        found: list[Snapshot] = []
        for pool in self._store.pools.values():
            try:
                bdevs = await pool.all()
            except CsiError as error:
                if needed in ("", pool.name):
                    raise
                _log.warning("backend %s: %s; its snapshots are not looked at", self.name, error)
                continue
            found.extend(
                self._store.snapshot_record(pool, lvol, bdev.size)
                for lvol, bdev in bdevs.items()
                if names.SNAPSHOT.fullmatch(lvol) and names.discarded(lvol) not in bdevs
            )
        return sorted(whole(found), key=lambda snapshot: snapshot.key)

    # --- the storage as a whole -------------------------------------------------------------------------------------

    async def capacity(self, parameters: SpdkParameters | None, topology: Segments | None) -> Capacity:
        pools = self._store.chosen(parameters or SpdkParameters())
        states = await asyncio.gather(*(pool.state() for pool in pools))
        return placement.room(states, topology, thick=parameters is not None and parameters.provisioning == "thick")

    async def health(self, key: str) -> Condition:
        pool, bdev, subsystem = await self._store.look(key)
        if subsystem is None or not subsystem.namespaces:
            return Condition(abnormal=True, message=f"volume {self._store.id(key)} is not exported by its target")
        if not subsystem.whole(pool.config.listening):
            return Condition(
                abnormal=True, message=f"the target does not listen everywhere for volume {self._store.id(key)}"
            )
        return Condition(abnormal=False, message=f"{bdev.size} bytes, {len(subsystem.hosts)} host(s) let in")

    async def converge(self, wanted: Mapping[str, Mapping[str, HostKeys]], qos: Mapping[str, Qos]) -> None:
        await self._upkeep.converge(wanted, qos)

    async def garbage(self) -> Sequence[Finding]:
        return await self._upkeep.garbage()

    async def remove(self, finding: Finding) -> None:
        await self._upkeep.remove(finding)


def _refuse_unsupported_limits(qos: Qos) -> None:
    if qos.read_iops or qos.write_iops:
        raise InvalidArgument("readIops, writeIops: SPDK limits reads and writes together; use readWriteIops")
    if qos.read_write_iops % 1000:
        raise InvalidArgument(f"readWriteIops {qos.read_write_iops}: SPDK's limits are whole thousands")
