"""What is in the northbound database: our rows by their id, over a session's replica."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from cni.controller.rows import RowId
from cni.controller.rows.tables import TABLES, identify
from foundation.ovsdb import Change, Index, OvsdbSession, Uuid
from foundation.ovsdb import Row as ActualRow


class Actual:
    """Rows of ours by id. Registers its tables, so make it before the session starts."""

    def __init__(self, session: OvsdbSession) -> None:
        self._session = session
        session.monitor({name: table.monitored() for name, table in TABLES.items()})
        self._by_id: dict[str, Index] = {name: session.index(name, partial(identify, name)) for name in TABLES}

    def row(self, row_id: RowId) -> ActualRow | None:
        """The row with this id."""
        return self._by_id[row_id.table].one(row_id)

    def twins(self, row_id: RowId) -> list[ActualRow]:
        """Surplus rows with this id (two controllers may have written at once); `row` gives the one to keep."""
        rows = self._by_id[row_id.table].all(row_id)
        return list(rows)[1:] if len(rows) > 1 else []

    def ids(self) -> Iterator[RowId]:
        """Every row of ours."""
        for index in self._by_id.values():
            for key in index:
                assert isinstance(key, RowId)
                yield key

    def rows(self, table: str) -> Mapping[Uuid, ActualRow]:
        """All rows of a table, other people's too."""
        return self._session.rows(table)

    def owned(self, table: str, uuid: str) -> RowId | None:
        """The id of a row given by uuid, if it is ours."""
        row = self._session.rows(table).get(Uuid(uuid))
        return identify(table, row) if row is not None else None

    def subscribe(self, callback: Callable[[RowId, Change], None]) -> None:
        """Tells of each change of a row of ours, whoever made it."""

        def changed(change: Change) -> None:
            for row in (change.new, change.old):
                row_id = identify(change.table, row) if row is not None else None
                if row_id is not None:
                    callback(row_id, change)
                    return

        for table in TABLES:
            self._session.subscribe(table, changed)
