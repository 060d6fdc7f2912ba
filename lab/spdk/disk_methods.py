"""Methods that make, change or delete plain disks."""

from __future__ import annotations

import asyncio
import errno
import os
import uuid as uuids
from typing import Any

from lab.spdk.bdevs import Bdev
from lab.spdk.disks import AioBdev, MallocBdev, NullBdev
from lab.spdk.dispatch import method
from lab.spdk.failures import no_device, refused
from lab.spdk.instance import Instance

_MEMORY = 512 * 1024 * 1024


def _new_uuid(params: dict[str, Any]) -> str:
    return params.get("uuid") or str(uuids.uuid4())


@method("bdev_malloc_create")
def malloc_create(instance: Instance, params: dict[str, Any]) -> str:
    blocks, block_size = params["num_blocks"], params["block_size"]
    if blocks == 0 or block_size == 0 or block_size % 512:
        raise refused(errno.EINVAL)
    name = params.get("name")
    if name == "":
        raise refused(errno.EINVAL)
    if name is None:
        name = f"Malloc{next(instance.malloc_counter)}"
    if blocks * block_size > _MEMORY:
        raise refused(errno.ENOMEM)
    bdev = MallocBdev(name, _new_uuid(params), block_size, blocks)
    instance.bdevs.add(bdev)
    bdev.on_removed.append(bdev.release_bytes)
    return str(name)


@method("bdev_null_create")
def null_create(instance: Instance, params: dict[str, Any]) -> str:
    blocks, block_size = params["num_blocks"], params["block_size"]
    if blocks == 0 or block_size == 0 or block_size % 512 or not params["name"]:
        raise refused(errno.EINVAL)
    instance.bdevs.add(NullBdev(params["name"], _new_uuid(params), block_size, blocks))
    return str(params["name"])


@method("bdev_null_resize")
def null_resize(instance: Instance, params: dict[str, Any]) -> bool:
    bdev = instance.bdevs.get(params["name"])
    blocks = params["new_size"] * 1024 * 1024 // bdev.block_size
    if not isinstance(bdev, NullBdev) or blocks < bdev.num_blocks:
        raise refused(errno.EINVAL)
    instance.bdevs.resize(bdev, blocks)
    return True


@method("bdev_aio_create")
async def aio_create(instance: Instance, params: dict[str, Any]) -> str:
    """Answers when the examination of the file is over: an lvstore on it is back by then."""
    filename, given = params["filename"], params.get("block_size", 0)
    try:
        descriptor = os.open(filename, os.O_RDONLY if params.get("readonly") else os.O_RDWR)
    except OSError as error:
        raise refused(error.errno or errno.EIO) from error
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
    finally:
        os.close(descriptor)
    if given < 512 or given & (given - 1) or size % given:
        raise refused(errno.EINVAL)
    bdev = AioBdev(
        params["name"],
        _new_uuid(params),
        given,
        size // given,
        filename=filename,
        block_size_override=True,
        readonly=params.get("readonly", False),
    )
    instance.bdevs.add(bdev)
    await instance.lvstores.examine(bdev)
    return str(params["name"])


@method("bdev_aio_rescan")
def aio_rescan(instance: Instance, params: dict[str, Any]) -> bool:
    bdev = instance.bdevs.get(params["name"])
    if not isinstance(bdev, AioBdev):
        raise no_device()
    blocks = os.stat(bdev.filename).st_size // bdev.block_size
    if blocks < bdev.num_blocks:
        raise refused(errno.EBUSY)
    instance.bdevs.resize(bdev, blocks)
    return True


async def _delete(instance: Instance, name: str, kind: type[Bdev]) -> bool:
    bdev = instance.bdevs.find(name)
    if not isinstance(bdev, kind):
        raise no_device()
    hangs = instance.lvstores.has_external_clones(bdev)
    await instance.lvstores.unload(bdev)
    instance.bdevs.remove(bdev)
    if hangs:
        # SPDK 26.05 never answers this one.
        await asyncio.get_running_loop().create_future()
    return True


@method("bdev_malloc_delete")
async def malloc_delete(instance: Instance, params: dict[str, Any]) -> bool:
    return await _delete(instance, params["name"], MallocBdev)


@method("bdev_null_delete")
async def null_delete(instance: Instance, params: dict[str, Any]) -> bool:
    return await _delete(instance, params["name"], NullBdev)


@method("bdev_aio_delete")
async def aio_delete(instance: Instance, params: dict[str, Any]) -> bool:
    return await _delete(instance, params["name"], AioBdev)
