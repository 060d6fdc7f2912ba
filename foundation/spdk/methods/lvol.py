"""Logical volumes and the stores that hold them.

A volume is named "<lvstore>/<lvol>" or by its uuid. SPDK guards nothing: a volume that is exported, even connected, is
deleted all the same, and a smaller size for an exported one destroys data although the answer is an error.
"""

from __future__ import annotations

import msgspec

from foundation.spdk.client import Caller
from foundation.spdk.methods.parameters import given


class Lvstore(msgspec.Struct, frozen=True):
    """Sizes in bytes, capacity in clusters."""

    uuid: str
    name: str
    base_bdev: str
    total_data_clusters: int
    free_clusters: int
    block_size: int
    cluster_size: int
    max_growable_size: int = 0


class LvstoreReference(msgspec.Struct, frozen=True):
    name: str
    uuid: str


class Lvol(msgspec.Struct, frozen=True):
    alias: str
    uuid: str
    name: str
    lvs: LvstoreReference
    is_thin_provisioned: bool = False
    is_snapshot: bool = False
    is_clone: bool = False
    is_esnap_clone: bool = False
    is_degraded: bool = False
    num_allocated_clusters: int = 0


async def bdev_lvol_create_lvstore(
    caller: Caller,
    *,
    bdev_name: str,
    lvs_name: str,
    cluster_sz: int | None = None,
    clear_method: str | None = None,
    deadline: float = 60.0,
) -> str:
    """The store's uuid. Code -1 when the bdev is claimed, ``exists`` when the name is taken."""
    return await caller.call_as(
        str,
        "bdev_lvol_create_lvstore",
        given(bdev_name=bdev_name, lvs_name=lvs_name, cluster_sz=cluster_sz, clear_method=clear_method),
        deadline=deadline,
    )


async def bdev_lvol_get_lvstores(
    caller: Caller, *, lvs_name: str | None = None, uuid: str | None = None, deadline: float = 10.0
) -> list[Lvstore]:
    return await caller.call_as(
        list[Lvstore], "bdev_lvol_get_lvstores", given(lvs_name=lvs_name, uuid=uuid), deadline=deadline
    )


async def bdev_lvol_create(
    caller: Caller,
    *,
    lvol_name: str,
    size_in_mib: int,
    lvs_name: str | None = None,
    uuid: str | None = None,
    thin_provision: bool | None = None,
    clear_method: str | None = None,
    deadline: float = 30.0,
) -> str:
    """The volume's uuid. The size is rounded up to whole clusters. ``uuid`` is the store's, instead of its name."""
    return await caller.call_as(
        str,
        "bdev_lvol_create",
        given(
            lvol_name=lvol_name,
            size_in_mib=size_in_mib,
            lvs_name=lvs_name,
            uuid=uuid,
            thin_provision=thin_provision,
            clear_method=clear_method,
        ),
        deadline=deadline,
    )


async def bdev_lvol_delete(caller: Caller, name: str, *, deadline: float = 30.0) -> None:
    """Refused (code -32603) for a snapshot with two or more clones; with one, the clone takes the data over."""
    await caller.call_as(bool, "bdev_lvol_delete", {"name": name}, deadline=deadline)


async def bdev_lvol_resize(caller: Caller, *, name: str, size_in_mib: int, deadline: float = 30.0) -> None:
    """Never send a smaller size: on an exported volume SPDK answers ``busy`` and has thrown the data away."""
    await caller.call_as(bool, "bdev_lvol_resize", {"name": name, "size_in_mib": size_in_mib}, deadline=deadline)


async def bdev_lvol_snapshot(caller: Caller, *, lvol_name: str, snapshot_name: str, deadline: float = 30.0) -> str:
    """The snapshot's uuid; the volume becomes its thin clone."""
    return await caller.call_as(
        str, "bdev_lvol_snapshot", {"lvol_name": lvol_name, "snapshot_name": snapshot_name}, deadline=deadline
    )


async def bdev_lvol_clone(caller: Caller, *, snapshot_name: str, clone_name: str, deadline: float = 30.0) -> str:
    """The clone's uuid. Only from a snapshot or a read-only volume."""
    return await caller.call_as(
        str, "bdev_lvol_clone", {"snapshot_name": snapshot_name, "clone_name": clone_name}, deadline=deadline
    )


async def bdev_lvol_get_lvols(
    caller: Caller, *, lvs_name: str | None = None, lvs_uuid: str | None = None, deadline: float = 10.0
) -> list[Lvol]:
    return await caller.call_as(
        list[Lvol], "bdev_lvol_get_lvols", given(lvs_name=lvs_name, lvs_uuid=lvs_uuid), deadline=deadline
    )
