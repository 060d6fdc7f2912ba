"""Objects on disk: a journal of writes, shortened at each start."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

import msgspec

from lab.apiserver.storage import Entry, Json, Key, Store, Table


class Journal:
    """Keeps a store's objects in `directory`; a line torn by a crash is ignored (its write was never answered)."""

    def __init__(self, directory: Path, store: Store) -> None:
        """Read what is there into `store`, write it back without its history, follow the store from now on."""
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / "objects.jsonl"
        objects: dict[tuple[Table, Key], Json] = {}
        version = 0
        if self._path.exists():
            for line in self._path.read_bytes().split(b"\n"):
                try:
                    record = msgspec.json.decode(line) if line else None
                except msgspec.DecodeError:
                    continue
                if record is None:
                    continue
                place = ((record["table"][0], record["table"][1]), (record["key"][0], record["key"][1]))
                version = max(version, record["version"])
                if record["object"] is None:
                    objects.pop(place, None)
                else:
                    objects[place] = record["object"]
        for (table, key), obj in objects.items():
            store.load(table, key, obj)
        store.version = max(store.version, version)
        store.compact()
        temporary = self._path.with_suffix(".new")
        with temporary.open("wb") as file:
            for (table, key), obj in objects.items():
                file.write(_record(table, key, int(obj["metadata"]["resourceVersion"]), obj))
            file.write(_record(("", ""), ("", ""), store.version, None))
        os.replace(temporary, self._path)
        self._file: IO[bytes] = self._path.open("ab", buffering=0)
        store.listen_to_all(self._saw)

    def _saw(self, table: Table, entry: Entry) -> None:
        self._file.write(
            _record(table, entry.key, entry.version, None if entry.type == "DELETED" else entry.new.object)
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _record(table: Table, key: Key, version: int, obj: Json | None) -> bytes:
    return msgspec.json.encode({"table": table, "key": key, "version": version, "object": obj}) + b"\n"
