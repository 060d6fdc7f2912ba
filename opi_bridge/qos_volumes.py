"""QosVolume resources: upper bounds on a volume. SPDK has no object for them, so the ledger names them."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from dpu_offload_stubs.opi.storage import middleend_qos_volume_pb2 as pb
from foundation.spdk.errors import SpdkError
from opi_bridge import names
from opi_bridge.cards.model import Qos
from opi_bridge.endpoints import qos_of
from opi_bridge.errors import DEFINITE, AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unimplemented
from opi_bridge.ledger import Ledger
from opi_bridge.names import Name
from opi_bridge.resources import immutable
from opi_bridge.session import Session
from opi_bridge.volumes import bdev_of, find, stats

COLLECTION: Final = "qosVolumes"
_UNSUPPORTED: Final = ("rd_iops_kiops", "wr_iops_kiops")
_FIELDS: Final = ("rw_iops_kiops", "rd_bandwidth_mbs", "wr_bandwidth_mbs", "rw_bandwidth_mbs")
_NONE: Final = {"rw_ios_per_sec": 0, "rw_mbytes_per_sec": 0, "r_mbytes_per_sec": 0, "w_mbytes_per_sec": 0}


class QosStore:
    def __init__(self, session: Session, ledger: Ledger) -> None:
        self._session = session
        self._ledger = ledger

    def check(self, message: pb.QosVolume) -> None:
        bdev_of(message.volume_name_ref)
        least, most = qos_of(message.limits.min, "limits.min"), qos_of(message.limits.max, "limits.max")
        if least != Qos():
            raise Unimplemented("limits.min: this card guarantees nothing, it only limits")
        for field in _UNSUPPORTED:
            if getattr(message.limits.max, field):
                raise Unimplemented(f"limits.max.{field}: this card limits reads and writes together (rw_iops_kiops)")
        if most == Qos():
            raise InvalidArgument("limits.max names no limit")

    def normalise(self, message: pb.QosVolume) -> pb.QosVolume:
        result = pb.QosVolume()
        result.CopyFrom(message)
        result.volume_name_ref = bdev_of(message.volume_name_ref)
        return result

    async def listing(self, parent: Name) -> Sequence[pb.QosVolume]:
        found = []
        bdevs = {bdev["name"]: bdev for bdev in await self._session.call("bdev_get_bdevs")}
        for name, entry in self._ledger.under(names.ROOT, COLLECTION):
            if entry["bdev"] in bdevs:
                found.append(_message(name, bdevs[entry["bdev"]]))
        return found

    async def get(self, name: Name) -> pb.QosVolume | None:
        bdev = await self._find(name)
        return _message(name, bdev) if bdev is not None else None

    async def _find(self, name: Name) -> Mapping[str, Any] | None:
        entry = self._ledger.get(name)
        return await find(self._session, entry["bdev"]) if entry is not None else None

    async def create(self, name: Name, message: pb.QosVolume) -> pb.QosVolume:
        if self._ledger.get(name) is not None and await self._find(name) is not None:
            raise AlreadyExists(f"{name} exists already")
        bdev = await find(self._session, message.volume_name_ref)
        if bdev is None:
            raise NotFound(f"there is no volume {message.volume_name_ref}")
        for other, entry in self._ledger.under(names.ROOT, COLLECTION):
            if entry["bdev"] == bdev["name"] and other != name:
                raise FailedPrecondition(f"{message.volume_name_ref} is limited by {other} already")
        await self._ledger.put(name, {"bdev": str(bdev["name"])})
        try:
            await self._set(str(bdev["name"]), message)
        except DEFINITE:
            await self._ledger.drop(name)
            raise
        result = pb.QosVolume()
        result.CopyFrom(message)
        result.name = str(name)
        return result

    async def _set(self, bdev: str, message: pb.QosVolume) -> None:
        most = qos_of(message.limits.max, "limits.max")
        limits = {
            "rw_ios_per_sec": most.read_write_iops,
            "rw_mbytes_per_sec": most.read_write_mb,
            "r_mbytes_per_sec": most.read_mb,
            "w_mbytes_per_sec": most.write_mb,
        }
        await self._limit(bdev, limits)

    async def _limit(self, bdev: str, limits: Mapping[str, int]) -> None:
        try:
            await self._session.call("bdev_set_qos_limit", {"name": bdev, **limits})
        except SpdkError as error:
            if error.busy:
                raise FailedPrecondition(
                    f"the limits of volume {bdev} cannot be changed while nobody uses it: make it a namespace first"
                ) from error
            raise FailedPrecondition(f"volume {bdev}: {error.message}") from error

    async def update(self, name: Name, current: pb.QosVolume, wanted: pb.QosVolume) -> Any:
        immutable(current, wanted, [f"limits.max.{field}" for field in _FIELDS])
        entry = self._ledger.get(name)
        if entry is None:
            raise NotFound(f"there is no {name}")
        await self._set(entry["bdev"], wanted)
        return wanted

    async def delete(self, name: Name) -> bool:
        entry = self._ledger.get(name)
        if entry is None:
            return False
        bdev = await self._find(name)
        if bdev is not None and any(bdev["assigned_rate_limits"].values()):
            try:
                await self._limit(entry["bdev"], _NONE)
            except FailedPrecondition:
                # Limits of a disk that nobody has open cannot be lifted, and go with it.
                if bdev.get("claimed"):
                    raise
        await self._ledger.drop(name)
        return bdev is not None

    async def stats(self, name: Name) -> Any | None:
        bdev = await self._find(name)
        return await stats(self._session, [str(bdev["name"])]) if bdev is not None else None


def _message(name: Name, bdev: Mapping[str, Any]) -> pb.QosVolume:
    limits = bdev["assigned_rate_limits"]
    result = pb.QosVolume(name=str(name), volume_name_ref=str(bdev["name"]))
    most = result.limits.max
    most.rw_iops_kiops = limits["rw_ios_per_sec"] // 1000
    most.rw_bandwidth_mbs = limits["rw_mbytes_per_sec"]
    most.rd_bandwidth_mbs = limits["r_mbytes_per_sec"]
    most.wr_bandwidth_mbs = limits["w_mbytes_per_sec"]
    return result
