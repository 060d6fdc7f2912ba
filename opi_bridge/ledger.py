"""Names that the card itself has no place for, kept inside the card's process.

SPDK knows a subsystem by its NQN and a path by its address, not by the ids which OPI clients give. What cannot be
derived is written into the process as a null bdev that nobody uses, named ``opi/<resource name>?<values>``: it lives
and dies with the objects it names, and is found again by whoever connects next. So the bridge itself keeps no state.
"""

from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import parse_qsl, urlencode

from foundation.spdk.errors import SpdkError
from opi_bridge.names import Name
from opi_bridge.session import Session

PREFIX: Final = "opi/"
# The smallest disk that no module of SPDK finds odd when it examines a new bdev.
_BLOCKS: Final = 2048
_BLOCK_SIZE: Final = 512
_EXISTS: Final = -17
_MISSING: Final = -19


def encode(name: Name, values: Mapping[str, str]) -> str:
    return f"{PREFIX}{name}?{urlencode(sorted(values.items()))}"


def decode(bdev: str) -> tuple[Name, dict[str, str]] | None:
    """Read an entry's bdev name; None for any other bdev."""
    if not bdev.startswith(PREFIX):
        return None
    path, _, query = bdev.removeprefix(PREFIX).partition("?")
    words = path.split("/")
    if len(words) % 2:
        return None
    parts = tuple(zip(words[::2], words[1::2], strict=True))
    return Name(parts), dict(parse_qsl(query, keep_blank_values=True))


class Ledger:
    """The entries, read once after each connection; nobody else writes them."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._entries: dict[Name, dict[str, str]] = {}
        # The same by parent and collection.
        self._families: dict[tuple[Name, str], dict[Name, dict[str, str]]] = {}
        # Written or dropped by a call that did not see its answer, so that the process may or may not have them.
        self._unsure: set[Name] = set()

    async def load(self) -> None:
        bdevs = await self._session.raw("bdev_get_bdevs")
        found = (decode(bdev["name"]) for bdev in bdevs)
        self._entries.clear()
        self._families.clear()
        self._unsure.clear()
        for entry in found:
            if entry is not None:
                self._know(*entry)

    def _know(self, name: Name, values: dict[str, str]) -> None:
        self._entries[name] = values
        self._families.setdefault(_family(name), {})[name] = values

    def _forget(self, name: Name) -> None:
        if self._entries.pop(name, None) is None:
            return
        family = self._families[_family(name)]
        del family[name]
        if not family:
            del self._families[_family(name)]

    def get(self, name: Name) -> Mapping[str, str] | None:
        return self._entries.get(name)

    def under(self, parent: Name, collection: str) -> Iterator[tuple[Name, Mapping[str, str]]]:
        """Entries of one collection, of one parent."""
        yield from list(self._families.get((parent, collection), {}).items())

    async def put(self, name: Name, values: Mapping[str, str]) -> None:
        """Write an entry, or replace the one of that name."""
        old = self._entries.get(name)
        if old == dict(values) and name not in self._unsure:
            return
        self._know(name, dict(values))
        self._unsure.add(name)
        try:
            await self._session.call(
                "bdev_null_create",
                {"name": encode(name, values), "num_blocks": _BLOCKS, "block_size": _BLOCK_SIZE},
            )
        except SpdkError as error:
            if error.code != _EXISTS:
                self._forget(name)
                self._unsure.discard(name)
                raise
        self._unsure.discard(name)
        if old is not None and old != dict(values):
            await self._remove(name, old)

    async def drop(self, name: Name) -> None:
        values = self._entries.get(name)
        if values is None:
            return
        self._unsure.add(name)
        await self._remove(name, values)
        self._forget(name)
        self._unsure.discard(name)

    async def drop_under(self, parent: Name, *collections: str) -> None:
        """Drop entries whose objects went with their parent, or before it without a word."""
        for collection in collections:
            for name, _ in self.under(parent, collection):
                await self.drop(name)

    async def _remove(self, name: Name, values: Mapping[str, str]) -> None:
        try:
            await self._session.call("bdev_null_delete", {"name": encode(name, values)})
        except SpdkError as error:
            if error.code != _MISSING:
                raise


def _family(name: Name) -> tuple[Name, str]:
    return name.parent, name.parts[-1][0]
