"""Methods on lvstores and logical volumes."""

from __future__ import annotations

import asyncio
import errno
import uuid as uuids
from typing import Any

from lab.spdk import sparse
from lab.spdk.bdevs import claim, release
from lab.spdk.dispatch import method
from lab.spdk.failures import INTERNAL_ERROR, INVALID_PARAMS, RpcFailure, no_device, refused
from lab.spdk.instance import Instance
from lab.spdk.lvstores import Lvol, LvolBdev, Lvstore

_MIB = 1024 * 1024
_CLEAR_METHODS = ("none", "unmap", "write_zeroes")
_DEFAULT_CLUSTER = 4 * _MIB
# Bits of the table of used clusters that one 4 KiB page holds: what a store can grow to.
_CLUSTERS_PER_PAGE = (4096 - 5) * 8


def _name(name: str) -> str:
    if not 0 < len(name.encode()) < 64:
        raise refused(errno.EINVAL)
    return name


def _store(instance: Instance, params: dict[str, Any], *, uuid: str = "uuid") -> Lvstore:
    """By name or uuid, one of both. Raises -22, -19."""
    if (uuid in params) == ("lvs_name" in params):
        raise refused(errno.EINVAL)
    store = instance.lvstores.find(name=params.get("lvs_name"), uuid=params.get(uuid))
    if store is None:
        raise no_device()
    return store


@method("bdev_lvol_create_lvstore")
async def create_lvstore(instance: Instance, params: dict[str, Any]) -> str:
    if params.get("clear_method", "none") not in _CLEAR_METHODS:
        raise RpcFailure(-errno.EINVAL, "Invalid clear_method parameter")
    name = _name(params["lvs_name"])
    base = instance.bdevs.get(params["bdev_name"])
    cluster_size = params.get("cluster_sz", 0) or _DEFAULT_CLUSTER
    if base.claims:
        raise refused(errno.EPERM)
    if cluster_size < 8192 or cluster_size % max(4096, base.block_size):
        raise refused(errno.EINVAL)
    store = instance.lvstores.create(base, name, cluster_size)
    await asyncio.sleep(instance.beat)
    return store.uuid


@method("bdev_lvol_delete_lvstore")
async def delete_lvstore(instance: Instance, params: dict[str, Any]) -> bool:
    await instance.lvstores.delete(_store(instance, params))
    return True


@method("bdev_lvol_rename_lvstore")
def rename_lvstore(instance: Instance, params: dict[str, Any]) -> bool:
    store = instance.lvstores.find(name=params["old_name"])
    if store is None:
        raise RpcFailure(-errno.ENOENT, f"Lvol store {params['old_name']} not found")
    new = params["new_name"]
    if new == store.name:
        return True
    if any(new in (other.name, other.renamed) for other in instance.lvstores):
        raise refused(errno.EEXIST, INVALID_PARAMS)
    old, store.name, store.renamed = store.name, new, new
    for lvol in store.lvols.values():
        instance.bdevs.rename_alias(instance.bdevs.get(lvol.uuid), f"{old}/{lvol.name}", f"{new}/{lvol.name}")
    store.save()
    return True


