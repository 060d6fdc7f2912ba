"""The verbs of backend kind `spdk`: each looks at what is there, then does only what is missing."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

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
    Source,
    Volume,
    VolumeSpec,
)
from csi.framework.backends.spdk import placement
from csi.framework.backends.spdk.calls import Target
from csi.framework.backends.spdk.config import SpdkConfig, SpdkParameters
from csi.framework.backends.spdk.exports import Exports
from csi.framework.backends.spdk.keyring import Keyring
from csi.framework.backends.spdk.pool import Pool
from csi.framework.backends.spdk.records import Bdev, Subsystem
from csi.framework.locks import Locks
from csi.framework.sizes import rounded
from csi.identity import VolumeId, subsystem_nqn, volume_of_nqn
from foundation.spdk.errors import SpdkUnavailable

_log = logging.getLogger(__name__)


class SpdkBackend:
    """Keeps nothing that SPDK does not hold; locks only keep verbs on one volume apart."""

    def __init__(self, name: str, config: SpdkConfig) -> None:
        self.name = name
        self._config = config
        self._locks = Locks()
        self._tasks: set[asyncio.Task[None]] = set()
        self._callbacks: list[Callable[[], Awaitable[None]]] = []
        self._targets: dict[str, Target] = {}
        self._exports: dict[str, Exports] = {}
        self._pools: dict[str, Pool] = {}
        self._keyrings: dict[str, Keyring] = {}
        if not config.pools:
            raise ValueError("pools: at least one pool is needed")
        for pool_name, pool in config.pools.items():
            if not names.POOL.fullmatch(pool_name):
                raise ValueError(f"pools.{pool_name}: a pool's name is 1 to 31 of a-z, 0-9 and -, a letter first")
            if not pool.portals:
                raise ValueError(f"pools.{pool_name}.portals: at least one address for the DPUs is needed")
            target = self._targets.setdefault(pool.address, Target(pool.address, seconds=config.call_seconds))
            self._exports.setdefault(pool.address, Exports(target))
            self._pools[pool_name] = Pool(pool_name, pool, target)
            if pool.key_directory:
                seen_as = pool.target_key_directory or pool.key_directory
                self._keyrings[pool_name] = Keyring(target, Path(pool.key_directory), Path(seen_as))

    @property
    def capabilities(self) -> Capabilities:
        secrets = bool(self._keyrings)
        return Capabilities(
            expand=True,
            snapshots=True,
            clones=True,
            group_snapshots=True,
            qos=True,
            capacity=True,
            authentication=secrets,
            encryption_in_transit=secrets,
        )

    # --- life -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        for address, target in self._targets.items():
            target.client.on_connect(lambda address=address: self._returned(address))  # type: ignore[misc]  # default binds the loop variable
            self._spawn(self._first_connection(target))

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for target in self._targets.values():
            await target.client.close()

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

    def _returned(self, address: str) -> None:
        self._exports[address].forget_transports()
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
        self._chosen(spec.parameters)
        async with self._locks.hold(spec.token):
            found, states = await self._survey(names.volume(spec.token))
            if found is not None:
                pool, bdev = found
                await self._compare(pool, bdev, spec)
            else:
                pool, size = self._place(spec, states)
                size = await self._make(pool, size, spec)
                bdev = None
            key = names.Place(pool.name, names.volume(spec.token)).key
            await self._ensure_export(key, known=None, looked=bdev is None)
            if spec.qos != NO_LIMITS:
                await self._of(pool).limit(pool.bdev_name(names.volume(spec.token)), spec.qos)
            if bdev is not None:
                return await self.get(key)
            return msgspec.structs.replace(self._volume(pool, key, size, None), exported=True)

    async def delete(self, key: str) -> None:
        try:
            place = names.volume_place(key)
            pool = self._pool(place.pool)
        except NotFound:
            return
        async with self._locks.hold(place.lvol):
            nqn = subsystem_nqn(self._id(key))
            subsystem = await self._of(pool).find(nqn)
            if subsystem is not None:
                if subsystem.hosts:
                    raise FailedPrecondition(
                        f"volume {self._id(key)} is published to {', '.join(host.nqn for host in subsystem.hosts)}: "
                        "unpublish it first"
                    )
                await self._of(pool).remove(nqn)
            await pool.delete(place.lvol)

    async def get(self, key: str) -> Volume:
        pool, bdev, subsystem = await self._look(key)
        return self._volume(pool, key, bdev.size, subsystem)

    async def volumes(self) -> Sequence[Volume]:
        volumes: list[Volume] = []
        for pool in self._pools.values():
            bdevs, subsystems = await asyncio.gather(pool.all(), self._of(pool).all())
            for lvol, bdev in bdevs.items():
                if names.VOLUME.fullmatch(lvol):
                    key = names.Place(pool.name, lvol).key
                    subsystem = subsystems.get(subsystem_nqn(self._id(key)))
                    volumes.append(self._volume(pool, key, bdev.size, subsystem))
        return sorted(volumes, key=lambda volume: volume.key)

    async def expand(self, key: str, size: SizeRange) -> Volume:
        place = names.volume_place(key)
        pool = self._pool(place.pool)
        async with self._locks.hold(place.lvol):
            _, bdev, subsystem = await self._look(key)
            if size.limit and bdev.size > size.limit:
                raise OutOfRange(
                    f"volume {self._id(key)} has {bdev.size} bytes, more than limit_bytes {size.limit}: "
                    "volumes never shrink"
                )
            if bdev.size < size.required:
                state = await pool.state()
                wanted = rounded(size, cluster=state.cluster, default=self._config.default_size)
                if not bdev.lvol.thin_provision:
                    placement.refuse_overfull(state, wanted - bdev.size)
                placement.refuse_oversized(state, wanted)
                bdev = await pool.grow(place.lvol, wanted)
            return self._volume(pool, key, bdev.size, subsystem)

    async def grant(self, key: str, host_nqn: str, *, keys: HostKeys, shared: bool) -> Volume:
        place = names.volume_place(key)
        async with self._locks.hold(place.lvol):
            pool, bdev, subsystem = await self._look(key)
            if subsystem is None or not subsystem.whole(pool.config.portals):
                subsystem = await self._ensure_export(key, known=subsystem, looked=True)
            await self._of(pool).admit(
                subsystem, host_nqn, keys=keys, keyring=self._keyrings.get(pool.name), shared=shared
            )
            return self._volume(pool, key, bdev.size, subsystem)

    async def revoke(self, key: str, host_nqn: str) -> None:
        try:
            place = names.volume_place(key)
            pool = self._pool(place.pool)
        except NotFound:
            return
        async with self._locks.hold(place.lvol):
            keyring = self._keyrings.get(pool.name)
            await self._of(pool).expel(subsystem_nqn(self._id(key)), host_nqn, keyring=keyring)

    async def set_qos(self, key: str, qos: Qos) -> None:
        _refuse_unsupported_limits(qos)
        place = names.volume_place(key)
        async with self._locks.hold(place.lvol):
            pool, _, subsystem = await self._look(key)
            if subsystem is None or not subsystem.whole(pool.config.portals):
                await self._ensure_export(key, known=subsystem, looked=True)
            await self._of(pool).limit(pool.bdev_name(place.lvol), qos)

    # --- snapshots --------------------------------------------------------------------------------------------------

    async def snapshot(self, token: str, source_key: str, *, group_token: str = "") -> Snapshot:
        place = names.volume_place(source_key)
        async with self._locks.hold(f"snapshot {group_token or token}"):
            wanted = group_token or token
            for present in await self.snapshots():
                name = names.parse_snapshot(present.key.partition(".")[2])
                if name is None or name.token != wanted or name.in_group != bool(group_token):
                    continue
                if present.source_key == source_key:
                    return present
                if not group_token:
                    raise AlreadyExists(
                        f"the snapshot exists, but of volume {self._id(present.source_key)} and not of "
                        f"{self._id(source_key)}: choose another name"
                    )
            async with self._locks.hold(place.lvol):
                pool, bdev, _ = await self._look(source_key)
                name = names.SnapshotName(
                    token=wanted, created=int(time.time()), source=place.lvol, in_group=bool(group_token)
                )
                while await pool.find(str(name)) is not None:
                    # One of the same name, deleted within this second, still lives hidden below its clones.
                    name = msgspec.structs.replace(name, created=name.created + 1)
                await pool.snapshot(place.lvol, str(name))
                return self._snapshot(pool, str(name), bdev.size)

    async def delete_snapshot(self, key: str) -> None:
        try:
            place = names.snapshot_place(key)
            pool = self._pool(place.pool)
        except NotFound:
            return
        async with self._locks.hold(place.lvol):
            await pool.discard_snapshot(place.lvol)

    async def snapshots(self) -> Sequence[Snapshot]:
        found: list[Snapshot] = []
        for pool in self._pools.values():
            bdevs = await pool.all()
            found.extend(
                self._snapshot(pool, lvol, bdev.size)
                for lvol, bdev in bdevs.items()
                if names.SNAPSHOT.fullmatch(lvol) and names.discarded(lvol) not in bdevs
            )
        return sorted(found, key=lambda snapshot: snapshot.key)

    # --- the storage as a whole -------------------------------------------------------------------------------------

    async def capacity(self, parameters: SpdkParameters | None, topology: Segments | None) -> Capacity:
        pools = self._chosen(parameters or SpdkParameters())
        states = await asyncio.gather(*(pool.state() for pool in pools))
        return placement.room(states, topology, thick=parameters is not None and parameters.provisioning == "thick")

    async def health(self, key: str) -> Condition:
        pool, bdev, subsystem = await self._look(key)
        if subsystem is None or not subsystem.namespaces:
            return Condition(abnormal=True, message=f"volume {self._id(key)} is not exported by its target")
        if not subsystem.whole(pool.config.portals):
            return Condition(abnormal=True, message=f"the target does not listen everywhere for volume {self._id(key)}")
        return Condition(abnormal=False, message=f"{bdev.size} bytes, {len(subsystem.hosts)} host(s) let in")

    async def converge(self, wanted: Mapping[str, Mapping[str, HostKeys]], qos: Mapping[str, Qos]) -> None:
        for pool in self._pools.values():
            bdevs, subsystems = await asyncio.gather(pool.all(), self._of(pool).all())
            for lvol in bdevs:
                if not names.VOLUME.fullmatch(lvol):
                    continue
                key = names.Place(pool.name, lvol).key
                known = subsystems.get(subsystem_nqn(self._id(key)))
                missing = set(wanted.get(key, {})) - ({host.nqn for host in known.hosts} if known else set())
                limits = qos.get(key)
                if limits is not None and bdevs[lvol].has_limits(limits):
                    limits = None
                whole = known is not None and known.whole(pool.config.portals)
                if not whole or missing or limits is not None:
                    await self._restore(key, wanted.get(key, {}), limits)

    async def garbage(self) -> Sequence[Finding]:
        found: list[Finding] = []
        for pool in self._pools.values():
            bdevs, subsystems = await asyncio.gather(pool.all(), self._of(pool).all())
            for nqn in subsystems:
                volume = volume_of_nqn(nqn)
                if volume is None or volume.backend != self.name:
                    continue
                owner, _, lvol = volume.key.partition(".")
                if owner == pool.name and lvol not in bdevs:
                    reason = "its volume does not exist"
                    found.append(Finding(kind="subsystem", name=nqn, reason=reason, volume_key=volume.key))
            marks = {names.discarded(lvol) for lvol in bdevs if names.SNAPSHOT.fullmatch(lvol)}
            for lvol, bdev in bdevs.items():
                key = names.Place(pool.name, lvol).key
                hidden = names.BRIDGE.fullmatch(lvol) or names.discarded(lvol) in bdevs
                if names.UNFINISHED.fullmatch(lvol):
                    found.append(Finding(kind="unfinished", name=key, reason="its creation was broken off"))
                elif names.DISCARDED.fullmatch(lvol) and lvol not in marks:
                    found.append(Finding(kind="unfinished", name=key, reason="the snapshot that it marks is gone"))
                elif hidden and len(bdev.lvol.clones) <= 1:
                    found.append(Finding(kind="snapshot", name=key, reason="hidden, and nothing needs it"))
        return found

    async def remove(self, finding: Finding) -> None:
        if finding not in await self.garbage():
            return
        if finding.kind == "subsystem":
            pool = self._pool(finding.volume_key.partition(".")[0])
            async with self._locks.hold(finding.volume_key.partition(".")[2]):
                if await pool.find(finding.volume_key.partition(".")[2]) is None:
                    await self._of(pool).remove(finding.name)
            return
        pool_name, _, lvol = finding.name.partition(".")
        pool = self._pool(pool_name)
        if finding.kind == "snapshot":
            await pool.sweep(lvol)
        elif finding.kind == "unfinished":
            async with self._locks.hold(lvol[1:]):
                await pool.delete(lvol)

    # --- inner ------------------------------------------------------------------------------------------------------

    def _id(self, key: str) -> VolumeId:
        return VolumeId(self.name, key)

    def _pool(self, name: str) -> Pool:
        if name not in self._pools:
            raise NotFound(f"backend {self.name} has no pool {name!r}; configured: {', '.join(sorted(self._pools))}")
        return self._pools[name]

    def _chosen(self, parameters: SpdkParameters) -> list[Pool]:
        for name in parameters.pools:
            if name not in self._pools:
                known = ", ".join(sorted(self._pools))
                raise InvalidArgument(f"StorageClass parameter pool: backend {self.name} has no {name!r}, but {known}")
        return [self._pools[name] for name in parameters.pools] or list(self._pools.values())

    def _of(self, pool: Pool) -> Exports:
        return self._exports[pool.config.address]

    def _volume(self, pool: Pool, key: str, size: int, subsystem: Subsystem | None) -> Volume:
        return Volume(
            key=key,
            size=size,
            portals=pool.config.portals,
            topology=(pool.config.topology,) if pool.config.topology else (),
            hosts=tuple(sorted(host.nqn for host in subsystem.hosts)) if subsystem else (),
            exported=subsystem is not None and subsystem.whole(pool.config.portals),
        )

    def _snapshot(self, pool: Pool, lvol: str, size: int) -> Snapshot:
        name = names.parse_snapshot(lvol)
        assert name is not None
        return Snapshot(
            key=names.Place(pool.name, lvol).key,
            source_key=names.Place(pool.name, name.source).key,
            size=size,
            created=name.created,
            group=f"g{name.token}" if name.in_group else "",
        )

    async def _look(self, key: str) -> tuple[Pool, Bdev, Subsystem | None]:
        place = names.volume_place(key)
        pool = self._pool(place.pool)
        bdev, subsystem = await asyncio.gather(pool.find(place.lvol), self._of(pool).find(subsystem_nqn(self._id(key))))
        if bdev is None:
            raise NotFound(f"volume {self._id(key)} does not exist in lvol store {pool.config.lvstore}")
        return pool, bdev, subsystem

    async def _survey(self, lvol: str) -> tuple[tuple[Pool, Bdev] | None, list[placement.PoolState]]:
        """Where the volume is already, and all pools that answer. Raises when none does."""
        pools = list(self._pools.values())
        looks = await asyncio.gather(
            *(asyncio.gather(pool.find(lvol), pool.state()) for pool in pools), return_exceptions=True
        )
        states: list[placement.PoolState] = []
        found: tuple[Pool, Bdev] | None = None
        failures: list[CsiError] = []
        for pool, look in zip(pools, looks, strict=True):
            if isinstance(look, CsiError):
                failures.append(look)
            elif isinstance(look, BaseException):
                raise look
            else:
                states.append(look[1])
                if look[0] is not None:
                    found = (pool, look[0])
        if found is None and not states:
            raise failures[0]
        return found, states

    def _place(self, spec: VolumeSpec[SpdkParameters], states: Sequence[placement.PoolState]) -> tuple[Pool, int]:
        allowed = list(states)
        if spec.source is not None:
            # A clone shares clusters with its source, so it lives in the same store.
            place = (names.volume_place if spec.source.kind == "volume" else names.snapshot_place)(spec.source.key)
            self._pool(place.pool)
            allowed = [state for state in states if state.name == place.pool]
        if spec.parameters.pools:
            allowed = [state for state in allowed if state.name in spec.parameters.pools]
        chosen, size = placement.choose(
            allowed,
            spec.size,
            thick=spec.parameters.provisioning == "thick" and spec.source is None,
            default=self._config.default_size,
            requisite=spec.requisite,
            preferred=spec.preferred,
        )
        return self._pool(chosen.name), size

    async def _make(self, pool: Pool, size: int, spec: VolumeSpec[SpdkParameters]) -> int:
        """The volume appears under its final name only when it is whole. Returns its bytes: never less than the
        source's, since a clone that is cut has lost data."""
        final = names.volume(spec.token)
        if spec.source is None:
            await pool.create(final, size=size, thick=spec.parameters.provisioning == "thick")
            return size
        raw = names.unfinished(spec.token)
        await pool.delete(raw)
        if spec.source.kind == "snapshot":
            base = names.snapshot_place(spec.source.key).lvol
            if await pool.hidden(base):
                raise NotFound(f"source snapshot {self._id(spec.source.key)} was deleted")
        else:
            origin = names.volume_place(spec.source.key).lvol
            base = names.bridge(spec.token, origin)
            async with self._locks.hold(origin):
                self._fit_source(await pool.find(origin), spec)
                await pool.snapshot(origin, base)
        self._fit_source(await pool.find(base), spec)
        await pool.clone(base, raw)
        made = await pool.grow(raw, size)
        await pool.rename(raw, final)
        return made.size

    def _fit_source(self, source: Bdev | None, spec: VolumeSpec[SpdkParameters]) -> None:
        assert spec.source is not None
        what = f"source {spec.source.kind} {self._id(spec.source.key)}"
        if source is None:
            raise NotFound(f"{what} does not exist")
        if spec.size.limit and source.size > spec.size.limit:
            raise OutOfRange(f"{what} has {source.size} bytes, more than limit_bytes {spec.size.limit}")

    async def _compare(self, pool: Pool, bdev: Bdev, spec: VolumeSpec[SpdkParameters]) -> None:
        who = f"volume {self._id(names.Place(pool.name, names.volume(spec.token)).key)} exists"
        if bdev.size < spec.size.required or (spec.size.limit and bdev.size > spec.size.limit):
            raise AlreadyExists(
                f"{who} with {bdev.size} bytes, which is not within {spec.size.required}..{spec.size.limit}"
            )
        if spec.parameters.pools and pool.name not in spec.parameters.pools:
            raise AlreadyExists(f"{who} in pool {pool.name}, not in {spec.parameters.pool}")
        source = await self._source(pool, bdev, names.volume(spec.token))
        if spec.source is None and source is None:
            if bdev.lvol.thin_provision != (spec.parameters.provisioning == "thin") and not bdev.lvol.clone:
                raise AlreadyExists(f"{who}, but is not {spec.parameters.provisioning}")
        elif source != spec.source:
            made = f"from {source.kind} {self._id(source.key)}" if source else "empty"
            raise AlreadyExists(f"{who}, but was made {made}")

    async def _source(self, pool: Pool, bdev: Bdev, lvol: str) -> Source | None:
        """What the volume was cloned from: down the chain of its own snapshots to the first that is another's."""
        base = bdev.lvol.base_snapshot
        while base:
            snapshot = names.parse_snapshot(base)
            if snapshot is not None and snapshot.source != lvol:
                return Source("snapshot", names.Place(pool.name, base).key)
            bridged = names.source_of_bridge(base)
            if bridged and bridged != lvol:
                return Source("volume", names.Place(pool.name, bridged).key)
            below = await pool.find(base)
            base = below.lvol.base_snapshot if below else ""
        return None

    async def _ensure_export(self, key: str, *, known: Subsystem | None, looked: bool) -> Subsystem:
        pool = self._pool(names.volume_place(key).pool)
        exports, nqn = self._of(pool), subsystem_nqn(self._id(key))
        lvol = names.volume_place(key).lvol
        if not looked:
            known = await exports.find(nqn)
        try:
            await exports.ensure(self._id(key), pool.bdev_name(lvol), pool.config.portals, known=known)
        except CsiError:
            # A remainder of an earlier life of the name: look again, and do what is then still missing.
            known = await exports.find(nqn)
            if known is None:
                raise
            await exports.ensure(self._id(key), pool.bdev_name(lvol), pool.config.portals, known=known)
        return known or Subsystem(nqn=nqn)

    async def _restore(self, key: str, hosts: Mapping[str, HostKeys], qos: Qos | None) -> None:
        place = names.volume_place(key)
        async with self._locks.hold(place.lvol):
            try:
                pool, _, known = await self._look(key)
            except NotFound:
                return
            subsystem = await self._ensure_export(key, known=known, looked=True)
            for host, keys in hosts.items():
                if all(present.nqn != host for present in subsystem.hosts):
                    keyring = self._keyrings.get(pool.name)
                    await self._of(pool).admit(subsystem, host, keys=keys, keyring=keyring, shared=True)
            if qos is not None:
                await self._of(pool).limit(pool.bdev_name(place.lvol), qos)


def _refuse_unsupported_limits(qos: Qos) -> None:
    if qos.read_iops or qos.write_iops:
        raise InvalidArgument("readIops, writeIops: SPDK limits reads and writes together; use readWriteIops")
    if qos.read_write_iops % 1000:
        raise InvalidArgument(f"readWriteIops {qos.read_write_iops}: SPDK's limits are whole thousands")
