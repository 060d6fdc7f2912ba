"""What every storage backend must do, case by case. Subclass it, and give it a fixture `storage` (see `storage.py`).

Cases for verbs that the backend does not declare are skipped with the name of the capability.
"""

import asyncio
from typing import Any

import pytest

from csi import identity
from csi.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    ResourceExhausted,
)
from csi.framework.backend import NO_LIMITS, HostKeys, SizeRange, Source, Volume
from csi.framework.conformance.storage import Storage

NO_KEYS = HostKeys()


def needs(storage: Storage, capability: str) -> None:
    if not getattr(storage.backend.capabilities, capability):
        pytest.skip(f"the backend does not declare {capability}")


async def keys_of(storage: Storage) -> set[str]:
    return {volume.key for volume in await storage.backend.volumes()}


class VolumeCases:
    async def test_create_gives_the_size_asked_for(self, storage: Storage) -> None:
        volume = await storage.backend.create(storage.spec("a"))
        assert volume.size == storage.volume_bytes
        assert volume.portals
        assert volume.hosts == ()
        identity.parse_volume_id(f"{storage.backend.name}:{volume.key}")

    async def test_create_twice_is_one_volume(self, storage: Storage) -> None:
        first = await storage.backend.create(storage.spec("a"))
        second = await storage.backend.create(storage.spec("a"))
        assert first == second
        assert await keys_of(storage) == {first.key}

    async def test_create_at_once_from_many_callers_is_one_volume(self, storage: Storage) -> None:
        made = await asyncio.gather(*(storage.backend.create(storage.spec("a")) for _ in range(8)))
        assert len({volume.key for volume in made}) == 1
        assert await keys_of(storage) == {made[0].key}

    async def test_many_at_once(self, storage: Storage) -> None:
        made = await asyncio.gather(*(storage.backend.create(storage.spec(f"v{i}")) for i in range(10)))
        assert await keys_of(storage) == {volume.key for volume in made}
        await asyncio.gather(*(storage.backend.delete(volume.key) for volume in made))
        assert await keys_of(storage) == set()

    async def test_same_name_other_size_is_refused(self, storage: Storage) -> None:
        await storage.backend.create(storage.spec("a"))
        with pytest.raises(AlreadyExists):
            await storage.backend.create(storage.spec("a", size=2 * storage.volume_bytes))

    async def test_a_size_within_the_same_range_is_the_same_volume(self, storage: Storage) -> None:
        first = await storage.backend.create(storage.spec("a"))
        again = storage.spec("a", size=1, limit=storage.volume_bytes)
        assert await storage.backend.create(again) == first

    async def test_odd_sizes_are_rounded_up_within_the_limit(self, storage: Storage) -> None:
        volume = await storage.backend.create(storage.spec("a", size=storage.volume_bytes + 1))
        assert volume.size > storage.volume_bytes

    async def test_impossible_sizes_change_nothing(self, storage: Storage) -> None:
        with pytest.raises((OutOfRange, ResourceExhausted)):
            await storage.backend.create(storage.spec("a", size=1 << 60))
        with pytest.raises((OutOfRange, InvalidArgument)):
            await storage.backend.create(storage.spec("b", size=2, limit=1))
        assert await keys_of(storage) == set()

    async def test_delete_is_idempotent(self, storage: Storage) -> None:
        volume = await storage.backend.create(storage.spec("a"))
        await storage.backend.delete(volume.key)
        await storage.backend.delete(volume.key)
        assert await keys_of(storage) == set()
        with pytest.raises(NotFound):
            await storage.backend.get(volume.key)

    @pytest.mark.parametrize("key", ["", "x", "..", "no.such", "a" * 91])
    async def test_unknown_keys(self, storage: Storage, key: str) -> None:
        await storage.backend.delete(key)
        await storage.backend.revoke(key, storage.hosts[0])
        for work in (
            storage.backend.get(key),
            storage.backend.grant(key, storage.hosts[0], keys=NO_KEYS, shared=False),
            storage.backend.health(key),
        ):
            with pytest.raises(NotFound):
                await work

    async def test_get_and_list_agree(self, storage: Storage) -> None:
        made = [await storage.backend.create(storage.spec(name)) for name in ("a", "ключ", "c" * 300)]
        listed = {volume.key: volume for volume in await storage.backend.volumes()}
        for volume in made:
            assert listed[volume.key] == await storage.backend.get(volume.key) == volume

    async def test_health(self, storage: Storage) -> None:
        volume = await storage.backend.create(storage.spec("a"))
        condition = await storage.backend.health(volume.key)
        assert not condition.abnormal
        assert condition.message

    async def test_capacity_shrinks(self, storage: Storage) -> None:
        needs(storage, "capacity")
        before = await storage.backend.capacity(storage.parameters, None)
        assert 0 < before.smallest <= before.largest
        await storage.backend.create(storage.spec("a"))
        after = await storage.backend.capacity(storage.parameters, None)
        assert after.available <= before.available

    async def test_expand(self, storage: Storage) -> None:
        needs(storage, "expand")
        volume = await storage.backend.create(storage.spec("a"))
        await storage.backend.grant(volume.key, storage.hosts[0], keys=NO_KEYS, shared=False)
        wanted = 2 * storage.volume_bytes
        assert (await storage.backend.expand(volume.key, SizeRange(wanted))).size == wanted
        assert (await storage.backend.expand(volume.key, SizeRange(wanted))).size == wanted
        smaller = await storage.backend.expand(volume.key, SizeRange(storage.volume_bytes))
        assert smaller.size == wanted, "a volume never shrinks"
        assert (await storage.backend.get(volume.key)).size == wanted
        with pytest.raises(OutOfRange):
            await storage.backend.expand(volume.key, SizeRange(0, storage.volume_bytes))
        with pytest.raises((OutOfRange, ResourceExhausted)):
            await storage.backend.expand(volume.key, SizeRange(1 << 60))
        assert (await storage.backend.get(volume.key)).size == wanted

    async def test_limits(self, storage: Storage) -> None:
        needs(storage, "qos")
        volume = await storage.backend.create(storage.spec("a", qos=storage.limits))
        await storage.backend.set_qos(volume.key, storage.limits)
        await storage.backend.set_qos(volume.key, NO_LIMITS)
        with pytest.raises(NotFound):
            await storage.backend.set_qos("no.such", storage.limits)


