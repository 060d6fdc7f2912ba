"""Logical volumes of one lvol store: look, make, grow, delete, with SPDK's traps kept away from.

Traps (SPDK 26.05, seen on the real one): deleting never refuses for use, it cascades; deleting the base of an
external-snapshot clone hangs the call and the next one kills the target; a resize to less destroys data even when it
answers with an error. So nothing is deleted here that is claimed or built upon, and no smaller size is ever sent.
"""

from collections.abc import Sequence

from csi.errors import FailedPrecondition, Internal, Unavailable
from csi.framework import naming as names
from csi.framework.backends.spdk.calls import Target, translate, translated
from csi.framework.backends.spdk.config import PoolConfig
from csi.framework.backends.spdk.placement import PoolState
from csi.framework.backends.spdk.records import Bdev, Lvstore
from csi.framework.sizes import MIB
from foundation.spdk.errors import SpdkError


class Pool:
    """Stateless: every answer is SPDK's own, of now."""

    def __init__(self, name: str, config: PoolConfig, target: Target) -> None:
        self.name = name
        self.config = config
        self.target = target

    def bdev_name(self, lvol: str) -> str:
        return f"{self.config.lvstore}/{lvol}"

    async def find(self, lvol: str) -> Bdev | None:
        """None when it certainly does not exist. Raises Unavailable while the target has not got its store back.

        A restarted target knows its lvols only once their disk has been attached and examined: until then, what is
        missing may be all there.
        """
        found = await self.glance(lvol)
        if found is None:
            await self.target.do("wait until the target has examined its disks", "bdev_wait_for_examine")
            await self.state()
            found = await self.glance(lvol)
        return found

    async def glance(self, lvol: str) -> Bdev | None:
        """As it looks now: None also when the store is away."""
        try:
            found = await self._ask_bdevs({"name": self.bdev_name(lvol)})
        except SpdkError as error:
            if error.missing:
                return None
            raise translate(error, f"pool {self.name}: look up {lvol}") from error
        return found[0] if found else None

    async def all(self) -> dict[str, Bdev]:
        """Every lvol of the store by name, ours or not. Raises Unavailable while the store is away."""
        await self.state()
        with translated(f"pool {self.name}: list volumes"):
            bdevs = await self._ask_bdevs(None)
        named = ((bdev.lvol_name(self.config.lvstore), bdev) for bdev in bdevs)
        return {name: bdev for name, bdev in named if name}

    async def state(self) -> PoolState:
        """Raises Unavailable when the store is not there (yet): after a restart it appears with its disk."""
        with translated(f"pool {self.name}: read free space"):
            stores = await self.target.ask(list[Lvstore], "bdev_lvol_get_lvstores")
        for store in stores:
            if store.name == self.config.lvstore:
                return PoolState(
                    name=self.name,
                    topology=self.config.topology,
                    cluster=store.cluster_size,
                    total=store.total_data_clusters,
                    free=store.free_clusters,
                )
        raise Unavailable(
            f"pool {self.name}: SPDK at {self.target.address} has no lvol store {self.config.lvstore!r}; "
            "is its disk attached?"
        )

    async def create(self, lvol: str, *, size: int, thick: bool) -> None:
        """A volume of whole MiB. One that exists already is left as it is: the caller compares."""
        params = {
            "lvs_name": self.config.lvstore,
            "lvol_name": lvol,
            "size_in_mib": size // MIB,
            "thin_provision": not thick,
        }
        await self._make(f"create {lvol} of {size} bytes", "bdev_lvol_create", params)

    async def snapshot(self, lvol: str, name: str) -> None:
        await self._make(
            f"snapshot {lvol}", "bdev_lvol_snapshot", {"lvol_name": self.bdev_name(lvol), "snapshot_name": name}
        )

    async def unused(self, name: names.SnapshotName) -> names.SnapshotName:
        """One of the same name, deleted within this second, may still live hidden below its clones."""
        while await self.glance(str(name)) is not None:
            name = name.later()
        return name

    async def clone(self, snapshot: str, name: str) -> None:
        await self._make(
            f"clone {snapshot}", "bdev_lvol_clone", {"snapshot_name": self.bdev_name(snapshot), "clone_name": name}
        )

    async def grow(self, lvol: str, size: int) -> Bdev:
        """To at least `size` bytes; a volume that is as large already is not touched."""
        before = await self._existing(lvol)
        if before.size >= size:
            return before
        await self.target.do(
            f"pool {self.name}: grow {lvol} to {size} bytes",
            "bdev_lvol_resize",
            {"name": self.bdev_name(lvol), "size_in_mib": -(-size // MIB)},
        )
        after = await self._existing(lvol)
        if after.size < size:
            raise Internal(f"pool {self.name}: {lvol} has {after.size} bytes after growing it to {size}")
        return after

    async def rename(self, lvol: str, name: str) -> None:
        await self.target.do(
            f"pool {self.name}: rename {lvol}",
            "bdev_lvol_rename",
            {"old_name": self.bdev_name(lvol), "new_name": name},
        )

    async def delete(self, lvol: str) -> None:
        """The caller has taken its export away. Raises FailedPrecondition while anything holds or builds on it."""
        bdev = await self.find(lvol)
        if bdev is None:
            return
        if bdev.claimed:
            raise FailedPrecondition(
                f"pool {self.name}: {lvol} is claimed ({bdev.claim_type or 'by another user'}): it is exported or the "
                "base of another device; take that away first"
            )
        if len(bdev.lvol.clones) > 1:
            raise FailedPrecondition(f"pool {self.name}: {lvol} is the base of {', '.join(bdev.lvol.clones)}")
        await self._refuse_external_base(lvol, bdev)
        try:
            await self.target.ask(bool, "bdev_lvol_delete", {"name": self.bdev_name(lvol)})
        except SpdkError as error:
            if not error.missing or await self.find(lvol) is not None:
                raise translate(error, f"pool {self.name}: delete {lvol}") from error
        if bdev.lvol.base_snapshot:
            await self.sweep(bdev.lvol.base_snapshot)

    async def sweep(self, lvol: str) -> None:
        """Deletes a hidden snapshot which nothing, or only one clone, still builds on; then the one below it."""
        if not await self.hidden(lvol):
            return
        bdev = await self.find(lvol)
        if bdev is None or len(bdev.lvol.clones) <= 1:
            await self.delete(lvol)
            await self.delete(names.discarded(lvol))

    async def hidden(self, lvol: str) -> bool:
        """Whether nobody but us knows of the snapshot: it was only ever a bridge, or Kubernetes has deleted it."""
        if names.BRIDGE.fullmatch(lvol):
            return True
        return bool(names.SNAPSHOT.fullmatch(lvol)) and await self.glance(names.discarded(lvol)) is not None

    async def discard_snapshot(self, lvol: str) -> None:
        """Deletes a snapshot, or marks it until the volumes that were made from it are gone.

        SPDK refuses to delete one with two clones, and to rename any.
        """
        bdev = await self.find(lvol)
        if bdev is not None and len(bdev.lvol.clones) > 1:
            await self.create(names.discarded(lvol), size=MIB, thick=False)
            # A clone may have gone between the look and the mark.
            await self.sweep(lvol)
            return
        await self.delete(lvol)
        await self.delete(names.discarded(lvol))

    async def _refuse_external_base(self, lvol: str, bdev: Bdev) -> None:
        if not bdev.lvol.snapshot:
            return
        ids = {bdev.name, bdev.uuid, *bdev.aliases}
        with translated(f"pool {self.name}: look for clones of {lvol}"):
            others = await self._ask_bdevs(None)
        for other in others:
            if other.lvol.esnap_clone and other.lvol.external_snapshot_name in ids:
                raise FailedPrecondition(
                    f"pool {self.name}: {lvol} is the external base of {other.aliases or other.name}: "
                    "delete that first (deleting the base kills the target)"
                )

    async def _existing(self, lvol: str) -> Bdev:
        bdev = await self.find(lvol)
        if bdev is None:
            raise Internal(f"pool {self.name}: {lvol} has vanished while being worked on")
        return bdev

    async def _ask_bdevs(self, params: dict[str, str] | None) -> Sequence[Bdev]:
        return await self.target.ask(list[Bdev], "bdev_get_bdevs", params)

    async def _make(self, what: str, method: str, params: dict[str, object]) -> None:
        try:
            await self.target.ask(str, method, params)
        except SpdkError as error:
            if not error.exists:
                raise translate(error, f"pool {self.name}: {what}") from error
