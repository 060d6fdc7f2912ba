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
        self._strays: dict[RowId, Uuid] = {}

    def row(self, row_id: RowId) -> ActualRow | None:
        """The row with this id, or the one from which somebody took it."""
        if not self._strays:
            return self._by_id[row_id.table].one(row_id)
        stray = self._strays.get(row_id)
        rows = self._rightful(row_id)
        return rows[0] if rows else self._session.rows(row_id.table).get(stray) if stray is not None else None

    def twins(self, row_id: RowId) -> list[ActualRow]:
        """Surplus rows with this id (two controllers may have written at once); `row` gives the one to keep."""
        rows = self._rightful(row_id)
        return rows[1:]

    def _rightful(self, row_id: RowId) -> list[ActualRow]:
        """The rows with this id, without those that somebody has given it."""
        rows = self._by_id[row_id.table].all(row_id)
        return [each for each in rows if each.uuid not in self._strays.values()] if self._strays else list(rows)

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
        """Tells of each change of a row of ours, whoever made it. A row that has lost its id went, as far as that id is
        concerned, but is kept in mind: there can be no second row of its name."""

        def changed(change: Change) -> None:
            old, new = change.old, change.new
            tagged = TABLES[change.table].tagged
            if tagged and old is not None and new is not None and old["external_ids"] is new["external_ids"]:
                row_id = identify(change.table, new)
                if row_id is not None:
                    callback(row_id, change)
                return
            was = identify(change.table, old) if old is not None else None
            now = identify(change.table, new) if new is not None else None
            back = now is not None and self._strays.get(now) == change.uuid
            if now is not None and back:
                del self._strays[now]
            if was is not None and was != now:
                if new is not None and not back:
                    self._strays[was] = change.uuid
                callback(was, Change("delete", change.table, change.uuid, old, None))
            if now is not None:
                callback(now, change)

        for table in TABLES:
            self._session.subscribe(table, changed)
