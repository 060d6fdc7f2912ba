"""The process itself: version, configuration, notifications."""

from __future__ import annotations

from typing import Any

import msgspec

from foundation.spdk.client import Caller
from foundation.spdk.methods.parameters import given


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


class Notification(msgspec.Struct, frozen=True):
    """``type`` bdev_register, bdev_unregister or bdev_resize; ``ctx`` the bdev's name; ``id`` counts from 0."""

    type: str
    ctx: str
    id: int


class ConfigEntry(msgspec.Struct, frozen=True):
    method: str
    params: dict[str, Any] | None = None


async def spdk_get_version(caller: Caller, *, deadline: float = 10.0) -> Version:
    return await caller.call_as(Version, "spdk_get_version", deadline=deadline)


async def rpc_get_methods(caller: Caller, *, current: bool | None = None, deadline: float = 10.0) -> list[str]:
    return await caller.call_as(list[str], "rpc_get_methods", given(current=current), deadline=deadline)


async def framework_wait_init(caller: Caller, *, deadline: float = 60.0) -> None:
    """Returns when SPDK has started all its subsystems."""
    await caller.call_as(bool, "framework_wait_init", deadline=deadline)


async def framework_start_init(caller: Caller, *, deadline: float = 60.0) -> None:
    """Ends the phase that ``--wait-for-rpc`` begins; -1 when it is over already."""
    await caller.call_as(bool, "framework_start_init", deadline=deadline)


async def framework_get_config(caller: Caller, name: str, *, deadline: float = 10.0) -> list[ConfigEntry]:
    """The calls that would bring the subsystem ``name`` (bdev, nvmf ...) where it is. No lvols: these live on disk."""
    # A subsystem with nothing to tell may answer null.
    config = await caller.call("framework_get_config", {"name": name}, deadline=deadline)
    return msgspec.convert(config or [], list[ConfigEntry])


async def notify_get_notifications(
    caller: Caller, *, id: int | None = None, max: int | None = None, deadline: float = 10.0
) -> list[Notification]:
    """Events from number ``id`` on; SPDK forgets the oldest."""
    return await caller.call_as(
        list[Notification], "notify_get_notifications", given(id=id, max=max), deadline=deadline
    )
