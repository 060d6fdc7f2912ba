"""The demo finds in the target's files what it wrote on the mounted disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.demo.disks_walk import WrongBytes, find_bytes

MARKER = bytes(range(64))
MIB = 1 << 20


@pytest.mark.parametrize("offset", [0, 4096 * 300 + 5, MIB - 30, MIB, 3 * MIB - 64], ids=hex)
def test_wherever_they_lie_in_a_sparse_file(tmp_path: Path, offset: int) -> None:
    (tmp_path / "empty").write_bytes(b"")
    with (tmp_path / "lvol").open("wb") as file:
        file.truncate(64 * MIB)
        start = max(0, offset - MIB)
        file.seek(start)
        file.write(b"x" * (offset - start) + MARKER)
    assert find_bytes(tmp_path, MARKER) == f"lvol at {offset:#x}"


def test_bytes_that_are_nowhere(tmp_path: Path) -> None:
    (tmp_path / "lvol").write_bytes(MARKER[:-1] * 100)
    with pytest.raises(WrongBytes, match="no file below"):
        find_bytes(tmp_path, MARKER)