class AccessCases:
    async def test_one_host_at_a_time_unless_shared(self, storage: Storage) -> None:
        one, two, three = storage.hosts
        volume = await storage.backend.create(storage.spec("a"))
        await storage.backend.grant(volume.key, one, keys=NO_KEYS, shared=False)
        await storage.backend.grant(volume.key, one, keys=NO_KEYS, shared=False)
        with pytest.raises(FailedPrecondition):
            await storage.backend.grant(volume.key, two, keys=NO_KEYS, shared=False)
        assert await self.hosts(storage, volume) == {one}
        await storage.backend.grant(volume.key, two, keys=NO_KEYS, shared=True)
        await storage.backend.grant(volume.key, three, keys=NO_KEYS, shared=True)
        assert await self.hosts(storage, volume) == {one, two, three}
        await storage.backend.revoke(volume.key, two)
        await storage.backend.revoke(volume.key, two)
        assert await self.hosts(storage, volume) == {one, three}

    async def test_of_two_hosts_at_once_one_wins(self, storage: Storage) -> None:
        volume = await storage.backend.create(storage.spec("a"))
        results = await asyncio.gather(
            *(storage.backend.grant(volume.key, host, keys=NO_KEYS, shared=False) for host in storage.hosts),
            return_exceptions=True,
        )
        assert sum(1 for result in results if isinstance(result, Volume)) == 1
        assert sum(1 for result in results if isinstance(result, FailedPrecondition)) == 2
        assert len(await self.hosts(storage, volume)) == 1

    async def test_a_volume_in_use_is_not_deleted(self, storage: Storage) -> None:
        volume = await storage.backend.create(storage.spec("a"))
        await storage.backend.grant(volume.key, storage.hosts[0], keys=NO_KEYS, shared=False)
        with pytest.raises(FailedPrecondition):
            await storage.backend.delete(volume.key)
        assert await self.hosts(storage, volume) == {storage.hosts[0]}
        await storage.backend.revoke(volume.key, storage.hosts[0])
        await storage.backend.delete(volume.key)
        assert await keys_of(storage) == set()

    async def test_creating_again_lets_nobody_out_or_in(self, storage: Storage) -> None:
        volume = await storage.backend.create(storage.spec("a"))
        await storage.backend.grant(volume.key, storage.hosts[0], keys=NO_KEYS, shared=False)
        assert (await storage.backend.create(storage.spec("a"))).key == volume.key
        assert await self.hosts(storage, volume) == {storage.hosts[0]}

    async def test_after_a_restart_of_the_storage_access_comes_back(self, storage: Storage) -> None:
        if storage.restart is None:
            pytest.skip("the storage of this run cannot be restarted")
        one, two, _ = storage.hosts
        volume = await storage.backend.create(storage.spec("a"))
        other = await storage.backend.create(storage.spec("b"))
        await storage.backend.grant(volume.key, one, keys=NO_KEYS, shared=False)
        await storage.restart()
        wanted = {volume.key: {one: NO_KEYS, two: NO_KEYS}}
        await storage.backend.converge(wanted, {})
        assert await self.hosts(storage, volume) == {one, two}
        assert await self.hosts(storage, other) == set()
        assert not (await storage.backend.health(other.key)).abnormal
        assert await storage.backend.garbage() == []

    async def hosts(self, storage: Storage, volume: Volume) -> set[str]:
        return set((await storage.backend.get(volume.key)).hosts)


