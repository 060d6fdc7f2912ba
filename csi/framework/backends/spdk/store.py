"""What the verbs of backend kind `spdk` stand on: its pools with their targets, and one look at a volume."""

import asyncio
from pathlib import Path

from csi.errors import CsiError, FailedPrecondition, InvalidArgument, NotFound
from csi.framework import naming as names
from csi.framework.backend import HostKeys, Snapshot, Volume
from csi.framework.backends.spdk.calls import Target
from csi.framework.backends.spdk.config import SpdkConfig, SpdkParameters
from csi.framework.backends.spdk.exports import Exports
from csi.framework.backends.spdk.keyring import Keyring
from csi.framework.backends.spdk.pool import Pool
from csi.framework.backends.spdk.records import Bdev, Subsystem
from csi.framework.locks import Locks
from csi.identity import VolumeId, subsystem_nqn


class Store:
    """Keeps nothing that SPDK does not hold; `locks`, by lvol name, only keep verbs on one volume apart."""

    def __init__(self, name: str, config: SpdkConfig) -> None:
        self.name = name
        self.config = config
        self.locks = Locks()
        self.targets: dict[str, Target] = {}
        self.exports: dict[str, Exports] = {}
        self.pools: dict[str, Pool] = {}
        self.keyrings: dict[str, Keyring] = {}
        if not config.pools:
            raise ValueError("pools: at least one pool is needed")
        for pool_name, pool in config.pools.items():
            if not names.POOL.fullmatch(pool_name):
                raise ValueError(f"pools.{pool_name}: a pool's name is 1 to 31 of a-z, 0-9 and -, a letter first")
            if any(portal.transport != "tcp" or portal in pool.portals for portal in pool.secure_portals):
                raise ValueError(
                    f"pools.{pool_name}.secure_portals: TLS is for TCP, on ports that `portals` do not name"
                )
            if not pool.portals:
                raise ValueError(f"pools.{pool_name}.portals: at least one address for the DPUs is needed")
            target = self.targets.setdefault(pool.address, Target(pool.address, seconds=config.call_seconds))
            self.exports.setdefault(pool.address, Exports(target))
            self.pools[pool_name] = Pool(pool_name, pool, target)
            if pool.key_directory:
                seen_as = pool.target_key_directory or pool.key_directory
                self.keyrings[pool_name] = Keyring(target, Path(pool.key_directory), Path(seen_as))

    async def close(self) -> None:
        for target in self.targets.values():
            await target.client.close()

    def id(self, key: str) -> VolumeId:
        return VolumeId(self.name, key)

    def pool(self, name: str) -> Pool:
        if name not in self.pools:
            raise NotFound(f"backend {self.name} has no pool {name!r}; configured: {', '.join(sorted(self.pools))}")
        return self.pools[name]

    def chosen(self, parameters: SpdkParameters) -> list[Pool]:
        for name in parameters.pools:
            if name not in self.pools:
                known = ", ".join(sorted(self.pools))
                raise InvalidArgument(f"StorageClass parameter pool: backend {self.name} has no {name!r}, but {known}")
        return [self.pools[name] for name in parameters.pools] or list(self.pools.values())

    def exports_of(self, pool: Pool) -> Exports:
        return self.exports[pool.config.address]

    def volume(self, pool: Pool, key: str, size: int, subsystem: Subsystem | None) -> Volume:
        return Volume(
            key=key,
            size=size,
            portals=pool.config.portals,
            secure_portals=pool.config.secure_portals,
            topology=(pool.config.topology,) if pool.config.topology else (),
            hosts=tuple(sorted(host.nqn for host in subsystem.hosts)) if subsystem else (),
            exported=subsystem is not None and subsystem.whole(pool.config.listening),
        )

    def snapshot_record(self, pool: Pool, lvol: str, size: int) -> Snapshot:
        name = names.parse_snapshot(lvol)
        assert name is not None
        return Snapshot(
            key=names.Place(pool.name, lvol).key,
            source_key=names.Place(pool.name, name.source).key,
            size=size,
            created=name.created,
            group=f"g{name.token}" if name.members else "",
        )

    async def look(self, key: str) -> tuple[Pool, Bdev, Subsystem | None]:
        place = names.volume_place(key)
        pool = self.pool(place.pool)
        bdev, subsystem = await asyncio.gather(
            pool.find(place.lvol), self.exports_of(pool).find(subsystem_nqn(self.id(key)))
        )
        if bdev is None:
            raise NotFound(f"volume {self.id(key)} does not exist in lvol store {pool.config.lvstore}")
        return pool, bdev, subsystem

    async def admit(
        self, pool: Pool, key: str, subsystem: Subsystem | None, host: str, keys: HostKeys, *, shared: bool
    ) -> None:
        """Lets a host in, into an export that is whole and listens as the host's keys demand."""
        secure = bool(keys.tls_psk)
        if secure and not pool.config.secure_portals:
            raise FailedPrecondition(f"pool {pool.name} has no secure_portals: nothing of it is encrypted in transit")
        others = [each.nqn for each in subsystem.hosts if each.nqn != host] if subsystem else []
        who, elsewhere = f"volume {self.id(key)}", ", ".join(others)
        if others and not shared:
            raise FailedPrecondition(
                f"{who} is in use by {elsewhere}: if not shared it has one host at a time; unpublish it there first"
            )
        before = await self.secure(pool, subsystem)
        if others and before != secure:
            how = "without" if secure else "with"
            raise FailedPrecondition(f"{who} is in use {how} TLS by {elsewhere}; unpublish it there first")
        keyring = self.keyrings.get(pool.name)
        if subsystem is not None and host in [each.nqn for each in subsystem.hosts] and keyring is not None:
            known = await keyring.psks(subsystem.nqn, host)
            if known and keyring.name(subsystem.nqn, host, "psk", keys.tls_psk) not in known:
                raise FailedPrecondition(
                    f"{who} is attached with another TLS key by {host}: SPDK takes one only when it connects; "
                    "unpublish the volume and publish it again"
                )
        if (
            subsystem is None
            or not subsystem.whole(pool.config.listening)
            or not subsystem.listens(pool.config.listening, secure=secure)
        ):
            subsystem = await self.ensure_export(key, known=subsystem, looked=True, secure=secure)
        await self.exports_of(pool).admit(subsystem, host, keys=keys, keyring=keyring)

    async def secure(self, pool: Pool, subsystem: Subsystem | None) -> bool:
        """Whether those who are let in have to use TLS. SPDK's hosts do not tell; listeners do, or else keys."""
        if subsystem is None or not subsystem.hosts:
            return False
        if any(map(subsystem.listens_at, pool.config.secure_portals)):
            return True
        keyring = self.keyrings.get(pool.name)
        if keyring is None or any(map(subsystem.listens_at, pool.config.portals)):
            return False
        return any([await keyring.psks(subsystem.nqn, host.nqn) for host in subsystem.hosts])

    async def ensure_export(
        self, key: str, *, known: Subsystem | None, looked: bool, secure: bool | None = None
    ) -> Subsystem:
        """`secure` None: as those who are let in already need it."""
        pool = self.pool(names.volume_place(key).pool)
        exports, nqn = self.exports_of(pool), subsystem_nqn(self.id(key))
        bdev = pool.bdev_name(names.volume_place(key).lvol)
        if not looked:
            known = await exports.find(nqn)
        for attempt in (1, 2):
            wanted = await self.secure(pool, known) if secure is None else secure
            try:
                await exports.ensure(self.id(key), bdev, pool.config.listening, known=known, secure=wanted)
                break
            except CsiError:
                # A remainder of an earlier life of the name: look again, and do what is then still missing.
                known = await exports.find(nqn)
                if known is None or attempt == 2:
                    raise
        return known or Subsystem(nqn=nqn)
