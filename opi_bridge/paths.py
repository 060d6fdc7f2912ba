"""NvmePath resources: one way to a remote subsystem."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from dpu_offload_stubs.opi.storage import backend_nvme_pb2 as pb
from dpu_offload_stubs.opi.storage import opicommon_pb2
from foundation.spdk.errors import SpdkError
from opi_bridge.endpoints import FAMILIES, family_of
from opi_bridge.errors import (
    DEFINITE,
    AlreadyExists,
    CardRefused,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OpiError,
    TargetAway,
    Unavailable,
    Unimplemented,
)
from opi_bridge.ledger import Ledger
from opi_bridge.names import Name
from opi_bridge.remote_controllers import PATHS, RemoteControllerStore, RemoteSettings
from opi_bridge.resources import immutable
from opi_bridge.session import Session
from opi_bridge.subsystems import check_nqn
from opi_bridge.volumes import find, prefixed, stats, together

_TRANSPORTS: Final = {
    opicommon_pb2.NVME_TRANSPORT_TYPE_TCP: "TCP",
    opicommon_pb2.NVME_TRANSPORT_TYPE_RDMA: "RDMA",
    opicommon_pb2.NVME_TRANSPORT_TYPE_PCIE: "PCIe",
}
_ATTACH_SECONDS: Final = 30.0
# A detach whose I/O hangs is answered after 10 s.
_DETACH_SECONDS: Final = 15.0


class PathStore:
    def __init__(self, session: Session, ledger: Ledger, controllers: RemoteControllerStore) -> None:
        self._session = session
        self._ledger = ledger
        self._controllers = controllers

    def check(self, message: pb.NvmePath) -> None:
        transport = _TRANSPORTS.get(message.trtype)
        if transport is None:
            raise InvalidArgument("trtype is TCP, RDMA or PCIE")
        if not message.traddr:
            raise InvalidArgument("traddr is required")
        if transport == "PCIe":
            if message.HasField("fabrics"):
                raise InvalidArgument("fabrics is not for a path of transport PCIE")
            return
        if not message.HasField("fabrics"):
            raise InvalidArgument(f"fabrics is required for a path of transport {transport}")
        fabrics = message.fabrics
        family = family_of(message.traddr)
        if not 0 < fabrics.trsvcid < 65536:
            raise InvalidArgument(f"fabrics.trsvcid {fabrics.trsvcid} is not a port number")
        if fabrics.adrfam and FAMILIES.get(fabrics.adrfam) != family:
            raise InvalidArgument(f"fabrics.adrfam does not fit the address {message.traddr}")
        check_nqn(fabrics.subnqn, "fabrics.subnqn")
        if fabrics.hostnqn:
            check_nqn(fabrics.hostnqn, "fabrics.hostnqn")
        if fabrics.source_traddr:
            family_of(fabrics.source_traddr)
        if not 0 <= fabrics.source_trsvcid < 65536:
            raise InvalidArgument(f"fabrics.source_trsvcid {fabrics.source_trsvcid} is not a port number")

    def normalise(self, message: pb.NvmePath) -> pb.NvmePath:
        result = pb.NvmePath()
        result.CopyFrom(message)
        if message.HasField("fabrics"):
            family = family_of(message.traddr)
            result.fabrics.adrfam = next(number for number, word in FAMILIES.items() if word == family)
        return result

    async def listing(self, parent: Name) -> Sequence[pb.NvmePath]:
        if parent.id == "-":
            every = prefixed((await self._controllers.every()).items(), parent)
        else:
            if not await self._controllers.exists(parent):
                raise NotFound(f"there is no {parent}")
            every = [(parent, await self._controllers.paths(parent))]
        return [_message(self.name(owner, path["trid"]), path) for owner, paths in every for path in paths]

    def name(self, parent: Name, trid: Mapping[str, str]) -> Name:
        """The name of the path with this address: the one it was given, or one made of the address."""
        where = at(trid)
        for name, values in self._ledger.under(parent, PATHS):
            if values["at"] == where:
                return name
        return parent.child(PATHS, path_id(trid))

    async def get(self, name: Name) -> pb.NvmePath | None:
        path = await self._find(name)
        return _message(name, path) if path is not None else None

    async def _find(self, name: Name) -> Mapping[str, Any] | None:
        for path in await self._controllers.paths(name.parent):
            if self.name(name.parent, path["trid"]) == name:
                return path
        return None

    async def create(self, name: Name, message: pb.NvmePath) -> pb.NvmePath:
        settings = self._controllers.settings(name.parent)
        if settings is None:
            if not await self._controllers.paths(name.parent):
                raise NotFound(f"there is no {name.parent}: create it first")
            settings = RemoteSettings(multipath="failover")
        trid = _trid(message)
        if self._ledger.get(name) is not None and await self._find(name) is not None:
            raise AlreadyExists(f"{name} exists already")
        making = self._attach(name, trid, message, settings)
        if name.id == path_id(trid):
            await making
        else:
            try:
                await together(self._ledger.put(name, {"at": at(trid)}), making)
            except DEFINITE:
                await self._ledger.drop(name)
                raise
        result = pb.NvmePath()
        result.CopyFrom(message)
        result.name = str(name)
        return result

    async def _attach(
        self, name: Name, trid: Mapping[str, str], message: pb.NvmePath, settings: RemoteSettings
    ) -> None:
        params: dict[str, Any] = {"name": name.parent.id, **trid, **settings.params()}
        fabrics = message.fabrics
        if fabrics.hostnqn:
            params["hostnqn"] = fabrics.hostnqn
        if fabrics.source_traddr:
            params["hostaddr"] = fabrics.source_traddr
        if fabrics.source_trsvcid:
            params["hostsvcid"] = str(fabrics.source_trsvcid)
        if trid["trtype"] == "PCIe":
            params = {"name": name.parent.id, "trtype": "PCIe", "traddr": trid["traddr"]}
        try:
            await self._session.call("bdev_nvme_attach_controller", params, deadline=_ATTACH_SECONDS)
        except SpdkError as error:
            raise _why(name, trid, error) from error

    async def update(self, name: Name, current: pb.NvmePath, wanted: pb.NvmePath) -> Any:
        immutable(current, wanted)
        return current

    async def delete(self, name: Name) -> bool:
        # Both go out in one write. SPDK lets a disk be detached under its user, so the look is ours to take.
        paths, disk = await asyncio.gather(
            self._controllers.paths(name.parent), find(self._session, f"{name.parent.id}n1")
        )
        path = next((p for p in paths if self.name(name.parent, p["trid"]) == name), None)
        if path is None:
            await self._ledger.drop(name)
            return False
        if len(paths) == 1 and disk is not None and disk.get("claimed"):
            raise FailedPrecondition(f"{name} is the last path to volume {disk['name']}, which is in use")
        trid = {key: value for key, value in path["trid"].items() if value}
        try:
            await self._session.call(
                "bdev_nvme_detach_controller", {"name": name.parent.id, **trid}, deadline=_DETACH_SECONDS
            )
        except SpdkError as error:
            if error.timed_out:
                raise Unavailable(
                    f"{name} cannot be let go while its I/O hangs: cut the host off at the target"
                ) from error
            if not error.missing and error.code != -6:
                raise CardRefused(f"{name} cannot be detached: {error.message}") from error
        await self._ledger.drop(name)
        return True

    async def stats(self, name: Name) -> Any | None:
        if await self._find(name) is None:
            return None
        # Only the disk behind all paths is counted; SPDK counts single paths when it was started that way.
        return await stats(self._session, [str(b["name"]) for b in await self._controllers.bdevs(name.parent)])


def path_id(trid: Mapping[str, str]) -> str:
    """The id of a path that was not given another one."""
    address = "".join(c if c.isalnum() else "-" for c in trid["traddr"].lower()).strip("-")
    parts = [trid["trtype"].lower(), address, trid.get("trsvcid", "")]
    return "-".join(part for part in parts if part)


def at(trid: Mapping[str, str]) -> str:
    """A path's address in one word, for the ledger."""
    return f"{trid['trtype'].upper()},{trid['traddr'].lower()},{trid.get('trsvcid', '')}"


