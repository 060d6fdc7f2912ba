"""Keys by name, read by SPDK from files.

The file must be absolute and mode 0600 (-1 otherwise). What it holds is looked at only when the key is used.
"""

from __future__ import annotations

import msgspec

from foundation.spdk.client import Caller


class Key(msgspec.Struct, frozen=True):
    """``removed``: gone from the ring, and still held by a user of it."""

    name: str
    path: str = ""
    removed: bool = False
    refcnt: int = 0


async def keyring_file_add_key(caller: Caller, *, name: str, path: str, deadline: float = 10.0) -> None:
    await caller.call_as(bool, "keyring_file_add_key", {"name": name, "path": path}, deadline=deadline)


async def keyring_file_remove_key(caller: Caller, name: str, *, deadline: float = 10.0) -> None:
    """-126 when there is none. Users of the key keep the old one even when the name is added again."""
    await caller.call_as(bool, "keyring_file_remove_key", {"name": name}, deadline=deadline)


async def keyring_get_keys(caller: Caller, *, deadline: float = 10.0) -> list[Key]:
    return await caller.call_as(list[Key], "keyring_get_keys", deadline=deadline)
