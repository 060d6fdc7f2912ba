"""Keeping a target as it should be: exports brought back after a restart, leftovers found and removed."""

import asyncio
from collections.abc import Mapping, Sequence

from csi.errors import NotFound
from csi.framework import naming as names
from csi.framework.backend import Finding, HostKeys, Qos, Snapshot
from csi.framework.backends.spdk.groups import whole
from csi.framework.backends.spdk.store import Store
from csi.identity import subsystem_nqn, volume_of_nqn


class Upkeep:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def converge(self, wanted: Mapping[str, Mapping[str, HostKeys]], qos: Mapping[str, Qos]) -> None:
        for pool in self._store.pools.values():
            bdevs, subsystems = await asyncio.gather(pool.all(), self._store.exports_of(pool).all())
            for lvol in bdevs:
                if not names.VOLUME.fullmatch(lvol):
                    continue
                key = names.Place(pool.name, lvol).key
                known = subsystems.get(subsystem_nqn(self._store.id(key)))
                missing = set(wanted.get(key, {})) - ({host.nqn for host in known.hosts} if known else set())
                limits = qos.get(key)
                if limits is not None and bdevs[lvol].has_limits(limits):
                    limits = None
                secure = any(keys.tls_psk for keys in wanted.get(key, {}).values())
                whole = (
                    known is not None
                    and known.whole(pool.config.listening)
                    and known.listens(pool.config.listening, secure=secure)
                )
                if not whole or missing or limits is not None:
                    await self._restore(key, wanted, limits)

    async def garbage(self) -> Sequence[Finding]:
        found: list[Finding] = []
        seen: list[Snapshot] = []
        for pool in self._store.pools.values():
            bdevs, subsystems = await asyncio.gather(pool.all(), self._store.exports_of(pool).all())
            for nqn in subsystems:
                volume = volume_of_nqn(nqn)
                if volume is None or volume.backend != self._store.name:
                    continue
                owner, _, lvol = volume.key.partition(".")
                if owner == pool.name and lvol not in bdevs:
                    reason = "its volume does not exist"
                    found.append(Finding(kind="subsystem", name=nqn, reason=reason, volume_key=volume.key))
            shown = (lvol for lvol in bdevs if names.SNAPSHOT.fullmatch(lvol) and names.discarded(lvol) not in bdevs)
            seen += [self._store.snapshot_record(pool, lvol, 0) for lvol in shown]
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
        complete = set(whole(seen))
        reason = "others of its group snapshot are missing"
        found += [Finding(kind="unfinished", name=each.key, reason=reason) for each in seen if each not in complete]
        return found

    async def remove(self, finding: Finding) -> None:
        if finding not in await self.garbage():
            return
        if finding.kind == "subsystem":
            pool = self._store.pool(finding.volume_key.partition(".")[0])
            async with self._store.locks.hold(finding.volume_key.partition(".")[2]):
                if await pool.find(finding.volume_key.partition(".")[2]) is None:
                    await self._store.exports_of(pool).remove(finding.name)
            return
        pool_name, _, lvol = finding.name.partition(".")
        pool = self._store.pool(pool_name)
        if finding.kind == "snapshot":
            await pool.sweep(lvol)
        elif finding.kind == "unfinished":
            name = names.parse_snapshot(lvol)
            async with self._store.locks.hold(f"group {name.token}" if name is not None else f"v{lvol[1:]}"):
                if name is None:
                    await pool.delete(lvol)
                elif finding in await self.garbage():
                    await pool.discard_snapshot(lvol)

    async def _restore(self, key: str, wanted: Mapping[str, Mapping[str, HostKeys]], qos: Qos | None) -> None:
        place = names.volume_place(key)
        async with self._store.locks.hold(place.lvol):
            try:
                pool, _, known = await self._store.look(key)
            except NotFound:
                return
            # Only now: whom `revoke` has cut off before it gave up the lock is not wanted any more.
            hosts = wanted.get(key, {})
            secure = any(keys.tls_psk for keys in hosts.values()) if hosts else None
            known = await self._store.ensure_export(key, known=known, looked=True, secure=secure)
            for host, keys in hosts.items():
                if all(present.nqn != host for present in known.hosts):
                    await self._store.admit(pool, key, known, host, keys, shared=True)
                    known = await self._store.exports_of(pool).find(known.nqn) or known
            if qos is not None:
                await self._store.exports_of(pool).limit(pool.bdev_name(place.lvol), qos)
