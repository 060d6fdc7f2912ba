"""VirtioBlk resources: a volume before the host as a virtio-blk device, by SPDK's vhost."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from dpu_offload_stubs.opi.storage import frontend_virtio_blk_pb2 as pb
from foundation.spdk.errors import SpdkError
from opi_bridge import names
from opi_bridge.cards.model import Endpoint, Qos, Slot
from opi_bridge.endpoints import pci_of, qos_of, slot_of
from opi_bridge.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unimplemented
from opi_bridge.ledger import Ledger
from opi_bridge.names import Name
from opi_bridge.resources import immutable
from opi_bridge.session import Session
from opi_bridge.volumes import bdev_of, find, stats, together

COLLECTION: Final = "virtioBlks"
# vhost_delete_controller waits for a guest that is still connected.
_DELETE_SECONDS: Final = 20.0


class Places(Protocol):
    """The part of a card that knows its functions."""

    def check_endpoint(self, endpoint: Endpoint) -> None: ...


class VirtioBlkStore:
    """The vhost controller has the resource's id; the function, of which vhost knows nothing, is in the ledger."""

    def __init__(self, session: Session, card: Places, ledger: Ledger) -> None:
        self._session = session
        self._card = card
        self._ledger = ledger

    def check(self, message: pb.VirtioBlk) -> None:
        if not message.HasField("pcie_id"):
            raise InvalidArgument("pcie_id is required")
        self._card.check_endpoint(slot_of(message.pcie_id, "pcie_id"))
        bdev_of(message.volume_name_ref)
        if message.max_io_qps < 0:
            raise InvalidArgument("max_io_qps is negative")
        for field in ("min_limit", "max_limit"):
            if qos_of(getattr(message, field), field) != Qos():
                raise Unimplemented(f"{field}: limit the volume, with a QosVolume")

    def normalise(self, message: pb.VirtioBlk) -> pb.VirtioBlk:
        result = pb.VirtioBlk()
        result.CopyFrom(message)
        result.volume_name_ref = bdev_of(message.volume_name_ref)
        return result

    async def listing(self, parent: Name) -> Sequence[pb.VirtioBlk]:
        return [
            self._message(Name(((COLLECTION, one["ctrlr"]),)), one)
            for one in await self._session.call("vhost_get_controllers")
            if "block" in one.get("backend_specific", {}) and names.is_id(one["ctrlr"])
        ]

    async def get(self, name: Name) -> pb.VirtioBlk | None:
        found = await self._find(name)
        return self._message(name, found) if found is not None else None

    async def _find(self, name: Name) -> Mapping[str, Any] | None:
        try:
            answer = await self._session.call("vhost_get_controllers", {"name": name.id})
        except SpdkError as error:
            if error.missing:
                return None
            raise
        found: Mapping[str, Any] | None = answer[0] if answer else None
        return found if found is not None and "block" in found.get("backend_specific", {}) else None

    async def create(self, name: Name, message: pb.VirtioBlk) -> pb.VirtioBlk:
        slot = slot_of(message.pcie_id, "pcie_id")
        if await self._find(name) is not None:
            raise AlreadyExists(f"{name} exists already")
        # Two vhost controllers may share a disk, and a claimed one is no obstacle: SPDK does not look.
        bdev = await find(self._session, message.volume_name_ref)
        if bdev is None:
            raise NotFound(f"there is no volume {message.volume_name_ref}")
        if bdev.get("claimed"):
            raise FailedPrecondition(f"volume {message.volume_name_ref} is in use: {bdev.get('claim_type', 'claimed')}")
        for other, values in self._ledger.under(names.ROOT, COLLECTION):
            if _slot(values) == slot and other != name and await self._find(other) is not None:
                raise FailedPrecondition(f"function {slot} carries {other} already")
        entry = {"port": str(slot.port), "pf": str(slot.pf), "vf": str(slot.vf)}
        if message.max_io_qps:
            entry["queues"] = str(message.max_io_qps)
        making = self._session.call(
            "vhost_create_blk_controller", {"ctrlr": name.id, "dev_name": message.volume_name_ref}
        )
        try:
            await together(self._ledger.put(name, entry), making)
        except SpdkError as error:
            await self._ledger.drop(name)
            raise FailedPrecondition(f"{name}: {error.message}") from error
        result = pb.VirtioBlk()
        result.CopyFrom(message)
        result.name = str(name)
        return result

    async def update(self, name: Name, current: pb.VirtioBlk, wanted: pb.VirtioBlk) -> Any:
        immutable(current, wanted)
        return current

    async def delete(self, name: Name) -> bool:
        if await self._find(name) is None:
            await self._ledger.drop(name)
            return False
        try:
            await self._session.call("vhost_delete_controller", {"ctrlr": name.id}, deadline=_DELETE_SECONDS)
        except SpdkError as error:
            if not error.missing:
                raise FailedPrecondition(f"{name} cannot be deleted: {error.message}") from error
        await self._ledger.drop(name)
        return True

    async def stats(self, name: Name) -> Any | None:
        found = await self._find(name)
        if found is None:
            return None
        bdev = found["backend_specific"]["block"].get("bdev")
        return await stats(self._session, [bdev] if bdev else [])

    def _message(self, name: Name, controller: Mapping[str, Any]) -> pb.VirtioBlk:
        values = self._ledger.get(name) or {}
        result = pb.VirtioBlk(
            name=str(name),
            volume_name_ref=controller["backend_specific"]["block"].get("bdev") or "",
            max_io_qps=int(values.get("queues", 0)),
        )
        slot = _slot(values)
        if slot is not None:
            result.pcie_id.CopyFrom(pci_of(slot))
        return result


def _slot(values: Mapping[str, str]) -> Slot | None:
    if "pf" not in values:
        return None
    return Slot(int(values["port"]), int(values["pf"]), int(values["vf"]))
