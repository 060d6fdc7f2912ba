"""The attachments this DPU is to have, one file each: what a restart goes on with.

The files carry no secrets. A record is visible to the next process as soon as it is put, and safe from a loss of power
once `settle` has returned; losing it then would lose only which function a volume is on.
"""

import asyncio
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from volume_attacher.model import Record

log: Final = logging.getLogger(__name__)
_SUFFIX: Final = ".json"
_NSIDS: Final = "nsids"


class Records:
    """All records in memory, each change on disk first."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._records: dict[str, Record] = {}
        self.nsids: dict[tuple[int, int, int], int] = {}
        """The next NSID of each shared controller, by (port, pf, vf)."""

    def load(self) -> None:
        """Read the directory. A file that cannot be read is set aside with the suffix .damaged and reported."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._records.clear()
        self.nsids = _read_nsids(self._directory / _NSIDS)
        for path in sorted(self._directory.iterdir()):
            if path.suffix != _SUFFIX:
                if path.suffix == ".new":
                    path.unlink(missing_ok=True)
                continue
            try:
                record = msgspec.json.decode(path.read_bytes(), type=Record)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                log.error("the record %s cannot be read and is set aside: %s", path, error)
                path.rename(path.with_suffix(".damaged"))
                continue
            self._records[record.volume_id] = record

    def get(self, volume_id: str) -> Record | None:
        return self._records.get(volume_id)

    def __iter__(self) -> Iterator[Record]:
        return iter(list(self._records.values()))

    def __len__(self) -> int:
        return len(self._records)

    def put(self, record: Record) -> None:
        path = self._path(record.volume_id)
        draft = path.with_suffix(".new")
        draft.write_bytes(msgspec.json.encode(record))
        draft.rename(path)
        self._records[record.volume_id] = record

    def drop(self, volume_id: str) -> None:
        self._path(volume_id).unlink(missing_ok=True)
        self._records.pop(volume_id, None)

    def keep_nsids(self, following: Mapping[tuple[int, int, int], int]) -> None:
        """Remember the next NSIDs over a restart: a host must not find another volume under one it still holds."""
        draft = self._directory / "nsids.new"
        draft.write_bytes(msgspec.json.encode(list(following.items())))
        draft.rename(self._directory / _NSIDS)

    async def settle(self, volume_id: str) -> None:
        """Return when the record, or its absence, would survive a loss of power."""
        await asyncio.to_thread(_sync, self._path(volume_id), self._directory)

    def _path(self, volume_id: str) -> Path:
        return self._directory / (hashlib.sha256(volume_id.encode()).hexdigest()[:40] + _SUFFIX)


def _read_nsids(path: Path) -> dict[tuple[int, int, int], int]:
    try:
        return dict(msgspec.json.decode(path.read_bytes(), type=list[tuple[tuple[int, int, int], int]]))
    except FileNotFoundError:
        return {}
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        log.error("%s cannot be read, NSIDs of removed volumes may come back early: %s", path, error)
        return {}


def _sync(path: Path, directory: Path) -> None:
    for one in (path, directory):
        try:
            descriptor = os.open(one, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
