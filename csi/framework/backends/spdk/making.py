"""Creation of a volume: where it goes, how it is made from its source, and whether one of its name is the same."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from csi.errors import AlreadyExists, CsiError, InvalidArgument, NotFound, OutOfRange
from csi.framework import naming as names
from csi.framework.backend import Source, VolumeSpec
from csi.framework.backends.spdk import placement
from csi.framework.backends.spdk.config import SpdkParameters
from csi.framework.backends.spdk.pool import Pool
from csi.framework.backends.spdk.records import Bdev
from csi.framework.backends.spdk.store import Store


class Survey(NamedTuple):
    """Where a volume is, the pools that answer, and why the others do not."""

    found: tuple[Pool, Bdev] | None
    states: Sequence[placement.PoolState]
    failures: Mapping[str, CsiError]


class Maker:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def survey(self, lvol: str) -> Survey:
        """Where the volume is already, and how all pools are. Raises when none answers."""
        pools = list(self._store.pools.values())
        looks = await asyncio.gather(*(self._look(pool, lvol) for pool in pools), return_exceptions=True)
        states: list[placement.PoolState] = []
        found: tuple[Pool, Bdev] | None = None
        failures: dict[str, CsiError] = {}
        for pool, look in zip(pools, looks, strict=True):
            if isinstance(look, CsiError):
                failures[pool.name] = look
            elif isinstance(look, BaseException):
                raise look
            else:
                state, bdev = look
                states.append(state)
                if bdev is not None:
                    found = (pool, bdev)
        if found is None and not states:
            raise next(iter(failures.values()))
        return Survey(found, states, failures)

    async def _look(self, pool: Pool, lvol: str) -> tuple[placement.PoolState, Bdev | None]:
        """The store is asked for first: once it is there, a volume that is not seen does not exist."""
        return await asyncio.gather(pool.state(), pool.glance(lvol))

    def place(self, spec: VolumeSpec[SpdkParameters], seen: Survey) -> tuple[Pool, int]:
        allowed = set(spec.parameters.pools or self._store.pools)
        if spec.source is not None:
            # A clone shares clusters with its source, so it lives in the same store.
            place = (names.volume_place if spec.source.kind == "volume" else names.snapshot_place)(spec.source.key)
            self._store.pool(place.pool)
            if place.pool not in allowed:
                raise InvalidArgument(
                    f"source {spec.source.kind} {self._store.id(spec.source.key)} is in pool {place.pool}, the "
                    f"StorageClass says pool={spec.parameters.pool}: data cannot be cloned across pools"
                )
            allowed = {place.pool}
        answering = [state for state in seen.states if state.name in allowed]
        if not answering:
            raise seen.failures[min(allowed)]
        chosen, size = placement.choose(
            answering,
            spec.size,
            thick=spec.parameters.provisioning == "thick" and spec.source is None,
            default=self._store.config.default_size,
            requisite=spec.requisite,
            preferred=spec.preferred,
        )
        return self._store.pool(chosen.name), size

    async def make(self, pool: Pool, size: int, spec: VolumeSpec[SpdkParameters]) -> int:
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
                raise NotFound(f"source snapshot {self._store.id(spec.source.key)} was deleted")
        else:
            origin = names.volume_place(spec.source.key).lvol
            if origin == final:
                raise NotFound(f"source volume {self._store.id(spec.source.key)} is the volume to be made itself")
            base = names.bridge(spec.token, origin)
            async with self._store.locks.hold(origin):
                self._fit_source(await pool.find(origin), spec)
                await pool.snapshot(origin, base)
        self._fit_source(await pool.find(base), spec)
        await pool.clone(base, raw)
        made = await pool.grow(raw, size)
        await pool.rename(raw, final)
        return made.size

    async def compare(self, pool: Pool, bdev: Bdev, spec: VolumeSpec[SpdkParameters]) -> None:
        who = f"volume {self._store.id(names.Place(pool.name, names.volume(spec.token)).key)} exists"
        if bdev.size < spec.size.required or (spec.size.limit and bdev.size > spec.size.limit):
            raise AlreadyExists(
                f"{who} with {bdev.size} bytes, which is not within {spec.size.required}..{spec.size.limit}"
            )
        if spec.requisite and not any(placement.reaches(pool.config.topology, term) for term in spec.requisite):
            raise AlreadyExists(f"{who} in pool {pool.name}, which is not reachable from the topology asked for")
        if spec.parameters.pools and pool.name not in spec.parameters.pools:
            raise AlreadyExists(f"{who} in pool {pool.name}, not in {spec.parameters.pool}")
        source = await self._source(pool, bdev, names.volume(spec.token))
        if spec.source is None and source is None:
            if bdev.lvol.thin_provision != (spec.parameters.provisioning == "thin") and not bdev.lvol.clone:
                raise AlreadyExists(f"{who}, but is not {spec.parameters.provisioning}")
        elif source != spec.source:
            made = f"from {source.kind} {self._store.id(source.key)}" if source else "empty"
            raise AlreadyExists(f"{who}, but was made {made}")

    def _fit_source(self, source: Bdev | None, spec: VolumeSpec[SpdkParameters]) -> None:
        assert spec.source is not None
        what = f"source {spec.source.kind} {self._store.id(spec.source.key)}"
        if source is None:
            raise NotFound(f"{what} does not exist")
        if spec.size.limit and source.size > spec.size.limit:
            raise OutOfRange(f"{what} has {source.size} bytes, more than limit_bytes {spec.size.limit}")

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
