"""The process itself: version, configuration, notifications."""

from __future__ import annotations

import msgspec

from foundation.spdk.client import Caller


class VersionFields(msgspec.Struct, frozen=True):
    major: int
    minor: int
    patch: int = 0
    suffix: str = ""
    commit: str = ""


class Version(msgspec.Struct, frozen=True):
    """``version`` is the text, as in "SPDK v26.05 git sha1 d519b163cb"."""

    version: str
    fields: VersionFields


async def spdk_get_version(caller: Caller, *, deadline: float = 10.0) -> Version:
    return await caller.call_as(Version, "spdk_get_version", deadline=deadline)
