"""Which of a cluster's servers leads: table Database of database _Server (ovsdb-server(5))."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

MONITOR = {"Database": [{"columns": ["name", "model", "connected", "leader"]}]}


class _Row(msgspec.Struct):
    # Columns at their default are left out of updates, and a boolean's default is false.
    name: str = ""
    model: str = "standalone"
    connected: bool = False
    leader: bool = False


class ServedDatabases:
    """What one server says of the databases it serves. Pure: fed with decoded `table-updates2`."""

    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}

    def clear(self) -> None:
        """Forgets everything: the next server may say something else."""
        self._rows.clear()

    def apply(self, updates: Mapping[str, Any]) -> None:
        """Takes in an update."""
        for uuid, update in updates.get("Database", {}).items():
            ((kind, wire),) = update.items()
            if kind == "delete":
                self._rows.pop(uuid, None)
                continue
            known = msgspec.structs.asdict(self._rows[uuid]) if kind == "modify" and uuid in self._rows else {}
            self._rows[uuid] = msgspec.convert({**known, **wire}, _Row)

    def serves(self, database: str) -> bool:
        """Whether the server has the database at all."""
        return any(row.name == database for row in self._rows.values())

    def leads(self, database: str) -> bool:
        """Whether it is the one to write to: a server without a cluster always is."""
        for row in self._rows.values():
            if row.name == database:
                return row.model != "clustered" or (row.connected and row.leader)
        return False
