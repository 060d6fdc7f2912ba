"""Resource names of the OPI storage API: reading what clients send, writing what the proto's patterns say.

Tolerated on input, because clients in use send them: a leading ``//storage.opiproject.org/`` and ``volumes/{id}``
for every kind of volume. Output always follows the pattern of the resource.
"""

import re
import uuid
from dataclasses import dataclass
from typing import Final

from opi_bridge.errors import InvalidArgument

# AIP-122 asks for 63 characters; ours run longer (they carry a whole volume id) and other clients' names fit anyway.
_ID: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,126}[a-z0-9])?")
_PREFIX: Final = "//storage.opiproject.org/"
WILDCARD: Final = "-"
VOLUME_COLLECTIONS: Final = frozenset(
    {"volumes", "nullVolumes", "aioVolumes", "mallocVolumes", "encryptedVolumes", "qosVolumes"}
)


@dataclass(frozen=True)
class Name:
    """A resource name as (collection, id) pairs, outermost first."""

    parts: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return "/".join(f"{collection}/{identifier}" for collection, identifier in self.parts)

    @property
    def id(self) -> str:
        return self.parts[-1][1]

    @property
    def root(self) -> str:
        """The outermost id: what is locked while one of the family changes."""
        return f"{self.parts[0][0]}/{self.parts[0][1]}"

    @property
    def parent(self) -> "Name":
        return Name(self.parts[:-1])

    def child(self, collection: str, identifier: str) -> "Name":
        return Name((*self.parts, (collection, identifier)))


ROOT: Final = Name(())


def is_id(text: str) -> bool:
    """Whether a resource can have this id: things of the card that others named may have no id here."""
    return _ID.fullmatch(text) is not None


def check_id(identifier: str, field: str) -> str:
    """Return `identifier`, or raise InvalidArgument naming `field`."""
    if not is_id(identifier):
        raise InvalidArgument(
            f"{field} {identifier[:80]!r} is not an id: use 1 to 128 lower-case letters, digits and hyphens,"
            " beginning and ending with a letter or digit"
        )
    return identifier


def new_id() -> str:
    """An id for a create request that gives none (AIP-133)."""
    return str(uuid.uuid4())


def parse(text: str, pattern: tuple[str, ...], field: str = "name", *, wildcard: bool = False) -> Name:
    """Read `text` as the collections of `pattern`, e.g. ("nvmeSubsystems", "nvmeNamespaces").

    With `wildcard`, an id may be "-" (AIP-159). Raises InvalidArgument.
    """
    if not text:
        raise InvalidArgument(f"{field} is required: {_example(pattern)}")
    words = text.removeprefix(_PREFIX).removeprefix("/").split("/")
    if len(words) != 2 * len(pattern):
        raise InvalidArgument(f"{field} {text[:120]!r} does not have the form {_example(pattern)}")
    parts = []
    for wanted, collection, identifier in zip(pattern, words[::2], words[1::2], strict=True):
        alias = collection == "volumes" and wanted in VOLUME_COLLECTIONS
        if collection != wanted and not alias:
            raise InvalidArgument(f"{field} {text[:120]!r} does not have the form {_example(pattern)}")
        if not (wildcard and identifier == WILDCARD):
            check_id(identifier, field)
        parts.append((wanted, identifier))
    return Name(tuple(parts))


def _example(pattern: tuple[str, ...]) -> str:
    return "/".join(f"{collection}/{{id}}" for collection in pattern)
