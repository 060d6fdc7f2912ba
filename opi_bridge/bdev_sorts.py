"""What tells null, aio and malloc volumes apart."""

from collections.abc import Mapping
from typing import Any, Final

from dpu_offload_stubs.opi.storage import backend_aio_pb2, backend_malloc_pb2, backend_null_pb2
from opi_bridge.bdev_volumes import Sort
from opi_bridge.errors import InvalidArgument

_BLOCK_SIZES: Final = (512, 1024, 2048, 4096)
_BLOCKS_MAXIMUM: Final = 2**63 - 1


def _check_blocks(message: Any) -> None:
    if message.block_size not in _BLOCK_SIZES:
        raise InvalidArgument(f"block_size {message.block_size} is not one of {', '.join(map(str, _BLOCK_SIZES))}")
    if not 0 < message.blocks_count <= _BLOCKS_MAXIMUM // message.block_size:
        raise InvalidArgument(f"blocks_count {message.blocks_count} is out of range")


def _check_malloc(message: backend_malloc_pb2.MallocVolume) -> None:
    _check_blocks(message)
    if message.metadata_size not in (0, 8, 16, 32, 64, 128):
        raise InvalidArgument(f"metadata_size {message.metadata_size} is not one of 0, 8, 16, 32, 64, 128")


def _check_aio(message: backend_aio_pb2.AioVolume) -> None:
    if not message.filename.startswith("/") or "\0" in message.filename:
        raise InvalidArgument(f"filename {message.filename[:80]!r} is required, as an absolute path")
    if message.block_size and message.block_size not in _BLOCK_SIZES:
        raise InvalidArgument(f"block_size {message.block_size} is not one of {', '.join(map(str, _BLOCK_SIZES))}")
    if message.blocks_count < 0:
        raise InvalidArgument("blocks_count is negative; the file's size decides it")


def _blocks(message: Any) -> dict[str, Any]:
    return {"num_blocks": message.blocks_count, "block_size": message.block_size}


def _malloc(message: backend_malloc_pb2.MallocVolume) -> dict[str, Any]:
    return {**_blocks(message), **({"md_size": message.metadata_size} if message.metadata_size else {})}


def _aio(message: backend_aio_pb2.AioVolume) -> dict[str, Any]:
    return {"filename": message.filename, **({"block_size": message.block_size} if message.block_size else {})}


def _put_metadata(bdev: Mapping[str, Any], message: Any) -> None:
    message.metadata_size = bdev.get("md_size", 0)


def _put_file(bdev: Mapping[str, Any], message: Any) -> None:
    message.filename = bdev.get("driver_specific", {}).get("aio", {}).get("filename", "")


def _put_nothing(bdev: Mapping[str, Any], message: Any) -> None:
    """All is said already."""


def _grow_null(name: str, message: Any) -> tuple[str, dict[str, Any]]:
    mib = message.block_size * message.blocks_count / 2**20
    if mib != int(mib):
        raise InvalidArgument("a null volume is resized in MiB: blocks_count must give a whole number of them")
    return "bdev_null_resize", {"name": name, "new_size": int(mib)}


NULL: Final = Sort(
    collection="nullVolumes",
    product="Null disk",
    message=backend_null_pb2.NullVolume,
    create="bdev_null_create",
    delete="bdev_null_delete",
    params=_blocks,
    put=_put_nothing,
    check=_check_blocks,
    mutable=("blocks_count",),
    grow=_grow_null,
)
MALLOC: Final = Sort(
    collection="mallocVolumes",
    product="Malloc disk",
    message=backend_malloc_pb2.MallocVolume,
    create="bdev_malloc_create",
    delete="bdev_malloc_delete",
    params=_malloc,
    put=_put_metadata,
    check=_check_malloc,
)
AIO: Final = Sort(
    collection="aioVolumes",
    product="AIO disk",
    message=backend_aio_pb2.AioVolume,
    create="bdev_aio_create",
    delete="bdev_aio_delete",
    params=_aio,
    put=_put_file,
    check=_check_aio,
    mutable=("blocks_count",),
    grow=lambda name, _message: ("bdev_aio_rescan", {"name": name}),
)
