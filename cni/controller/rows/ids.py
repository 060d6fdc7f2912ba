"""The identity of a row: which Kubernetes object it stands for, and which part of it.

An owner translates into a `State`: rows of its own, plus members it puts into set columns of any row (a pod's port
into its node's switch, a pod's address into an address set). A set column that takes members holds exactly what all
owners put in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

PREFIX = "dpu-offload.io/"
OWNER, KEY, PART = PREFIX + "owner", PREFIX + "key", PREFIX + "part"


class Owner(NamedTuple):
    """A Kubernetes object, or a thing of the controller's own, that rows come from. `kind` is a short word."""

    kind: str
    key: str


class RowId(NamedTuple):
    """One row: its table, its owner's kind and key, and a part that is unique within owner and table."""

    table: str
    kind: str
    key: str
    part: str

    @property
    def owner(self) -> Owner:
        """Who owns it."""
        return Owner(self.kind, self.key)

    def tags(self) -> dict[str, str]:
        """What marks the row as this one in its external_ids."""
        return {OWNER: self.kind, KEY: self.key, PART: self.part}


class Row(msgspec.Struct, frozen=True, gc=False):
    """A row as it shall be. `columns` holds OVSDB values (`foundation.ovsdb.values`), and a RowId where a row is meant.

    Columns that are not named keep what they hold; external_ids get the tags added.
    """

    id: RowId
    columns: Mapping[str, Any]


class Member(NamedTuple):
    """`value` (a string, or a row) shall be in set column `column` of row `target`."""

    target: RowId
    column: str
    value: str | RowId


class State(msgspec.Struct, frozen=True, gc=False):
    """All that one owner wants."""

    rows: tuple[Row, ...] = ()
    members: tuple[Member, ...] = ()


EMPTY = State()
