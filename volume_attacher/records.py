"""The attachments this DPU is to have, in one file to which each change is added: what a restart goes on with.

The file carries no secrets. A change is visible to the next process as soon as it is made, and safe from a loss of
power once `settle` has returned; losing it then would lose only which function a volume is on. Each line is one change;
a line that was cut off by a loss of power is the last one, and never happened.
"""

import asyncio
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from foundation.daemon.sharing import SharedRead
from volume_attacher.model import Record

log: Final = logging.getLogger(__name__)
# Lines that say nothing any more, before the file is written anew.
_STALE: Final = 1000


class Change(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line: a record as it is from now on, the volume of one that is gone, or the next NSIDs by (port, pf, vf)."""

    record: Record | None = None
    dropped: str = ""
    nsids: tuple[tuple[tuple[int, int, int], int], ...] = ()


class Records:
    """All records in memory, each change on disk first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records: dict[str, Record] = {}
        self.nsids: dict[tuple[int, int, int], int] = {}
        """The next NSID of each shared controller, by (port, pf, vf)."""
        self._file = -1
        self._size = self._lines = 0
        self._synced = SharedRead(self._sync)

    def load(self) -> None:
        """Read the file, and write it anew without what is stale.

        Lines that cannot be read are left out and reported; the file as it was is then kept with the suffix .damaged.
        """
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._records.clear()
        self.nsids.clear()
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            content = b""
        damaged = False
        for line in content.split(b"\n")[:-1]:
            try:
                self._apply(msgspec.json.decode(line, type=Change))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                log.error("%s: a line cannot be read and is left out: %s", self._path, error)
                damaged = True
        if damaged:
            self._path.with_suffix(".damaged").write_bytes(content)
        former = self._path.with_suffix("")
        self._take_over(former)
        self._rewrite()
        shutil.rmtree(former, ignore_errors=True)

    def _take_over(self, directory: Path) -> None:
        """What versions before 0.1.0 kept in a file each. What the one file says is newer."""
        for path in sorted(directory.glob("*.json")):
            try:
                record = msgspec.json.decode(path.read_bytes(), type=Record)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                log.error("the record %s cannot be read and is left out: %s", path, error)
                path.rename(self._path.with_name(f"{path.name}.damaged"))
            else:
                self._records.setdefault(record.volume_id, record)
        try:
            nsids = msgspec.json.decode((directory / "nsids").read_bytes(), type=list[tuple[tuple[int, int, int], int]])
        except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
            return
        self.nsids = dict(nsids) | self.nsids

    def _apply(self, change: Change) -> None:
        if change.record is not None:
            self._records[change.record.volume_id] = change.record
        self._records.pop(change.dropped, None)
        self.nsids.update(change.nsids)

    def _rewrite(self) -> None:
        changes = [Change(nsids=tuple(self.nsids.items()))] if self.nsids else []
        changes += [Change(record=record) for record in self._records.values()]
        draft = self._path.with_suffix(".new")
        file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        if self._file >= 0:
            os.close(self._file)
        self._file, self._size, self._lines = file, 0, 0
        for change in changes:
            self._write(change)
        os.fsync(file)
        draft.rename(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    async def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def get(self, volume_id: str) -> Record | None:
        return self._records.get(volume_id)

    def __iter__(self) -> Iterator[Record]:
        return iter(list(self._records.values()))

    def __len__(self) -> int:
        return len(self._records)

    def put(self, record: Record) -> None:
        self._add(Change(record=record))

    def drop(self, volume_id: str) -> None:
        if volume_id in self._records:
            self._add(Change(dropped=volume_id))

    def keep_nsids(self, following: Mapping[tuple[int, int, int], int]) -> None:
        """Remember the next NSIDs over a restart: a host must not find another volume under one it still holds."""
        self._add(Change(nsids=tuple(following.items())))

    def _add(self, change: Change) -> None:
        self._write(change)
        self._apply(change)
        if self._lines > 2 * len(self._records) + _STALE:
            self._rewrite()

    def _write(self, change: Change) -> None:
        line = msgspec.json.encode(change) + b"\n"
        written = os.write(self._file, line)
        if written != len(line):
            os.ftruncate(self._file, self._size)
            raise OSError(f"{self._path}: the disk is full")
        self._size += written
        self._lines += 1

    async def settle(self) -> None:
        """Return when all changes so far would survive a loss of power."""
        await self._synced()

    async def _sync(self) -> None:
        # A descriptor of its own, since the file may be written anew meanwhile.
        await asyncio.to_thread(_sync_and_close, os.dup(self._file))


def _sync_and_close(descriptor: int) -> None:
    try:
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
