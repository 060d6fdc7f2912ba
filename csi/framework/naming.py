"""Names of volumes on storage that keeps no other metadata: each fact that must last is in the name.

First letter:
`v` volume, `n` volume being made from a source, `s` snapshot, `g` snapshot of a group, `t` hidden snapshot between a
volume and its clone, `x` mark of a snapshot that Kubernetes has deleted while volumes still build on it. All else is
not ours.
Names of SPDK's lvols are at most 63 characters (26.05); ours are at most 61. Where there are pools, a key is
`<pool>.<name>`.
"""

import re
from collections.abc import Iterable

import msgspec

from csi import identity
from csi.errors import NotFound

_TOKEN = r"[a-z2-7]{20}"
VOLUME = re.compile(rf"v(?P<token>{_TOKEN})")
UNFINISHED = re.compile(rf"n(?P<token>{_TOKEN})")
SNAPSHOT = re.compile(
    rf"(?:s|(?P<group>g))(?P<token>{_TOKEN})\.(?P<created>[0-9a-f]{{8}})\.(?P<source>v{_TOKEN})"
    r"(?(group)\.(?P<members>[a-z2-7]{8}))"
)
BRIDGE = re.compile(rf"t(?P<token>{_TOKEN})\.(?P<source>v{_TOKEN})")
DISCARDED = re.compile(rf"x(?P<token>{_TOKEN})")
POOL = re.compile(r"[a-z][a-z0-9-]{0,30}")


class Place(msgspec.Struct, frozen=True):
    """Where a key's lvol is."""

    pool: str
    lvol: str

    @property
    def key(self) -> str:
        return f"{self.pool}.{self.lvol}"


class SnapshotName(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot's name taken apart; `created` in Unix seconds, `source` the lvol it was taken of. `members` is what
    `members()` made of the keys of all volumes of its group, and empty outside of groups."""

    token: str
    created: int
    source: str
    members: str = ""

    def __str__(self) -> str:
        kind, tail = ("g", f".{self.members}") if self.members else ("s", "")
        return f"{kind}{self.token}.{self.created:08x}.{self.source}{tail}"

    def later(self) -> "SnapshotName":
        """The same, a second on."""
        return msgspec.structs.replace(self, created=self.created + 1)


def volume(token: str) -> str:
    return f"v{token}"


def unfinished(token: str) -> str:
    return f"n{token}"


def bridge(token: str, source: str) -> str:
    """The hidden snapshot from which volume `token` is cloned when its source is a volume."""
    return f"t{token}.{source}"


def discarded(snapshot: str) -> str:
    """The empty volume whose being there says that a snapshot, which cannot be renamed, is deleted for Kubernetes."""
    return f"x{identity.hashed(snapshot)}"


def members(keys: Iterable[str]) -> str:
    """A group's volumes in 8 characters: by them a snapshot tells whether the others of its group are there."""
    return identity.hashed(" ".join(sorted(set(keys))))[:8]


def parse_snapshot(lvol: str) -> SnapshotName | None:
    match = SNAPSHOT.fullmatch(lvol)
    if match is None:
        return None
    return SnapshotName(
        token=match["token"],
        created=int(match["created"], 16),
        source=match["source"],
        members=match["members"] or "",
    )


def source_of_bridge(lvol: str) -> str:
    match = BRIDGE.fullmatch(lvol)
    return match["source"] if match else ""


def ours(lvol: str) -> bool:
    return any(pattern.fullmatch(lvol) for pattern in (VOLUME, UNFINISHED, SNAPSHOT, BRIDGE, DISCARDED))


def volume_place(key: str) -> Place:
    """Raises NotFound for a key which no volume of this backend can have."""
    pool, _, lvol = key.partition(".")
    if not POOL.fullmatch(pool) or not VOLUME.fullmatch(lvol):
        raise NotFound(f"no volume has the key {key!r}")
    return Place(pool, lvol)


def snapshot_place(key: str) -> Place:
    """Raises NotFound for a key which no snapshot of this backend can have."""
    pool, _, lvol = key.partition(".")
    if not POOL.fullmatch(pool) or not SNAPSHOT.fullmatch(lvol):
        raise NotFound(f"no snapshot has the key {key!r}")
    return Place(pool, lvol)
