"""The attacher's records outlive it, whatever happened to their file."""

import resource
from pathlib import Path

import pytest

from volume_attacher.model import Phase, Place, Policy, Portal, Record, Remote, Specification
from volume_attacher.records import Records

UUID = "11111111-2222-4333-8444-555555555555"


def _record(number: int, phase: Phase = Phase.ATTACHED) -> Record:
    remote = Remote(nqn=f"nqn.2026-11.io.x:v{number}", portals=(Portal("tcp", "10.0.0.1", 4420),), uuid=UUID)
    specification = Specification(volume_id=f"main:v{number}", remote=remote, policy=Policy.STATIC)
    return Record(specification=specification, place=Place(0, 0, number), nsid=1, phase=phase)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "records.jsonl"


async def _again(path: Path) -> Records:
    records = Records(path)
    records.load()
    await records.close()
    return records


async def test_the_next_process_finds_what_was_put_last(path: Path) -> None:
    records = Records(path)
    records.load()
    for number in (1, 2, 3):
        records.put(_record(number, Phase.ATTACHING))
    records.put(_record(1))
    records.drop("main:v2")
    records.drop("main:unknown")
    records.keep_nsids({(0, 0, 1): 5})
    # Nobody closed or settled anything, as after SIGKILL.
    found = await _again(path)
    assert {record.volume_id: record.phase for record in found} == {
        "main:v1": Phase.ATTACHED,
        "main:v3": Phase.ATTACHING,
    }
    assert found.nsids == {(0, 0, 1): 5}
    await records.settle()
    await records.close()


@pytest.mark.parametrize("cut", range(1, 60, 7))
async def test_a_line_that_was_cut_off_never_happened(path: Path, cut: int) -> None:
    records = Records(path)
    records.load()
    records.put(_record(1))
    records.put(_record(2))
    await records.close()
    path.write_bytes(path.read_bytes()[:-cut])
    found = await _again(path)
    assert [record.volume_id for record in found] == ["main:v1"]
    assert not path.with_suffix(".damaged").exists()
    # And what is added now is a line of its own.
    found = Records(path)
    found.load()
    found.put(_record(3))
    await found.close()
    assert [record.volume_id for record in await _again(path)] == ["main:v1", "main:v3"]


async def test_a_damaged_line_costs_that_line_only_and_is_kept(path: Path) -> None:
    records = Records(path)
    records.load()
    for number in (1, 2, 3):
        records.put(_record(number))
    await records.close()
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = b"".join([lines[0], b"\x00\xff garbage\n", lines[2]])
    path.write_bytes(damaged)
    assert [record.volume_id for record in await _again(path)] == ["main:v1", "main:v3"]
    assert path.with_suffix(".damaged").read_bytes() == damaged


async def test_the_file_does_not_grow_for_ever(path: Path) -> None:
    records = Records(path)
    records.load()
    records.put(_record(1))
    for _ in range(3000):
        records.put(_record(2))
        records.drop("main:v2")
    assert len(path.read_bytes().splitlines()) < 1100
    await records.close()
    assert [record.volume_id for record in await _again(path)] == ["main:v1"]


async def test_a_full_disk_is_an_error_and_leaves_no_half_line(path: Path) -> None:
    records = Records(path)
    records.load()
    records.put(_record(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # As a disk with room for ten bytes more: the write ends early.
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, hard))
    try:
        with pytest.raises(OSError, match="full"):
            records.put(_record(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert records.get("main:v2") is None
    records.put(_record(3))
    await records.close()
    assert [record.volume_id for record in await _again(path)] == ["main:v1", "main:v3"]
