"""Where the targets are that are called by name, as the name service last said."""

import asyncio
import ipaddress
from collections.abc import Iterable
from typing import Final

import msgspec

from volume_attacher.errors import BridgeAway
from volume_attacher.model import Portal

_STREAM: Final = 1


class Addresses:
    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    async def resolve(self, portals: Iterable[Portal]) -> None:
        """Ask for the names among the portals' addresses. Raises BridgeAway for one that has no address now."""
        for portal in portals:
            if named(portal):
                self._known[portal.address] = await _first(portal.address)

    def of(self, portal: Portal) -> Portal:
        """The portal by its IP address; as it is while its name was not resolved."""
        known = self._known.get(portal.address)
        return portal if known is None else msgspec.structs.replace(portal, address=known)


def named(portal: Portal) -> bool:
    """Whether the portal's target is called by a name, which may mean another address tomorrow."""
    try:
        ipaddress.ip_address(portal.address)
    except ValueError:
        return True
    return False


async def _first(name: str) -> str:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(name, None, type=_STREAM)
    except OSError as error:
        raise BridgeAway(f"the name {name} cannot be resolved: {error}") from error
    return str(found[0][4][0])