@method("bdev_lvol_grow_lvstore")
def grow_lvstore(instance: Instance, params: dict[str, Any]) -> bool:
    store = _store(instance, params)
    assert store.base is not None
    store.clusters = max(store.clusters, store.base.size // store.cluster_size - store.metadata_clusters)
    store.save()
    return True


@method("bdev_lvol_get_lvstores", optional=True)
def get_lvstores(instance: Instance, params: dict[str, Any]) -> list[dict[str, Any]]:
    stores = [_store(instance, params)] if params else list(instance.lvstores)
    return [_describe(store) for store in stores]


def _describe(store: Lvstore) -> dict[str, Any]:
    assert store.base is not None
    return {
        "uuid": store.uuid,
        "name": store.name,
        "base_bdev": store.base.name,
        "total_data_clusters": store.clusters,
        "free_clusters": store.free,
        "block_size": store.block_size,
        "cluster_size": store.cluster_size,
        "max_growable_size": _CLUSTERS_PER_PAGE * store.cluster_size,
    }


async def _make(
    instance: Instance, store: Lvstore, name: str, lvol: Lvol, *, source: Lvol | None = None, taken: RpcFailure
) -> LvolBdev:
    """Bytes first, then the record, then the bdev. The name is taken at once, the volume appears a beat later."""
    if store.named(name) or name in store.reserved:
        raise taken
    if not 0 < len(name.encode()) < 64:
        raise refused(errno.EINVAL, INVALID_PARAMS)
    store.reserved.add(name)
    try:
        size = lvol.clusters * store.cluster_size
        if source is None:
            sparse.make(store.image(lvol), size)
        else:
            await asyncio.to_thread(sparse.copy, store.image(source), store.image(lvol), size)
        await asyncio.sleep(instance.beat)
        lvol.seen = sparse.data_bytes(store.image(lvol))
        store.lvols[lvol.uuid] = lvol
        store.save()
        return instance.lvstores.add_bdev(store, lvol)
    finally:
        store.reserved.discard(name)


@method("bdev_lvol_create")
async def create(instance: Instance, params: dict[str, Any]) -> str:
    store = _store(instance, params)
    if params.get("clear_method", "none") not in _CLEAR_METHODS:
        raise RpcFailure(-errno.EINVAL, "Invalid clean_method option")
    name, thin = params["lvol_name"], params.get("thin_provision", False)
    clusters = -(-params["size_in_mib"] * _MIB // store.cluster_size)
    _name(name)
    if store.named(name) or name in store.reserved:
        raise refused(errno.EEXIST)
    if not thin and clusters > store.free:
        raise refused(errno.ENOSPC, INVALID_PARAMS)
    lvol = Lvol(str(uuids.uuid4()), name, thin, clusters, own=0 if thin else clusters)
    await _make(instance, store, name, lvol, taken=refused(errno.EEXIST))
    return lvol.uuid


@method("bdev_lvol_delete")
async def delete(instance: Instance, params: dict[str, Any]) -> bool:
    bdev = _deletable(instance, params["name"])
    store, lvol = bdev.lvs, bdev.lvol
    clones = store.clones(lvol)
    if len(clones) > 1:
        raise refused(errno.EPERM, INTERNAL_ERROR)
    store.leaving.add(lvol.uuid)
    try:
        instance.bdevs.remove(bdev)
        await asyncio.sleep(instance.beat)
        for clone in clones:
            clone.own = min(clone.clusters, clone.own + store.allocated(lvol))
            clone.parent = lvol.parent
        if lvol.external:
            base = instance.bdevs.find(lvol.external)
            if base is None:
                instance.crash("a clone is deleted after its external snapshot")
            else:
                release(base, lvol)
        del store.lvols[lvol.uuid]
        store.save()
        store.image(lvol).unlink(missing_ok=True)
    finally:
        store.leaving.discard(lvol.uuid)
    return True


def _deletable(instance: Instance, name: str) -> LvolBdev:
    """A volume on its way out is invisible to everybody but a second deletion, which is told that it is busy."""
    for store in instance.lvstores:
        for uuid in store.leaving:
            lvol = store.lvols[uuid]
            if name.lower() == uuid or name == f"{store.name}/{lvol.name}":
                raise refused(errno.EBUSY, INTERNAL_ERROR)
    return instance.lvstores.lvol_bdev(name)


@method("bdev_lvol_resize")
async def resize(instance: Instance, params: dict[str, Any]) -> bool:
    bdev = instance.lvstores.lvol_bdev(params["name"])
    store, lvol = bdev.lvs, bdev.lvol
    clusters = -(-params["size_in_mib"] * _MIB // store.cluster_size)
    if lvol.snapshot or lvol.read_only:
        raise refused(errno.EPERM, INVALID_PARAMS)
    if not lvol.thin and clusters - lvol.clusters > store.free:
        raise refused(errno.ENOSPC, INVALID_PARAMS)
    shrinks = clusters < lvol.clusters
    own = store.allocated(lvol)
    size = clusters * store.cluster_size
    sparse.resize(store.image(lvol), size)
    lvol.own = min(own, clusters) if lvol.thin else clusters
    lvol.clusters = clusters
    if shrinks and bdev.openers:
        # The error comes after the deed: the bytes are gone, and the bdev still shows its old size.
        sparse.resize(store.image(lvol), bdev.size)
    lvol.seen = sparse.data_bytes(store.image(lvol))
    store.save()
    await asyncio.sleep(instance.beat)
    if shrinks and bdev.openers:
        raise refused(errno.EBUSY, INVALID_PARAMS)
    instance.bdevs.resize(bdev, size // bdev.block_size)
    return True


@method("bdev_lvol_snapshot")
async def snapshot(instance: Instance, params: dict[str, Any]) -> str:
    bdev = instance.lvstores.lvol_bdev(params["lvol_name"])
    store, lvol = bdev.lvs, bdev.lvol
    if lvol.snapshot or lvol.read_only:
        raise refused(errno.EINVAL, INVALID_PARAMS)
    made = Lvol(
        str(uuids.uuid4()),
        params["snapshot_name"],
        lvol.thin,
        lvol.clusters,
        own=store.allocated(lvol),
        parent=lvol.parent,
        external=lvol.external,
        read_only=True,
        snapshot=True,
    )
    frozen = await _make(instance, store, made.name, made, source=lvol, taken=refused(errno.EEXIST, INVALID_PARAMS))
    frozen.frozen = True
    lvol.parent, lvol.external, lvol.thin, lvol.own = made.uuid, "", True, 0
    lvol.seen = sparse.data_bytes(store.image(lvol))
    store.save()
    return made.uuid


@method("bdev_lvol_clone")
async def clone(instance: Instance, params: dict[str, Any]) -> str:
    bdev = instance.lvstores.lvol_bdev(params["snapshot_name"])
    store, source = bdev.lvs, bdev.lvol
    made = Lvol(str(uuids.uuid4()), params["clone_name"], True, source.clusters, parent=source.uuid)
    if not source.read_only and not (store.named(made.name) or made.name in store.reserved):
        raise refused(errno.EINVAL, INVALID_PARAMS)
    await _make(instance, store, made.name, made, source=source, taken=refused(errno.EEXIST, INVALID_PARAMS))
    source.snapshot = True
    store.save()
    return made.uuid


@method("bdev_lvol_clone_bdev")
async def clone_bdev(instance: Instance, params: dict[str, Any]) -> str:
    base = instance.bdevs.find(params["bdev"])
    if base is None:
        raise RpcFailure(INVALID_PARAMS, "bdev does not exist")
    store = instance.lvstores.find(name=params["lvs_name"])
    if store is None:
        raise RpcFailure(INVALID_PARAMS, "lvs does not exist")
    clusters = base.size // store.cluster_size
    made = Lvol(str(uuids.uuid4()), params["clone_name"], True, clusters, external=base.uuid)
    claim(base, made, "read_many_write_none")
    bdev = await _make(instance, store, made.name, made, taken=refused(errno.EEXIST, INVALID_PARAMS))
    source = base.backing()
    if source is not None:
        await asyncio.to_thread(sparse.overwrite, source.file, bdev.backing().file)
        made.seen = sparse.data_bytes(store.image(made))
        store.save()
    return made.uuid


@method("bdev_lvol_inflate")
async def inflate(instance: Instance, params: dict[str, Any]) -> bool:
    bdev = instance.lvstores.lvol_bdev(params["name"])
    store, lvol = bdev.lvs, bdev.lvol
    if not lvol.snapshot and lvol.clusters - store.allocated(lvol) > store.free:
        raise refused(errno.ENOSPC, INVALID_PARAMS)
    await asyncio.sleep(2 * instance.beat)
    if lvol.snapshot:
        return True
    lvol.own, lvol.thin = lvol.clusters, False
    _leave_parent(instance, lvol)
    store.save()
    return True


@method("bdev_lvol_decouple_parent")
async def decouple_parent(instance: Instance, params: dict[str, Any]) -> bool:
    bdev = instance.lvstores.lvol_bdev(params["name"])
    store, lvol = bdev.lvs, bdev.lvol
    if not lvol.parent and not lvol.external:
        raise refused(errno.EINVAL, INVALID_PARAMS)
    await asyncio.sleep(2 * instance.beat)
    if lvol.parent:
        parent = store.lvols[lvol.parent]
        lvol.own = min(lvol.clusters, store.allocated(lvol) + store.allocated(parent))
        lvol.parent, lvol.external = parent.parent, parent.external
    else:
        _leave_parent(instance, lvol)
    store.save()
    return True


def _leave_parent(instance: Instance, lvol: Lvol) -> None:
    if lvol.external and (base := instance.bdevs.find(lvol.external)):
        release(base, lvol)
    lvol.parent = lvol.external = ""


@method("bdev_lvol_set_parent")
def set_parent(instance: Instance, params: dict[str, Any]) -> bool:
    bdev = instance.lvstores.lvol_bdev(params["lvol_name"])
    parent = instance.lvstores.lvol_bdev(params["parent_name"])
    if not parent.lvol.snapshot or parent.lvs is not bdev.lvs or parent.lvol.clusters != bdev.lvol.clusters:
        raise refused(errno.EINVAL, INVALID_PARAMS)
    if bdev.lvol.parent == parent.lvol.uuid:
        raise refused(errno.EEXIST, INVALID_PARAMS)
    _leave_parent(instance, bdev.lvol)
    bdev.lvol.parent = parent.lvol.uuid
    bdev.lvs.save()
    return True


@method("bdev_lvol_set_read_only")
def set_read_only(instance: Instance, params: dict[str, Any]) -> bool:
    bdev = instance.lvstores.lvol_bdev(params["name"])
    bdev.lvol.read_only = True
    bdev.lvs.save()
    return True


@method("bdev_lvol_rename")
def rename(instance: Instance, params: dict[str, Any]) -> bool:
    bdev = instance.lvstores.lvol_bdev(params["old_name"])
    store, lvol, new = bdev.lvs, bdev.lvol, params["new_name"]
    if store.named(new) or new in store.reserved:
        raise refused(errno.EEXIST, INVALID_PARAMS)
    if lvol.read_only:
        raise refused(errno.EPERM, INVALID_PARAMS)
    old, lvol.name = lvol.name, new
    instance.bdevs.rename_alias(bdev, f"{store.name}/{old}", f"{store.name}/{new}")
    store.save()
    return True


@method("bdev_lvol_get_lvols", optional=True)
def get_lvols(instance: Instance, params: dict[str, Any]) -> list[dict[str, Any]]:
    stores = [_store(instance, params, uuid="lvs_uuid")] if params else list(instance.lvstores)
    return [
        {
            "alias": f"{store.name}/{lvol.name}",
            "uuid": lvol.uuid,
            "name": lvol.name,
            "is_thin_provisioned": lvol.thin,
            "is_snapshot": lvol.snapshot,
            "is_clone": bool(lvol.parent),
            "is_esnap_clone": bool(lvol.external),
            "is_degraded": False,
            "num_allocated_clusters": store.allocated(lvol),
            "lvs": {"name": store.name, "uuid": store.uuid},
        }
        for store in stores
        for lvol in store.lvols.values()
        if lvol.uuid not in store.leaving
    ]


@method("bdev_lvol_start_shallow_copy")
async def start_shallow_copy(instance: Instance, params: dict[str, Any]) -> dict[str, int]:
    source = instance.lvstores.lvol_bdev(params["src_lvol_name"])
    target = instance.bdevs.find(params["dst_bdev_name"])
    if target is None:
        raise refused(errno.ENODEV, INVALID_PARAMS)
    number = next(instance.copy_counter)
    backing = target.backing()
    if backing is not None:
        await asyncio.to_thread(sparse.overwrite, source.backing().file, backing.file)
    clusters = source.lvs.allocated(source.lvol)
    instance.copies[number] = {"copied_clusters": clusters, "total_clusters": clusters, "state": "complete"}
    return {"operation_id": number}


@method("bdev_lvol_check_shallow_copy")
def check_shallow_copy(instance: Instance, params: dict[str, Any]) -> dict[str, Any]:
    state = instance.copies.pop(params["operation_id"], None)
    if state is None:
        raise no_device()
    return state
