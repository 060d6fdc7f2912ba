"""Block devices: what each kind shares, with the registry that names them."""

from __future__ import annotations

import asyncio
import errno
import uuid as uuids
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from lab.spdk.failures import no_device, refused

_IO_TYPES = [
    "read",
    "write",
    "unmap",
    "flush",
    "reset",
    "nvme_admin",
    "nvme_io",
    "nvme_io_md",
    "write_zeroes",
    "zcopy",
    "get_zone_info",
    "zone_management",
    "zone_append",
    "compare",
    "compare_and_write",
    "abort",
    "seek_hole",
    "seek_data",
    "copy",
    "nvme_iov_md",
    "nvme_nssr",
    "write_uncorrectable",
]


@dataclass(frozen=True)
class Backing:
    """The bytes of a bdev: ``file`` from ``offset`` on. ``encrypted``: a reader of the bdev would see others."""

    file: str
    offset: int = 0
    encrypted: bool = False


@dataclass(frozen=True)
class Claim:
    owner: object
    kind: str


@dataclass(eq=False)
class Bdev:
    """``openers`` counts those who hold an I/O channel: exports and guests; ``writers`` those who opened it to write

    without a claim: vhost controllers.
    """

    name: str
    uuid: str
    block_size: int
    num_blocks: int
    aliases: list[str] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    limits: dict[str, int] = field(default_factory=dict)
    openers: int = 0
    writers: int = 0
    on_removed: list[Callable[[], None]] = field(default_factory=list)
    on_resized: list[Callable[[], None]] = field(default_factory=list)

    product: ClassVar[str] = ""
    takes: ClassVar[frozenset[str]] = frozenset()
    numa_id: ClassVar[int | None] = None
    memory_domains: ClassVar[tuple[str, ...]] = ()

    @property
    def io_types(self) -> frozenset[str]:
        """The kinds of I/O that it takes."""
        return self.takes

    def numa(self) -> int | None:
        """The NUMA node, -1 for any; None for the kinds that do not tell."""
        return self.numa_id

    @property
    def granularity(self) -> tuple[int, int, int, int, int]:
        """Preferred, in blocks: write alignment, granularity, size; unmap alignment, granularity."""
        return (0, 0, 0, 0, 0)

    @property
    def size(self) -> int:
        return self.block_size * self.num_blocks

    def backing(self) -> Backing | None:
        return None

    def driver_specific(self) -> dict[str, Any]:
        return {}

    def describe(self) -> dict[str, Any]:
        names = (
            "preferred_write_alignment",
            "preferred_write_granularity",
            "optimal_write_size",
            "preferred_unmap_alignment",
            "preferred_unmap_granularity",
        )
        result: dict[str, Any] = {
            "name": self.name,
            "aliases": self.aliases,
            "product_name": self.product,
            "block_size": self.block_size,
            "num_blocks": self.num_blocks,
            **dict(zip(names, self.granularity, strict=True)),
            "uuid": self.uuid,
        }
        numa = self.numa()
        if numa is not None:
            result["numa_id"] = numa
        result["assigned_rate_limits"] = {
            limit: self.limits.get(limit, 0)
            for limit in ("rw_ios_per_sec", "rw_mbytes_per_sec", "r_mbytes_per_sec", "w_mbytes_per_sec")
        }
        result["claimed"] = bool(self.claims)
        if self.claims:
            result["claim_type"] = self.claims[0].kind
        result["zoned"] = False
        result["supported_io_types"] = {name: name in self.io_types for name in _IO_TYPES}
        if self.memory_domains:
            result["memory_domains"] = [{"dma_device_type": kind} for kind in self.memory_domains]
        result["driver_specific"] = self.driver_specific()
        return result


class Bdevs:
    """All bdevs in the order of their creation, found by name, alias or uuid."""

    def __init__(self) -> None:
        self._all: dict[str, Bdev] = {}
        self._names: dict[str, Bdev] = {}
        self._waiters: list[tuple[str, asyncio.Future[Bdev]]] = []
        self.notifications: list[dict[str, Any]] = []
        self.on_added: list[Callable[[Bdev], None]] = []

    def __iter__(self) -> Any:
        return iter(self._all.values())

    def find(self, name: str) -> Bdev | None:
        return self._names.get(name) or self._names.get(name.lower() if _is_uuid(name) else name)

    def get(self, name: str) -> Bdev:
        """Raises -19."""
        bdev = self.find(name)
        if bdev is None:
            raise no_device()
        return bdev

    def add(self, bdev: Bdev) -> None:
        """Raises -17 when a name, an alias or the uuid is taken."""
        if not bdev.aliases:
            bdev.aliases = [bdev.uuid]
        names = {bdev.name, bdev.uuid, *bdev.aliases}
        if any(name in self._names for name in names):
            raise refused(errno.EEXIST)
        self._all[bdev.name] = bdev
        for name in names:
            self._names[name] = bdev
        self._notify("bdev_register", bdev)
        for hook in list(self.on_added):
            hook(bdev)
        for waiting in list(self._waiters):
            name, future = waiting
            if self.find(name) is bdev and not future.done():
                future.set_result(bdev)

    def remove(self, bdev: Bdev) -> None:
        if self._all.pop(bdev.name, None) is None:
            return
        for name in [name for name, owner in self._names.items() if owner is bdev]:
            del self._names[name]
        hooks, bdev.on_removed = bdev.on_removed, []
        for hook in hooks:
            hook()
        self._notify("bdev_unregister", bdev)

    def resize(self, bdev: Bdev, num_blocks: int) -> None:
        if num_blocks == bdev.num_blocks:
            return
        bdev.num_blocks = num_blocks
        self._notify("bdev_resize", bdev)
        for hook in list(bdev.on_resized):
            hook()

    def rename_alias(self, bdev: Bdev, old: str, new: str) -> None:
        bdev.aliases = [new if alias == old else alias for alias in bdev.aliases]
        del self._names[old]
        self._names[new] = bdev

    async def wait(self, name: str, seconds: float) -> Bdev:
        """Raises -110 when it does not appear."""
        bdev = self.find(name)
        if bdev is not None:
            return bdev
        future: asyncio.Future[Bdev] = asyncio.get_running_loop().create_future()
        entry = (name, future)
        self._waiters.append(entry)
        timer = asyncio.get_running_loop().call_later(seconds, _expire, future)
        try:
            return await future
        finally:
            timer.cancel()
            self._waiters.remove(entry)

    def _notify(self, kind: str, bdev: Bdev) -> None:
        self.notifications.append({"type": kind, "ctx": bdev.name, "id": len(self.notifications)})


def _expire(future: asyncio.Future[Bdev]) -> None:
    if not future.done():
        future.set_exception(refused(errno.ETIMEDOUT))


def _is_uuid(name: str) -> bool:
    if len(name) != 36:
        return False
    try:
        uuids.UUID(name)
    except ValueError:
        return False
    return True


def claim(bdev: Bdev, owner: object, kind: str) -> None:
    """Raises -1 when the bdev is claimed; readers of a base that nobody writes share their claim."""
    if bdev.claims and not (kind == "read_many_write_none" and bdev.claims[0].kind == kind):
        raise refused(errno.EPERM)
    bdev.claims.append(Claim(owner, kind))


def release(bdev: Bdev, owner: object) -> None:
    bdev.claims = [held for held in bdev.claims if held.owner is not owner]