def _trid(message: pb.NvmePath) -> dict[str, str]:
    transport = _TRANSPORTS[message.trtype]
    if transport == "PCIe":
        return {"trtype": transport, "traddr": message.traddr}
    return {
        "trtype": transport,
        "adrfam": family_of(message.traddr),
        "traddr": message.traddr,
        "trsvcid": str(message.fabrics.trsvcid),
        "subnqn": message.fabrics.subnqn,
    }


def _why(name: Name, trid: Mapping[str, str], error: SpdkError) -> OpiError:
    where = f"{trid['trtype']} {trid['traddr']} port {trid.get('trsvcid', '-')}"
    if error.code == -22:
        return FailedPrecondition(f"{name}: {error.message}")
    if "multipath is disabled" in error.message:
        return FailedPrecondition(f"{name.parent} was created for one path only: {error.message}")
    if error.exists:
        return AlreadyExists(f"{name}: the way over {where} to {trid.get('subnqn', 'it')} is there already")
    if error.unreachable:
        return TargetAway(
            f"{name}: no connection over {where} to {trid.get('subnqn', 'the disk')}: the target does not answer there,"
            " has no such subsystem, or does not admit this host or its keys"
        )
    if error.code == -126:
        return FailedPrecondition(f"{name}: a key is missing from the keyring")
    if error.missing or error.code == -95:
        return Unimplemented(f"{name}: this card cannot connect over {trid['trtype']}: {error.message}")
    if error.timed_out:
        return Unavailable(f"{name}: the connection over {where} timed out")
    return CardRefused(f"{name}: {error.message}")


def _message(name: Name, path: Mapping[str, Any]) -> pb.NvmePath:
    trid, host = path["trid"], path.get("host", {})
    result = pb.NvmePath(name=str(name), traddr=trid["traddr"])
    result.trtype = next(
        (number for number, word in _TRANSPORTS.items() if word.upper() == trid["trtype"].upper()),
        opicommon_pb2.NVME_TRANSPORT_TYPE_CUSTOM,
    )
    if trid.get("subnqn") and trid.get("trsvcid", "").isdecimal():
        fabrics = result.fabrics
        fabrics.trsvcid = int(trid["trsvcid"])
        fabrics.subnqn = trid["subnqn"]
        fabrics.hostnqn = host.get("nqn", "")
        fabrics.source_traddr = host.get("addr", "")
        fabrics.source_trsvcid = int(host.get("svcid") or 0)
        family = next((number for number, word in FAMILIES.items() if word == trid.get("adrfam")), None)
        if family is not None:
            fabrics.adrfam = family
    return result
