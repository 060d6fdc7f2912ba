"""Virtio disks over vhost-user sockets, ``<vhost directory>/<controller>``.

SPDK does not claim the bdev here: two controllers may share one.
"""

from __future__ import annotations

import msgspec

from foundation.spdk.client import Caller
from foundation.spdk.methods.parameters import given


class Block(msgspec.Struct, frozen=True):
    """``bdev`` is None after the bdev has gone: the controller stays."""

    readonly: bool = False
    bdev: str | None = None
    transport: str = ""


class Backend(msgspec.Struct, frozen=True):
    block: Block | None = None


class Session(msgspec.Struct, frozen=True):
    id: int = 0
    name: str = ""
    started: bool = False


class VhostController(msgspec.Struct, frozen=True):
    ctrlr: str
    socket: str = ""
    cpumask: str = ""
    sessions: tuple[Session, ...] = ()
    backend_specific: Backend = Backend()


async def vhost_create_blk_controller(
    caller: Caller, *, ctrlr: str, dev_name: str, readonly: bool | None = None, deadline: float = 10.0
) -> None:
    await caller.call_as(
        bool,
        "vhost_create_blk_controller",
        given(ctrlr=ctrlr, dev_name=dev_name, readonly=readonly),
        deadline=deadline,
    )


async def vhost_delete_controller(caller: Caller, ctrlr: str, *, deadline: float = 30.0) -> None:
    """Blocks while a guest is connected, and fills SPDK's log: let the guest go first."""
    await caller.call_as(bool, "vhost_delete_controller", {"ctrlr": ctrlr}, deadline=deadline)


async def vhost_get_controllers(
    caller: Caller, *, name: str | None = None, deadline: float = 10.0
) -> list[VhostController]:
    return await caller.call_as(list[VhostController], "vhost_get_controllers", given(name=name), deadline=deadline)
