"""Keys by name, read by SPDK from files.

The file must be absolute and mode 0600 (-1 otherwise). What it holds is looked at only when the key is used.
"""

from __future__ import annotations

from foundation.spdk.client import Caller


async def keyring_file_add_key(caller: Caller, *, name: str, path: str, deadline: float = 10.0) -> None:
    await caller.call_as(bool, "keyring_file_add_key", {"name": name, "path": path}, deadline=deadline)