class SnapshotCases:
    async def test_snapshot_twice_is_one(self, storage: Storage) -> None:
        needs(storage, "snapshots")
        volume = await storage.backend.create(storage.spec("a"))
        first = await storage.backend.snapshot(identity.hashed("s"), volume.key)
        again = await storage.backend.snapshot(identity.hashed("s"), volume.key)
        assert first == again
        assert (first.source_key, first.size, first.ready) == (volume.key, volume.size, True)
        assert first.created > 1_600_000_000
        assert list(await storage.backend.snapshots()) == [first]

    async def test_a_name_is_for_one_source(self, storage: Storage) -> None:
        needs(storage, "snapshots")
        one = await storage.backend.create(storage.spec("a"))
        two = await storage.backend.create(storage.spec("b"))
        await storage.backend.snapshot(identity.hashed("s"), one.key)
        with pytest.raises(AlreadyExists):
            await storage.backend.snapshot(identity.hashed("s"), two.key)
        with pytest.raises(NotFound):
            await storage.backend.snapshot(identity.hashed("t"), "no.such")

    async def test_snapshots_outlive_their_volume(self, storage: Storage) -> None:
        needs(storage, "snapshots")
        volume = await storage.backend.create(storage.spec("a"))
        snapshot = await storage.backend.snapshot(identity.hashed("s"), volume.key)
        await storage.backend.delete(volume.key)
        assert list(await storage.backend.snapshots()) == [snapshot]
        restored = await storage.backend.create(storage.spec("b", source=Source("snapshot", snapshot.key)))
        assert restored.size == snapshot.size
        await storage.backend.delete_snapshot(snapshot.key)
        await storage.backend.delete_snapshot(snapshot.key)
        assert await storage.backend.snapshots() == []
        assert await keys_of(storage) == {restored.key}

    async def test_restore_larger_and_twice(self, storage: Storage) -> None:
        needs(storage, "snapshots")
        volume = await storage.backend.create(storage.spec("a"))
        snapshot = await storage.backend.snapshot(identity.hashed("s"), volume.key)
        source = Source("snapshot", snapshot.key)
        larger = storage.spec("b", size=2 * storage.volume_bytes, source=source)
        first = await storage.backend.create(larger)
        assert first.size == 2 * storage.volume_bytes
        assert (await storage.backend.create(larger)).key == first.key
        with pytest.raises(AlreadyExists):
            await storage.backend.create(storage.spec("b", size=2 * storage.volume_bytes))
        with pytest.raises(AlreadyExists):
            await storage.backend.create(storage.spec("a", source=source))

    async def test_a_snapshot_with_volumes_of_it_can_go_in_any_order(self, storage: Storage) -> None:
        needs(storage, "snapshots")
        volume = await storage.backend.create(storage.spec("a"))
        snapshot = await storage.backend.snapshot(identity.hashed("s"), volume.key)
        source = Source("snapshot", snapshot.key)
        restored = [await storage.backend.create(storage.spec(name, source=source)) for name in ("b", "c")]
        await storage.backend.delete_snapshot(snapshot.key)
        assert await storage.backend.snapshots() == []
        assert await keys_of(storage) == {volume.key, *(each.key for each in restored)}
        for each in (restored[0], volume, restored[1]):
            await storage.backend.delete(each.key)
        assert await keys_of(storage) == set()
        assert await storage.backend.garbage() == []

    async def test_missing_sources(self, storage: Storage) -> None:
        needs(storage, "snapshots")
        volume = await storage.backend.create(storage.spec("a"))
        snapshot = await storage.backend.snapshot(identity.hashed("s"), volume.key)
        await storage.backend.delete_snapshot(snapshot.key)
        with pytest.raises(NotFound):
            await storage.backend.create(storage.spec("b", source=Source("snapshot", snapshot.key)))
        await storage.backend.delete(volume.key)
        if storage.backend.capabilities.clones:
            with pytest.raises(NotFound):
                await storage.backend.create(storage.spec("a", source=Source("volume", volume.key)))
            with pytest.raises(NotFound):
                await storage.backend.create(storage.spec("b", source=Source("volume", volume.key)))
        assert await keys_of(storage) == set()

    async def test_clone(self, storage: Storage) -> None:
        needs(storage, "clones")
        volume = await storage.backend.create(storage.spec("a"))
        source = Source("volume", volume.key)
        clone = await storage.backend.create(storage.spec("b", size=2 * storage.volume_bytes, source=source))
        assert clone.size == 2 * storage.volume_bytes
        again = await storage.backend.create(storage.spec("b", size=2 * storage.volume_bytes, source=source))
        assert again.key == clone.key
        assert await storage.backend.snapshots() == [], "what a clone needs inside is nobody's snapshot"
        await storage.backend.delete(volume.key)
        assert await keys_of(storage) == {clone.key}
        await storage.backend.delete(clone.key)
        assert await storage.backend.garbage() == []

    async def test_a_clone_is_never_smaller_than_its_source(self, storage: Storage) -> None:
        needs(storage, "clones")
        size = 2 * storage.volume_bytes
        volume = await storage.backend.create(storage.spec("a", size=size))
        source = Source("volume", volume.key)
        clone = await storage.backend.create(storage.spec("b", size=1, source=source))
        assert clone.size == size
        assert (await storage.backend.get(clone.key)).size == size
        with pytest.raises(OutOfRange):
            await storage.backend.create(storage.spec("c", size=1, limit=storage.volume_bytes, source=source))
        assert await keys_of(storage) == {volume.key, clone.key}

    async def test_a_group_is_one_and_is_deleted_as_one(self, storage: Storage) -> None:
        needs(storage, "group_snapshots")
        keys = [(await storage.backend.create(storage.spec(name))).key for name in ("a", "b", "c")]
        await storage.backend.grant(keys[0], storage.hosts[0], keys=NO_KEYS, shared=False)
        token = identity.hashed("g")
        taken = await storage.backend.snapshot_group(token, keys[:2])
        assert sorted(snapshot.source_key for snapshot in taken) == sorted(keys[:2])
        assert len({snapshot.group for snapshot in taken}) == 1
        assert taken[0].group
        identity.parse_volume_id(f"{storage.backend.name}:{taken[0].group}")
        assert await storage.backend.snapshot_group(token, keys[1::-1]) == taken
        for others in (keys, keys[:1], keys[1:]):
            with pytest.raises(AlreadyExists):
                await storage.backend.snapshot_group(token, others)
        assert list(await storage.backend.snapshots()) == sorted(taken, key=lambda snapshot: snapshot.key)
        for key in keys:
            assert (await storage.backend.get(key)).exported, "whoever was interrupted must find its volume again"
        assert (await storage.backend.get(keys[0])).hosts == (storage.hosts[0],)
        with pytest.raises(InvalidArgument):
            await storage.backend.delete_snapshot(taken[0].key)
        await storage.backend.delete_group(taken[0].group)
        await storage.backend.delete_group(taken[0].group)
        assert await storage.backend.snapshots() == []

    async def test_a_group_with_a_missing_volume_is_not_taken(self, storage: Storage) -> None:
        needs(storage, "group_snapshots")
        keys = [(await storage.backend.create(storage.spec(name))).key for name in ("a", "b")]
        await storage.backend.delete(keys[1])
        with pytest.raises(NotFound):
            await storage.backend.snapshot_group(identity.hashed("g"), keys)
        assert await storage.backend.snapshots() == []
        assert (await storage.backend.get(keys[0])).exported


class BackendConformance(VolumeCases, AccessCases, SnapshotCases):
    """All cases. A failure of any is a defect of the backend."""

    @pytest.fixture
    async def storage(self) -> Any:
        raise NotImplementedError("give the suite a fixture `storage` that yields a Storage")
