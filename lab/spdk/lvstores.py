"""Logical volume stores on files: what is in them, kept so that it survives a kill at any instruction.

The store's mark is in the first block of the base file; everything else lies beside it in ``<file>.lvs``:
``meta.json``, replaced whole at each change, and one sparse file a volume. Bytes come first when something is made, the
record goes first when it is deleted, so a file that no record names is left over, and goes when the store is loaded.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import tempfile
import uuid as uuids
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.spdk.bdevs import Backing, Bdev, claim, release
from lab.spdk.disks import AioBdev, NullBdev
from lab.spdk.failures import INTERNAL_ERROR, INVALID_PARAMS, refused
from lab.spdk.sparse import data_bytes

if TYPE_CHECKING:
    from lab.spdk.instance import Instance

MARK = b"dpu-offload lab lvstore\n"
_PAGE = 4096
_LVOL_IO = frozenset(("read", "write", "unmap", "reset", "write_zeroes", "seek_hole", "seek_data"))


@dataclass(eq=False)
class Lvol:
    """``clusters``: size. ``own``: clusters counted as its own when its bytes were ``seen`` data bytes long; what the

    file has gained since is counted on top, which is as near as a file system tells.
    """

    uuid: str
    name: str
    thin: bool
    clusters: int
    own: int = 0
    seen: int = 0
    parent: str = ""
    external: str = ""
    read_only: bool = False
    snapshot: bool = False


@dataclass(eq=False)
class Lvstore:
    uuid: str
    name: str
    cluster_size: int
    metadata_clusters: int
    clusters: int
    block_size: int
    lvols: dict[str, Lvol] = field(default_factory=dict)
    base: Bdev | None = None
    # The name of the last renaming: a store that was never renamed holds the empty one for taken.
    renamed: str = ""
    directory: Path = Path()
    # Names of volumes that are being made.
    reserved: set[str] = field(default_factory=set)
    # Volumes that are being deleted: nobody sees them any more.
    leaving: set[str] = field(default_factory=set)

    def image(self, lvol: Lvol) -> Path:
        return self.directory / f"{lvol.uuid}.img"

    def allocated(self, lvol: Lvol) -> int:
        gained = max(0, data_bytes(self.image(lvol)) - lvol.seen)
        return min(lvol.clusters, lvol.own + -(-gained // self.cluster_size))

    @property
    def free(self) -> int:
        return max(0, self.clusters - sum(self.allocated(lvol) for lvol in self.lvols.values()))

    def clones(self, lvol: Lvol) -> list[Lvol]:
        return [other for other in self.lvols.values() if other.parent == lvol.uuid]

    def named(self, name: str) -> Lvol | None:
        return next((lvol for lvol in self.lvols.values() if lvol.name == name), None)

    def save(self) -> None:
        record = {
            "uuid": self.uuid,
            "name": self.name,
            "cluster_size": self.cluster_size,
            "metadata_clusters": self.metadata_clusters,
            "clusters": self.clusters,
            "block_size": self.block_size,
            "lvols": [asdict(lvol) for lvol in self.lvols.values()],
        }
        new = self.directory / "meta.json.new"
        new.write_text(json.dumps(record))
        os.replace(new, self.directory / "meta.json")


@dataclass(eq=False)
class LvolBdev(Bdev):
    lvs: Lvstore = field(kw_only=True)
    lvol: Lvol = field(kw_only=True)
    # Takes no writes: a snapshot, or read-only since it was loaded; being set read-only does not show before that.
    frozen: bool = False

    product = "Logical Volume"

    @property
    def io_types(self) -> frozenset[str]:
        return _LVOL_IO - {"write", "unmap", "write_zeroes"} if self.frozen else _LVOL_IO

    def backing(self) -> Backing:
        return Backing(str(self.lvs.image(self.lvol)))

    def describe(self) -> dict[str, Any]:
        result = super().describe()
        if self.lvol.external:
            details = result.pop("driver_specific")
            result["memory_domains"] = [{"dma_device_type": "DMA"}, {"dma_device_type": "ACCEL"}]
            result["driver_specific"] = details
        return result

    def driver_specific(self) -> dict[str, Any]:
        lvol, lvs = self.lvol, self.lvs
        result: dict[str, Any] = {
            "lvol_store_uuid": lvs.uuid,
            "base_bdev": lvs.base.name if lvs.base else "",
            "thin_provision": lvol.thin,
            "num_allocated_clusters": lvs.allocated(lvol),
            "snapshot": lvol.snapshot,
            "clone": bool(lvol.parent),
        }
        if lvol.parent:
            result["base_snapshot"] = lvs.lvols[lvol.parent].name
        clones = [clone.name for clone in lvs.clones(lvol)]
        if clones:
            result["clones"] = clones
        result["esnap_clone"] = bool(lvol.external)
        if lvol.external:
            result["external_snapshot_name"] = lvol.external
        return {"lvol": result}


def metadata_clusters(clusters: int, cluster_size: int) -> int:
    """What the store keeps for itself: a page a cluster for volumes, a few for its own tables."""
    tables = 1 + 3 * -(-clusters // ((_PAGE - 24) * 8))
    return -(-(tables + clusters) * _PAGE // cluster_size)


class Lvstores:
    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._stores: dict[str, Lvstore] = {}
        self._examining = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def __iter__(self) -> Any:
        return iter(self._stores.values())

    def find(self, *, name: str | None = None, uuid: str | None = None) -> Lvstore | None:
        for store in self._stores.values():
            if (name is not None and store.name == name) or (uuid is not None and store.uuid == uuid.lower()):
                return store
        return None

    def create(self, base: Bdev, name: str, cluster_size: int) -> Lvstore:
        if base.claims:
            raise refused(errno.EPERM)
        if self.find(name=name):
            raise refused(errno.EEXIST)
        clusters = base.size // cluster_size
        kept = metadata_clusters(clusters, cluster_size)
        if base.writers:
            raise refused(errno.EPERM, INVALID_PARAMS)
        if isinstance(base, NullBdev) or clusters <= kept:
            raise refused(errno.EINVAL, INVALID_PARAMS)
        store = Lvstore(str(uuids.uuid4()), name, cluster_size, kept, clusters - kept, base.block_size, base=base)
        claim(base, store, "read_many_write_one")
        backing = base.backing()
        if isinstance(base, AioBdev) and backing is not None:
            store.directory = Path(backing.file + ".lvs")
            shutil.rmtree(store.directory, ignore_errors=True)
            store.directory.mkdir()
            store.save()
            _write_mark(backing.file, store.uuid)
        else:
            store.directory = Path(tempfile.mkdtemp(prefix="lab-spdk-lvs-"))
            self._instance.on_exit.append(lambda: shutil.rmtree(store.directory, ignore_errors=True))
            store.save()
        self._stores[store.uuid] = store
        return store

    def add_bdev(self, store: Lvstore, lvol: Lvol) -> LvolBdev:
        bdev = LvolBdev(
            lvol.uuid,
            lvol.uuid,
            store.block_size,
            lvol.clusters * store.cluster_size // store.block_size,
            [f"{store.name}/{lvol.name}"],
            lvs=store,
            lvol=lvol,
        )
        self._instance.bdevs.add(bdev)
        return bdev

    async def delete(self, store: Lvstore) -> None:
        del self._stores[store.uuid]
        self._take_bdevs_away(store)
        if isinstance(store.base, AioBdev):
            _write_mark(store.base.filename, "")
        await asyncio.to_thread(shutil.rmtree, store.directory, True)

    async def unload(self, base: Bdev) -> None:
        """Its base goes; what is in the store stays where it is."""
        for store in [store for store in self._stores.values() if store.base is base]:
            del self._stores[store.uuid]
            self._take_bdevs_away(store)

    def _take_bdevs_away(self, store: Lvstore) -> None:
        bdevs = self._instance.bdevs
        for lvol in list(store.lvols.values()):
            bdev = bdevs.find(lvol.uuid)
            if bdev is not None:
                bdevs.remove(bdev)
            if lvol.external and (base := bdevs.find(lvol.external)):
                release(base, lvol)
        if store.base is not None:
            release(store.base, store)

    def has_external_clones(self, base: Bdev) -> bool:
        return any(held.kind == "read_many_write_none" for held in base.claims)

    async def examine(self, base: AioBdev) -> None:
        """Brings back the store that is on ``base``, if there is one."""
        self._examining += 1
        self._idle.clear()
        try:
            # Two looks of the server: reading the first block, loading what it names.
            await asyncio.sleep(2 * self._instance.beat)
            self._load(base)
        finally:
            self._examining -= 1
            if not self._examining:
                self._idle.set()

    async def examined(self) -> None:
        await self._idle.wait()

    def _load(self, base: AioBdev) -> None:
        uuid = _read_mark(base.filename)
        directory = Path(os.path.abspath(base.filename) + ".lvs")
        if not uuid or uuid in self._stores or base.claims:
            return
        try:
            record = json.loads((directory / "meta.json").read_text())
        except FileNotFoundError:
            return
        if record["uuid"] != uuid or self.find(name=record["name"]):
            return
        lvols = {entry["uuid"]: Lvol(**entry) for entry in record.pop("lvols")}
        store = Lvstore(**record, lvols=lvols, base=base, directory=directory)
        for left in directory.glob("*.img"):
            if left.stem not in lvols:
                left.unlink()
        claim(base, store, "read_many_write_one")
        self._stores[uuid] = store
        for lvol in lvols.values():
            self.add_bdev(store, lvol).frozen = lvol.read_only
            if lvol.external and (external := self._instance.bdevs.find(lvol.external)):
                claim(external, lvol, "read_many_write_none")

    def lvol_bdev(self, name: str) -> LvolBdev:
        """Raises -19, also for a bdev of another kind."""
        bdev = self._instance.bdevs.find(name)
        if not isinstance(bdev, LvolBdev):
            raise refused(errno.ENODEV)
        if bdev.lvol.uuid in bdev.lvs.leaving:
            raise refused(errno.EBUSY, INTERNAL_ERROR)
        return bdev


def _write_mark(file: str, uuid: str) -> None:
    with open(file, "r+b") as base:
        base.write((MARK + uuid.encode() if uuid else b"").ljust(_PAGE, b"\0"))


def _read_mark(file: str) -> str:
    with open(file, "rb") as base:
        block = base.read(_PAGE)
    return block[len(MARK) : len(MARK) + 36].decode() if block.startswith(MARK) else ""
