"""Snapshots of several volumes at one instant.

SPDK has no verb for it. So whoever is let into the volumes loses its connections first, by taking the listeners away:
its I/O waits (DPUs and hosts of this suite reconnect for ever and fail nothing meanwhile), no write can reach one
volume after another's snapshot, and the listeners come back when the last snapshot is taken. Killed in between, the
listeners come back with the next look at the exports, and what was taken is hidden garbage.
"""

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence

from csi.errors import AlreadyExists, CsiError
from csi.framework import naming as names
from csi.framework.backend import Snapshot
from csi.framework.backends.spdk.pool import Pool
from csi.framework.backends.spdk.records import Bdev, Subsystem
from csi.framework.backends.spdk.store import Store

Look = tuple[Pool, Bdev, Subsystem | None]


class Groups:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def take(self, token: str, source_keys: Sequence[str]) -> Sequence[Snapshot]:
        """What a broken-off call of the same group has left is of another instant, and is taken anew."""
        keys = sorted(set(source_keys))
        members = names.members(keys)
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._store.locks.hold(f"group {token}"))
            for lvol in sorted({names.volume_place(key).lvol for key in keys}):
                await stack.enter_async_context(self._store.locks.hold(lvol))
            present = await self._present(f"g{token}")
            if any(_members(snapshot) != members for snapshot in present):
                raise AlreadyExists("the group snapshot exists, but of other volumes: choose another name")
            if len(present) == len(keys):
                return present
            await self._discard(snapshot.key for snapshot in present)
            looks = {key: await self._store.look(key) for key in keys}
            return await self._at_once(token, members, looks)

    async def delete(self, group: str) -> None:
        async with self._store.locks.hold(f"group {group[1:]}"):
            await self._discard([snapshot.key for snapshot in await self._present(group)])

    async def _at_once(self, token: str, members: str, looks: Mapping[str, Look]) -> Sequence[Snapshot]:
        in_use = [(key, pool, each) for key, (pool, _, each) in looks.items() if each is not None and each.hosts]
        interrupted = in_use if len(looks) > 1 else []
        secure = {key: await self._store.secure(pool, subsystem) for key, pool, subsystem in interrupted}
        taken: list[Snapshot] = []
        try:
            for _, pool, subsystem in interrupted:
                await self._store.exports_of(pool).silence(subsystem)
            created = int(time.time())
            for key, (pool, bdev, _) in looks.items():
                source = names.volume_place(key).lvol
                name = names.SnapshotName(token=token, created=created, source=source, members=members)
                lvol = str(await pool.unused(name))
                taken.append(self._store.snapshot_record(pool, lvol, bdev.size))
                await pool.snapshot(source, lvol)
        except CsiError:
            await self._discard(snapshot.key for snapshot in taken)
            raise
        finally:
            for key, _, _ in interrupted:
                await self._store.ensure_export(key, known=None, looked=False, secure=secure[key])
        return taken

    async def _present(self, group: str) -> list[Snapshot]:
        """Members that are there, whether or not all are."""
        found = []
        for pool in self._store.pools.values():
            bdevs = await pool.all()
            named = {lvol: bdev for lvol, bdev in bdevs.items() if lvol.startswith(f"{group}.")}
            found += [
                self._store.snapshot_record(pool, lvol, bdev.size)
                for lvol, bdev in named.items()
                if names.SNAPSHOT.fullmatch(lvol) and names.discarded(lvol) not in bdevs
            ]
        return sorted(found, key=lambda snapshot: snapshot.key)

    async def _discard(self, keys: Iterable[str]) -> None:
        for key in keys:
            place = names.snapshot_place(key)
            async with self._store.locks.hold(place.lvol):
                await self._store.pool(place.pool).discard_snapshot(place.lvol)


def whole(snapshots: Iterable[Snapshot]) -> list[Snapshot]:
    """Those that Kubernetes may see: single ones, and groups of which no member is missing."""
    found = list(snapshots)
    sources: dict[str, list[str]] = {}
    for snapshot in found:
        sources.setdefault(snapshot.group, []).append(snapshot.source_key)
    return [each for each in found if not each.group or names.members(sources[each.group]) == _members(each)]


def _members(snapshot: Snapshot) -> str:
    name = names.parse_snapshot(names.snapshot_place(snapshot.key).lvol)
    return name.members if name is not None else ""
