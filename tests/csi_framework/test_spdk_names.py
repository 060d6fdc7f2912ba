"""Names of logical volumes: each tells what it is, none is taken for another, all are short enough."""

import pytest

from csi import identity
from csi.errors import NotFound
from csi.framework import naming as names

TOKEN = identity.hashed("pvc-1")
VOLUME = names.volume(TOKEN)
SNAPSHOT = str(names.SnapshotName(token=TOKEN, created=1_800_000_000, source=VOLUME))
GROUPED = str(names.SnapshotName(token=TOKEN, created=0, source=VOLUME, members="abcdefgh"))
ALL = {
    "volume": VOLUME,
    "unfinished": names.unfinished(TOKEN),
    "snapshot": SNAPSHOT,
    "grouped": GROUPED,
    "bridge": names.bridge(TOKEN, VOLUME),
    "discarded": names.discarded(SNAPSHOT),
}


@pytest.mark.parametrize("name", ALL.values(), ids=ALL)
def test_names_are_ours_short_and_of_one_kind(name: str) -> None:
    assert names.ours(name)
    assert len(name) <= 61
    patterns = (names.VOLUME, names.UNFINISHED, names.SNAPSHOT, names.BRIDGE, names.DISCARDED)
    assert sum(1 for pattern in patterns if pattern.fullmatch(name)) == 1


def test_a_snapshot_carries_its_source_and_time() -> None:
    parsed = names.parse_snapshot(SNAPSHOT)
    assert parsed is not None
    assert (parsed.created, parsed.source, parsed.members, str(parsed)) == (1_800_000_000, VOLUME, "", SNAPSHOT)
    assert names.source_of_bridge(ALL["bridge"]) == VOLUME
    assert names.snapshot_place(f"pool-a.{SNAPSHOT}") == names.Place("pool-a", SNAPSHOT)
    assert identity.parse_volume_id(f"spdk:pool-a.{SNAPSHOT}").key == f"pool-a.{SNAPSHOT}"


@pytest.mark.parametrize(
    "name", ["v1", "lvol0", "vol", "", "v" + "A" * 20, "s" + TOKEN, GROUPED[:-1], GROUPED[:-9], SNAPSHOT + ".abcdefgh"]
)
def test_names_of_others(name: str) -> None:
    assert not names.ours(name)
    with pytest.raises(NotFound):
        names.volume_place(f"pool.{name}")
    with pytest.raises(NotFound):
        names.snapshot_place(f"pool.{name}")
